"""What one operation on an isolated object costs, beside libzmq alone and beside others who do the same.

    python tests/bench/latency.py [--launches N] [--rounds N] [--per-round N] [--docs]

All contenders run in one go, in rounds (a few operations of each, in random order), so that noise hits all
alike. Every row checks that the other process answered, and that as many requests were sent as operations were
timed.
--docs writes the tables to docs/benchmarks.md and the README, and a plot to docs/latency.png. The exit code is 1 when a check
fails; a missed target is said, but is no failure (a benchmark is no test).
"""

import argparse
import gc
import importlib.util
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import contenders
import readme_table

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = {"noop": "`noop()`", "getitem": "`od['abc']`", "setitem": "`od['abc'] = 1`", "method": "`obj.method()`"}
KINDS = [
    contenders.Raw,
    contenders.Isolated,
    contenders.IsolatedZmq,
    contenders.RPyC,
    contenders.Manager,
    contenders.Pyro,
    contenders.Local,
]
LABELS = [kind.label for kind in KINDS]
TARGET_ZMQ = 1.3  # times the raw round trip
TARGET_US = 1.0
TARGET_RPYC = 100  # times faster


def timed(operation, n):
    """n calls, each timed: list of int, nanoseconds."""
    clock, took = time.perf_counter_ns, []
    for _ in range(n):
        start = clock()
        operation()
        took.append(clock() - start)
    return took


def measure(launches, rounds, per_round):
    """Runs everything.

    Parameters
    ----------
    launches : int
        How often all contenders are started: where the scheduler puts the threads of a pair of processes
        decides for their whole life between (here) 40 and 80 us, for libzmq alone as for the others.
    rounds, per_round : int

    Returns
    -------
    dict
        (row, label) -> list of int, nanoseconds.
    """
    took = {}
    kinds = list(KINDS)
    if importlib.util.find_spec("Pyro5") is None:
        print("Pyro5 is not installed: left out", file=sys.stderr)
        kinds.remove(contenders.Pyro)
    order = random.Random(1)  # a contender's forerunner leaves caches and sleeping processors behind
    for _ in range(launches):
        opened = []
        gc.disable()
        try:
            for kind in order.sample(kinds, len(kinds)):
                opened.append(kind())
            for i in range(-1, rounds):  # round -1 warms up
                for row in ROWS:
                    for contender in order.sample(opened, len(opened)):
                        sample = checked(contender, row, per_round)
                        if i >= 0:
                            took.setdefault((row, contender.label), []).extend(sample)
            for contender in opened:
                if hasattr(contender, "thing") and contender.method() != (rounds + 1) * per_round + 1:
                    sys.exit(f"{contender.label}: the method was not called as often as it was timed")
        finally:
            gc.enable()
            for contender in opened:
                contender.close()
    return took


def checked(contender, row, n):
    """n timed operations, which must have been as many requests, answered by the right process."""
    contender.pid()  # what the others changed here (log levels) is followed before the first timed call
    before = contender.requests()
    sample = contender.run(n) if isinstance(contender, contenders.Raw) else timed(getattr(contender, row), n)
    after = contender.requests()
    if before is not None and after - before != n:
        sys.exit(f"{contender.label}, {row}: {after - before} requests for {n} operations")
    if (contender.pid() == os.getpid()) is not (type(contender) is contenders.Local):
        sys.exit(f"{contender.label}, {row}: answered by the wrong process")
    return sample


def percentile(values, q):
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def microseconds(ns):
    return f"{ns / 1000:.2f}" if ns < 10_000 else f"{ns / 1000:.1f}"


def table(took, several):
    """The results as Markdown, and whether the targets are met: (str, list of str that are missed). The
    targets of the lane hold with `several` processors: with one, each round trip is two switches of processes."""
    labels = [label for label in LABELS if ("noop", label) in took]
    lines = ["| median (p99), µs | " + " | ".join(labels) + " | RPyC / isolated | over ZeroMQ / raw |"]
    lines.append("| --- |" + " ---: |" * (len(labels) + 2))
    missed = []
    for row, title in ROWS.items():
        median = {label: statistics.median(took[row, label]) for label in labels}
        cells = [f"{microseconds(median[x])} ({microseconds(percentile(took[row, x], 0.99))})" for x in labels]
        faster = median["RPyC"] / median["ipython_isolation"]
        ratio = median["over ZeroMQ"] / median["raw libzmq"]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {faster:.0f} | {ratio:.2f} |")
        if median["ipython_isolation"] > TARGET_US * 1000 and several:
            missed.append(f"{title}: {microseconds(median['ipython_isolation'])} µs; the target is {TARGET_US:g}")
        if faster < TARGET_RPYC and several:
            missed.append(f"{title}: {faster:.0f} times faster than RPyC; the target is {TARGET_RPYC}")
        if ratio > TARGET_ZMQ:
            missed.append(f"{title}: over ZeroMQ {ratio:.2f} times the raw round trip; the target is {TARGET_ZMQ}")
    return "\n".join(lines), missed


