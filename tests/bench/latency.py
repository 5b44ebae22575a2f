"""What one operation on an isolated object costs, beside libzmq alone and beside others who do the same.

    python tests/bench/latency.py [--launches N] [--rounds N] [--per-round N]

All contenders run in one go, in rounds (a few operations of each, in random order), so that noise hits all
alike. Every row checks that the other process answered, and that as many requests were sent as operations were
timed; one that does not ends the run with an error. A missed target is said, but is no failure (a benchmark is no test).
"""

import argparse
import gc
import os
import random
import statistics
import sys
import time

import contenders
import report

ROWS = {"noop": "`noop()`", "getitem": "`od['abc']`", "setitem": "`od['abc'] = 1`", "method": "`obj.method()`"}
KINDS = [
    contenders.Raw,
    contenders.Isolated,
    contenders.IsolatedZmq,
    contenders.RPyC,
    contenders.Manager,
    contenders.Pyro,
    contenders.IPyParallel,
    contenders.Local,
]
LABELS = [kind.label for kind in KINDS]
TARGET_ZMQ = 1.2  # times the raw round trip
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
    list of int
        What contenders.Line takes meanwhile, nanoseconds; empty with one processor.
    """
    took, away = {}, []
    installed = contenders.installed(KINDS)
    order = random.Random(1)  # a contender's forerunner leaves caches and sleeping processors behind
    for launch in range(launches):
        kinds = [kind for kind in installed if launch == 0 or not is_heavy(kind)]
        opened = []
        line = contenders.Line() if len(os.sched_getaffinity(0)) > 1 else None
        gc.disable()
        try:
            for kind in order.sample(kinds, len(kinds)):
                opened.append(kind())
            for i in range(-1, rounds):  # round -1 warms up
                if line is not None and i >= 0:
                    away.append(line.there_and_back())
                for row in ROWS:
                    for contender in order.sample(opened, len(opened)):
                        sample = checked(contender, row, amount(contender, per_round))
                        if i >= 0:
                            took.setdefault((row, contender.label), []).extend(sample)
            for contender in opened:
                if hasattr(contender, "thing") and contender.method() != (rounds + 1) * per_round + 1:
                    sys.exit(f"{contender.label}: the method was not called as often as it was timed")
        finally:
            gc.enable()
            for contender in opened:
                contender.close()
            if line is not None:
                line.close()
    return took, away


def is_heavy(kind):
    """Whether it takes seconds to start it, and milliseconds to call it."""
    return getattr(kind, "heavy", False)


def amount(contender, per_round):
    return max(1, per_round // 10) if is_heavy(contender) else per_round


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


def in_us(values):
    return report.cell([ns / 1000 for ns in values])


def table(took, several):
    """The results as Markdown, and the targets: (str, list of Target). Those of the lane hold with `several`
    processors: with one, each round trip is two switches of processes."""
    labels = [label for label in LABELS if ("noop", label) in took]
    rows, targets = [], []
    where = "all processors" if several else "one processor"
    for row, title in ROWS.items():
        median = {label: statistics.median(took[row, label]) for label in labels}
        faster = median["RPyC"] / median["ipython_isolation"]
        ratio = median["over ZeroMQ"] / median["raw libzmq"]
        rows.append((title, [in_us(took[row, x]) for x in labels] + [f"{faster:.0f}", f"{ratio:.2f}"]))
        if several:
            us = median["ipython_isolation"] / 1000
            targets.append(report.Target(f"{title}, {where}", us, TARGET_US, " µs"))
            targets.append(report.Target(f"{title}, {where}: faster than RPyC", faster, TARGET_RPYC, " times", least=True))
        targets.append(report.Target(f"{title}, {where}: over ZeroMQ", ratio, TARGET_ZMQ, " raw"))
    columns = labels + ["RPyC / isolated", "over ZeroMQ / raw"]
    return report.table("median (p99), µs", columns, rows), targets


def plot(pinned, free, path):
    """A plot of the medians, with whiskers from the first to the 99th percentile."""
    plt = report.pyplot()
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


def section(launches=10, rounds=4, per_round=100, docs=False):
    amounts = launches, rounds, per_round
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})  # inherited by all that is started
    pinned, _ = measure(*amounts)
    os.sched_setaffinity(0, processors)
    free, line = measure(*amounts)
    pinned_table, pinned_targets = table(pinned, False)
    free_table, free_targets = table(free, True)
    if docs:
        plot(pinned, free, report.DOCS / "latency.png")
    count = (
        f"{launches * rounds * per_round} operations a cell, in {launches} launches of {rounds} rounds (ipyparallel:"
        f" {rounds * max(1, per_round // 10)} in one launch)"
    )
    away = "" if not line else AWAY.format(median=statistics.median(line), least=min(line), most=max(line))
    text = TEXT.format(pinned=pinned_table, free=free_table, count=count, away=away)
    return report.Section("One operation", text, pinned_targets + free_targets)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--launches", type=int, default=10, help="how often everything is started")
    parser.add_argument("--rounds", type=int, default=4, help="per launch")
    parser.add_argument("--per-round", type=int, default=100, help="operations of each row and contender")
    found = section(**vars(parser.parse_args(arguments)))
    print(found.text, report.target_table(found.targets), sep="\n\n")


AWAY = """
Meanwhile a line of memory that one process writes and another waits for went there and back in {median:.0f} ns (median;
{least} to {most}): what shared memory itself takes of each round trip (tests/bench/line.c). It depends on where the processors
are, which the host of a virtual machine changes as it likes.
"""

TEXT = """\
All processes on one processor:

{pinned}

Free to use all processors:

{free}
{away}
{count}: a few operations of each contender, in random order, so that noise hits all alike. Each row checks that
another process answered, and that the number of requests sent grew by exactly the number of operations timed.

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
- **ipyparallel**: a controller and one engine, over TCP on this machine. It has no objects that stand for remote ones: functions
  that run in the engine stand for operators and the method.

![latency](latency.png)"""

if __name__ == "__main__":
    main()
