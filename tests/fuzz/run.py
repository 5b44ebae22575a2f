"""Garbled frames: real frames of a child, changed at random, read by the session's side of the core.

Each must give a result or an exception, never a crash, a hang or a SystemError. A worker that dies leaves
its last frame and seed in build/fuzz/, and `--replay FILE` reads that frame again. `make fuzz` runs a
short version; `make fuzz ARGS="--seconds 600"` a long one. Best under the sanitizers (make test-asan's
tree), where reads out of bounds are found that happen to do no harm.
"""

import argparse
import faulthandler
import os
import random
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "fuzz"
sys.path.insert(0, str(ROOT / "tests" / "victims"))

from ipython_isolation import _core  # noqa: E402

HEADER = 24
INTERESTING = [0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1]


# Its contents come along with its items.
NESTED = "[[1, 2.5], {'a': [1], 'b': 'x', 3: {}}, (1, [2]), [[3], [[4]]], [[5, 6], [5]], None, {1}]"


class Mine:
    """Of the session."""

    def __init__(self):
        self.list = [1, [2], {"a": b"x"}]


def libraries():
    """Results of libraries, which are real objects here."""
    import array

    import numpy
    import pandas
    import pyarrow
    from PIL import Image

    table = pandas.DataFrame({"a": [1.5, 2.5], "t": ["x", None], "k": pandas.Categorical(["u", "v"])})
    table.attrs["l"] = [1]
    scalars = [numpy.float64(1), numpy.str_("ab"), numpy.datetime64("2020"), numpy.dtype("f8"), numpy.sin, pandas.NaT, pandas.Timestamp("2020", tz="UTC")]
    arrays = [numpy.arange(3), numpy.zeros(2, [("a", "i4"), ("b", "f8")]), numpy.array([1, "x", [2]], dtype=object), array.array("d", [1, 2])]
    return scalars, arrays, table, pandas.Series([1, 2]), pyarrow.table({"a": [1, None]}), Image.new("P", (3, 3)), numpy.dtype([("a", "f8")])


def mixed(context):
    """Operations whose frames are of all kinds."""
    import datetime
    import decimal

    collections = context.load_module("collections")
    functools = context.load_module("functools")
    mine = Mine()
    ordered = collections.OrderedDict(a=mine, b=[1, 2.5, 1j, "täxt\udcff", b"raw", None, True, 1 << 100])
    list(ordered.items())
    collections.Counter("abcabc").most_common()
    functools.reduce(lambda a, b: mine.list + [a, b], [[1], {"x": {2}}, bytearray(b"abc")])
    functools.partial(lambda *a, **k: (a, k), 1, x=ordered)(y={1, 2})
    context.call(eval, "[(), {}, set(), frozenset([1]), range(3), slice(1, 2), ..., NotImplemented, 2.0, print]")
    context.call(eval, "__import__('collections').deque([1, [2]], 5)")
    context.call(libraries)
    context.call(eval, "__import__('array').array('d', [1, 2, 3])")
    context.call(eval, "memoryview(b'abcdef')")
    context.call(lambda *a: a, datetime.datetime(2020, 1, 1), decimal.Decimal("1.5"))
    context.call(eval, "type('Made', (dict, ), {'method': lambda self: 1, '__len__': lambda self: 3})()")
    context.call(eval, "type('Err', (Exception,), {})(1, [2])")
    value = (1, "two", mine)
    context.call(lambda a, b: (a, [b], a), value, [value, "text of some length"])
    context.call(eval, "'x' * 100_000")
    io = context.load_module("io").BytesIO(b"abcdef").getbuffer()
    view = memoryview(io)
    io[0] = 5
    view[1] = 6
    io[2:4] = b"xy"
    view.release()
    for source in ("{}['x']", "int('x')", "__import__('os').stat('/nowhere')", "(_ for _ in ()).throw(StopIteration(3))"):
        try:
            context.call(eval, source)
        except Exception:
            pass
    context.call(exec, f"import builtins; builtins.nested = {NESTED}", {})
    nested = context.call(eval, "nested")
    rows = list(nested)
    list(nested[1].items()), dict(nested[1]), [nested[1][key] for key in nested[1]], list(rows[0]), sorted(rows[4])
    with context.batch():
        made = collections.OrderedDict(a=[1])
        kept = [functools.reduce(max, [1, 2]), functools.partial(print, made), made]
        functools.reduce(print, []).exception()
    list(kept)
    try:
        import numpy

        context.call(lambda a: a * 2, numpy.arange(12.0).reshape(3, 4))
        context.call(lambda a: a.sort(), numpy.arange(12)[::-2])
    except ImportError:
        pass