def machine():
    """This machine and what was measured on it: list of str."""
    from ctypes import CDLL, byref, c_int
    from ctypes.util import find_library
    from importlib.metadata import version

    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    parts = [c_int() for _ in range(3)]
    CDLL(find_library("zmq") or "libzmq.so.5").zmq_version(*map(byref, parts))
    versions = []
    for name in ("rpyc", "Pyro5"):
        try:
            versions.append(f"{name} {version(name)}")
        except ImportError:
            pass
    return [
        f"{cpu}, {len(os.sched_getaffinity(0))} processors usable",
        f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        f"CPython {platform.python_version()}, libzmq {'.'.join(str(p.value) for p in parts)}, "
        + ", ".join(versions),
        f"load average at the end: {os.getloadavg()[0]:.1f}",
    ]


def plot(pinned, free, path):
    """A plot of the medians, with whiskers from the first to the 99th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [label for label in LABELS[:-1] if ("noop", label) in pinned]
    figure, both = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    width = 0.8 / len(labels)
    for axes, took, title in zip(both, (pinned, free), ("one processor", "all processors")):
        for i, label in enumerate(labels):
            at = [j + (i - (len(labels) - 1) / 2) * width for j in range(len(ROWS))]
            middle = [statistics.median(took[row, label]) / 1000 for row in ROWS]
            low = [m - percentile(took[row, label], 0.01) / 1000 for m, row in zip(middle, ROWS)]
            high = [percentile(took[row, label], 0.99) / 1000 - m for m, row in zip(middle, ROWS)]
            axes.bar(at, middle, width * 0.92, label=label)
            axes.errorbar(at, middle, [low, high], fmt="none", ecolor="0.35", elinewidth=1, capsize=2)
        axes.set_xticks(range(len(ROWS)), [row.strip("`") for row in ROWS.values()])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("µs per operation: median, 1st to 99th percentile")
    figure.legend(*both[0].get_legend_handles_labels(), ncols=len(labels), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=130)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--launches", type=int, default=10, help="how often everything is started")
    parser.add_argument("--rounds", type=int, default=4, help="per launch")
    parser.add_argument("--per-round", type=int, default=100, help="operations of each row and contender")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and docs/latency.png, and the README's table")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(contenders.HERE))
    amount = options.launches, options.rounds, options.per_round
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})  # inherited by all that is started
    pinned = measure(*amount)
    os.sched_setaffinity(0, processors)
    free = measure(*amount)
    pinned_table, pinned_missed = table(pinned, False)
    free_table, free_missed = table(free, True)
    about = machine()
    count = (
        f"{options.launches * options.rounds * options.per_round} operations a cell, in {options.launches}"
        f" launches of {options.rounds} rounds"
    )
    missed = [f"one processor, {x}" for x in pinned_missed] + [f"all processors, {x}" for x in free_missed]
    print("One processor:", pinned_table, "", "All processors:", free_table, "", *about, count, sep="\n")
    for line in missed:
        print("MISSED", line)
    if options.docs:
        plot(pinned, free, ROOT / "docs" / "latency.png")
        (ROOT / "docs" / "benchmarks.md").write_text(
            DOCUMENT.format(
                pinned=pinned_table,
                free=free_table,
                about="\n".join(f"- {line}" for line in about),
                count=count,
                missed="".join(f"\nMissed: {line}.\n" for line in missed),
            )
        )
        readme_table.update()


DOCUMENT = """\
# Benchmarks

Made by `make bench ARGS=--docs`; nothing here is typed in by hand.

## One operation

All processes on one processor:

{pinned}

Free to use all processors:

{free}

{count}: a few operations of each contender, in random order, so that noise hits all alike. Each row checks that
another process answered, and that the number of requests sent grew by exactly the number of operations timed.
The targets: on every row at most {target_us} µs and {target_rpyc} times faster than RPyC, with several processors; over
ZeroMQ at most {target_zmq} times the raw round trip.
{missed}
On several processors the scheduler decides, when a pair of processes starts, where their threads live, and with
it for their whole life how long a wake-up takes; on a virtual machine that differs by a factor of two, for
libzmq alone as for everything on top of it. So all is started several times, and the first table leaves the
scheduler no choice.

- **raw libzmq**: a C program (tests/bench/pingpong.c) with two processes, a PAIR socket each on an abstract
  ipc:// name, frames of 64 bytes, zmq_poll to wait. It is what any round trip over ZeroMQ costs here.
- **ipython_isolation**: `bench_target` and `collections` isolated in one context, with default options: the frames go
  through shared memory. On one processor each round trip is two switches of processes; on several, each end
  spins for a moment before it sleeps. [profile.md](profile.md) says where the time goes.
- **over ZeroMQ**: the same with `transport="zmq"`.
- **RPyC**: classic mode over a socketpair. **multiprocessing**: a `BaseManager` over its Unix socket; it needs
  no I/O threads and is faster than any round trip over ZeroMQ.
- **Pyro5**: over a Unix socket; it forwards no operators, so methods stand for them.

![latency](latency.png)

## Machine

{about}
"""
for name, value in (("us", TARGET_US), ("rpyc", TARGET_RPYC), ("zmq", TARGET_ZMQ)):
    DOCUMENT = DOCUMENT.replace(f"{{target_{name}}}", f"{value:g}")

if __name__ == "__main__":
    main()
