"""Crash-and-restart cycles, and operations: nothing may grow. `make soak` runs the long version.

Prints what it measured as one line of JSON each; exits with 1 if anything grew.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "victims"))

from ipython_isolation import IsolationContext, ProcessTerminationError

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * PAGE


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def below(pid):
    found, todo = 0, [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{task}/children") as file:
                    kids = file.read().split()
                    found += len(kids)
                    todo += kids
    return found


def measure(context):
    """What must not grow, of both sides. All references that are not in use are gone."""
    for _ in range(2):
        gc.collect()
        context.call(eval, "__import__('gc').collect()")
        counts = context._peer.host_call("counts")  # takes the releases along
    mine, pid = context._peer.counts, context.remote_pid
    return {
        "descriptors": descriptors("self"),
        "/dev/shm": len(os.listdir("/dev/shm")),
        "processes": below(os.getpid()),
        "threads": threading.active_count(),
        "exports": mine["exports"],
        "imports": mine["imports"],
        "strands": mine["strands"],
        "child descriptors": descriptors(pid),
        "child exports": counts["exports"],
        "child imports": counts["imports"],
        "child strands": counts["strands"],
        "rss": resident("self"),
        "child rss": resident(pid),
    }


def settled(context, before):
    """A measurement, once threads that are about to end have ended."""
    end = time.monotonic() + 30
    while True:
        after = measure(context)
        counts = [key for key in after if "rss" not in key]
        if all(after[key] <= before[key] for key in counts) or time.monotonic() > end:
            return after
        time.sleep(0.02)


def grown(before, after, rss):
    """What grew: {name: (before, after)}; memory may grow by `rss` bytes."""
    return {
        key: (before[key], after[key])
        for key in before
        if after[key] > before[key] + (rss if "rss" in key else 0)
        # The sanitizer's allocator holds back what is freed; it sees leaks of its own kind.
        and not ("rss" in key and os.environ.get("IPYTHON_ISOLATION_ASAN"))
    }


def crash_cycles(cycles, warm_up=5, rollback="auto"):
    """Deaths in a row with objects of every kind alive: (before, after, seconds of each). With roll-back a frozen copy
    takes over each time, without it there is a fresh child."""
    took = []
    with IsolationContext(restart="auto", name="soak", rollback=rollback) as context:
        deaths = context.load_module("_deaths")
        collections = context.load_module("collections")

        class Mine(collections.OrderedDict):
            pass  # a class that the child knows stays there for its life, and a frozen copy's

        def cycle():
            if rollback == "off":
                return die()
            # When copies are made is a matter of time; what each knows of the session is to be the same.
            context.checkpoint()
            with context._snapshots.hold():
                die()

        def die():
            kept = [collections.OrderedDict(a=i) for i in range(10)]
            collections.Counter("abc").update("def")
            collections.defaultdict(lambda: 3)["x"]
            [].extend(map(collections.OrderedDict, [[(1, 2)]] * 3))

            kept.append(Mine(b=1))
            start = time.monotonic()
            try:
                deaths.segfault()
            except ProcessTerminationError:
                pass
            else:
                raise AssertionError("it lives")
            with contextlib.redirect_stderr(io.StringIO()):
                assert deaths.allocate(0) == 0
            took.append(time.monotonic() - start)

        if rollback != "off":
            Mine(b=0)  # what each copy knows, too
        for _ in range(warm_up):
            cycle()
        before = measure(context)
        for _ in range(cycles):
            cycle()
        after = settled(context, before)
    return before, after, took


class Session:
    """Called back."""

    def method(self, x):
        return x


def operations(count, warm_up=2000):
    """Operations of every kind: (before, after, seconds)."""
    with IsolationContext(restart="auto", name="soak") as context:
        collections = context.load_module("collections")
        functools = context.load_module("functools")
        session = Session()
        mutable = [1, [2], {"a": 3}]

        def mixed():
            ordered = collections.OrderedDict(abc=1)
            assert ordered["abc"] == 1
            ordered["abc"] = 2
            ordered.update(x=session)
            assert ordered["x"] is session
            assert len(ordered) == 2
            for _ in ordered.items():
                pass
            try:
                ordered["missing"]
            except KeyError:
                pass
            assert functools.reduce(lambda a, b: session.method(a) + b, [1, 2, 3]) == 6
            counter = collections.Counter(mutable[:1])
            assert counter + counter
            try:
                functools.reduce(lambda a, b: 1 / 0, [1, 2])
            except ZeroDivisionError:
                pass
            collections.deque(mutable, 5).append(mutable)
            with contextlib.suppress(TypeError):
                collections.OrderedDict(object(), object())
            functools.partial(session.method, 1)()
            with contextlib.suppress(TypeError):
                ordered[{"not": "hashable"}]

        def run(n):
            start = context.info()["requests"]
            while context.info()["requests"] - start < n:
                for _ in range(20):
                    mixed()

        run(warm_up)
        before = measure(context)
        start = time.monotonic()
        run(count)
        seconds = time.monotonic() - start
        after = settled(context, before)
    return before, after, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=10_000, help="with roll-back")
    parser.add_argument("--cycles", type=int, default=1000, help="with a restart")
    parser.add_argument("--operations", type=int, default=1_000_000)
    options = parser.parse_args()
    bad = {}
    for what, count, rollback in (
        ("deaths, rolled back", options.deaths, "auto"),
        ("crash-and-restart cycles", options.cycles, "off"),
    ):
        before, after, took = crash_cycles(count, 20, rollback)
        took.sort()
        print(
            json.dumps(
                {
                    what: count,
                    "median ms": round(took[len(took) // 2] * 1000, 1),
                    "worst ms": round(took[-1] * 1000, 1),
                    "before": before,
                    "after": after,
                }
            ),
            flush=True,
        )
        # The allocator may keep some pages; 1 kB a cycle would be a leak worth finding.
        bad.update(grown(before, after, 1_000_000 + 1000 * count))
    before, after, seconds = operations(options.operations, 20_000)
    print(
        json.dumps(
            {"operations": options.operations, "seconds": round(seconds, 1), "before": before, "after": after}
        ),
        flush=True,
    )
    bad.update(grown(before, after, 3_000_000 + 4 * options.operations))
    if bad:
        print("grown:", bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