def use(result):
    """What an iteration gave answers for itself; what is not known is asked for."""
    for o in result if type(result) is tuple else ():
        if _core.isproxy(o) and isinstance(o, (list, dict)):
            for ask in (len, list, repr, lambda o: o == o, lambda o: o < o, lambda o: o[0], lambda o: list(o.items()), lambda o: o.get(1)):
                try:
                    ask(o)
                except SystemError:
                    raise
                except Exception:
                    pass


def mutate(rng, frame, frames):
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # The header is left alone most of the time: frames of another epoch are dropped unread.
        low = 0 if rng.random() < 0.05 else 1 if rng.random() < 0.1 else HEADER
        low = min(low, len(data))
        at = rng.randrange(low, len(data) + 1)
        kind = rng.randrange(10)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(64)  # a tag
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 6:
            data[at : at + 8] = struct.pack("<Q", rng.choice(INTERESTING))
        elif kind == 7 and at < len(data):
            data[at] = rng.choice((0, 1, 253, 254, 255))  # a size
        elif kind == 8:
            data[at:at] = bytes((254, rng.randrange(256)))  # a name that has a number
        else:
            other = rng.choice(frames)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(64)]
    if rng.random() < 0.1 and len(data) >= 4:
        data[2:4] = struct.pack("<H", rng.randrange(512))
    return bytes(data)


def worker(seed, seconds, replay=None):
    """Feeds frames until the time is over. The frame that is being read is in a file."""
    faulthandler.enable()
    from ipython_isolation import IsolationContext

    rng = random.Random(seed)
    current = open(OUT / f"frame-{seed}", "w+b", buffering=0)
    end, fed, raised = time.monotonic() + seconds, 0, {}
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what finalizers say of garbled objects
    faulthandler.enable(stderr)
    while time.monotonic() < end:
        with IsolationContext(restart="auto") as context:
            frames = []
            context._peer._tap = frames.append
            mixed(context)
            context._peer._tap = None
            frames = [f for f in frames if len(f) > HEADER]

            def feed(data):
                nonlocal fed
                current.seek(0)
                current.truncate()
                current.write(data)
                try:
                    use(context._peer._feed(data))
                except SystemError:
                    os.dup2(stderr, 2)
                    traceback.print_exc()
                    os._exit(1)
                except Exception as error:
                    raised[type(error).__name__] = raised.get(type(error).__name__, 0) + 1
                fed += 1

            def feed_many(a, b):
                for _ in range(1000):
                    faulthandler.dump_traceback_later(20, exit=True, file=stderr)
                    feed(replay or mutate(rng, rng.choice(frames), frames))
                faulthandler.cancel_dump_traceback_later()
                return a

            # In the middle of a call, so that there are copied containers to be changed.
            try:
                context.load_module("functools").reduce(feed_many, [[1, [2]], {"a": {1}, "b": bytearray(b"x")}])
            except Exception:
                pass
        if replay:
            break
    current.close()
    os.remove(OUT / f"frame-{seed}")
    print(f"seed {seed}: {fed} frames, {sum(raised.values())} raised: {raised}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--worker", action="store_true")
    parser.add_argument("--replay")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.worker or options.replay:
        replay = Path(options.replay).read_bytes() if options.replay else None
        worker(options.seed or 0, options.seconds, replay)
        return 0
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    end, failures = time.monotonic() + options.seconds, 0
    while (left := end - time.monotonic()) > 0 and failures < 10:
        command = [sys.executable, __file__, "--worker", "--seed", str(seed), "--seconds", str(min(left, 10))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            print(done.stdout, end="", flush=True)
        else:
            failures += 1
            print(f"seed {seed}: exit {done.returncode}, the frame is in {OUT / f'frame-{seed}'}\n{done.stderr[-3000:]}")
        seed += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
