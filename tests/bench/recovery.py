"""How long a child takes to be there again after its death, and what its frozen copies cost.

    python recovery.py [--docs] [--cycles N] [--megabytes M ...]

A child that holds so many megabytes dies; the time is that of the next call, a no-op, from outside: with a
fresh child (which has lost it), also from a spare interpreter, and with roll-back (which has it, as is checked). The copies: what making one
takes, and what writing the whole array takes right after that, beside a write that copies nothing.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "victims"))

from ipython_isolation import IsolationContext, ProcessTerminationError  # noqa: E402


def clocked(call, *args):
    start = time.perf_counter()
    call(*args)
    return (time.perf_counter() - start) * 1000


#: Seconds that a spare interpreter gets to be ready before the next death.
SPARE_SECONDS = 0.3


def die(deaths):
    try:
        deaths.segfault()
    except ProcessTerminationError:
        return
    raise AssertionError("it lives")


def recover(no_op):
    """Milliseconds of the first call after a death."""
    sys.stderr, stderr = open(os.devnull, "w"), sys.stderr  # what was reset
    try:
        return clocked(no_op, 0)
    finally:
        sys.stderr.close()
        sys.stderr = stderr


def restarts(megabytes, cycles, spare):
    took = []
    with IsolationContext(restart="auto", rollback="off", spare=spare) as context:
        deaths = context.load_module("_deaths")
        no_op = deaths.allocate  # looking it up would restart
        for _ in range(cycles):
            deaths.allocate(megabytes)
            if spare:
                time.sleep(SPARE_SECONDS)
            pid = context.remote_pid
            die(deaths)
            took.append(recover(no_op))
            assert context.remote_pid != pid
    return took


def rolls_back(megabytes, cycles):
    took = {"roll-back": [], "snapshot": [], "first write after it": [], "write": []}
    with IsolationContext(restart="auto", rollback="auto") as context:
        deaths, np = context.load_module("_deaths"), context.load_module("numpy")
        array, no_op = np.ones(megabytes * 131072), deaths.allocate
        for n in range(cycles):
            context.checkpoint()
            took["snapshot"].append(context.info()["rollback"]["cost"] * 1000)
            with context._snapshots.hold():
                took["first write after it"].append(clocked(array.fill, n))
                took["write"].append(clocked(array.fill, n))
            context.checkpoint()
            with context._snapshots.hold():
                die(deaths)
                took["roll-back"].append(recover(no_op))
            assert float(array[-1]) == n, "the array is not what it was"
        assert context.info()["rollback"]["take_overs"] == cycles
    return took


def measure(megabytes, cycles):
    """Milliseconds: {what: list of float}."""
    return {
        "restart": restarts(megabytes, cycles, spare=False),
        "restart, with a spare": restarts(megabytes, cycles, spare=True),
        **rolls_back(megabytes, cycles),
    }


def p99(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def table(results):
    lines = ["| what | MB in the child | p50, ms | p99, ms |", "| --- | ---: | ---: | ---: |"]
    for megabytes, took in results.items():
        for what, values in took.items():
            lines.append(f"| {what} | {megabytes} | {statistics.median(values):.1f} | {p99(values):.1f} |")
    return "\n".join(lines)


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--docs", action="store_true", help="write docs/recovery.md")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[50, 2000])
    args = parser.parse_args(argv)
    results = {m: measure(m, args.cycles if m <= 200 else max(5, args.cycles // 5)) for m in args.megabytes}
    text = table(results)
    print(text)
    for megabytes, took in results.items():
        median = statistics.median(took["roll-back"])
        print(f"roll-back at {megabytes} MB: p50 {median:.1f} ms, target 10 ms: {'met' if median <= 10 else 'MISSED'}")
    if args.docs:
        page = HERE.parents[1] / "docs" / "recovery.md"
        page.write_text(
            "# Recovery\n\nWritten by `make bench ARGS=--docs` (tests/bench/recovery.py), on a machine with"
            f" {os.cpu_count()} processors, {platform.system()} {platform.release().split('-')[0]}, CPython {platform.python_version()}.\n\n"
            "The child holds so many megabytes, in a NumPy array where it is rolled back. *restart* and *roll-back*: the next"
            " call after a death, a no-op; a fresh child has imported a small module again, and what else it has lost is not made"
            f" again in that time. A *spare* has had {SPARE_SECONDS} s to be ready. *snapshot*: a frozen copy"
            " is made, as the caller of a checkpoint feels it. *first write after it*: the whole array is written in place, while"
            " the operating system keeps the old content for the copy, page by page; *write*: once more.\n\n" + text + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
