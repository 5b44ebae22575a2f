"""What one operation on an isolated object costs, beside libzmq alone and beside others who do the same.

    python tests/bench/latency.py [--rounds N] [--per-round N] [--docs]

All contenders run in one go, in rounds (a few operations of each in turn), so that noise hits all alike. Every
row checks that the other process answered, and that as many requests were sent as operations were timed.
--docs writes the table to docs/benchmarks.md and a plot to docs/latency.png. The exit code is 1 when a check
fails; a missed target is said, but is no failure (a benchmark is no test).
"""

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import contenders

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = {"noop": "`noop()`", "getitem": "`od['abc']`", "setitem": "`od['abc'] = 1`", "method": "`obj.method()`"}
TARGET = 1.3


def timed(operation, n):
    """n calls, each timed: list of int, nanoseconds."""
    clock, took = time.perf_counter_ns, []
    for _ in range(n):
        start = clock()
        operation()
        took.append(clock() - start)
    return took


def measure(rounds, per_round):
    """Runs everything.

    Returns
    -------
    dict
        (row, label) -> list of int, nanoseconds; the label's order is that of the table.
    """
    sys.path.insert(0, str(contenders.HERE))
    kinds = [contenders.Raw, contenders.Isolated, contenders.RPyC, contenders.Manager]
    try:
        import Pyro5  # noqa: F401

        kinds.append(contenders.Pyro)
    except ImportError:
        print("Pyro5 is not installed: left out", file=sys.stderr)
    kinds.append(contenders.Local)
    opened, took = [], {}
    gc.disable()
    try:
        for kind in kinds:
            opened.append(kind())
        for i in range(-1, rounds):  # round -1 warms up
            for row in ROWS:
                for contender in opened:
                    before = contender.requests()
                    if isinstance(contender, contenders.Raw):
                        sample = contender.run(per_round)
                    else:
                        sample = timed(getattr(contender, row), per_round)
                    after = contender.requests()
                    if before is not None and after - before != per_round:
                        sys.exit(f"{contender.label}, {row}: {after - before} requests for {per_round} operations")
                    here = contender.pid() == os.getpid()
                    if here is not (type(contender) is contenders.Local):
                        sys.exit(f"{contender.label}, {row}: answered by the wrong process")
                    if i >= 0:
                        took.setdefault((row, contender.label), []).extend(sample)
            gc.collect()
        for contender in opened:
            if hasattr(contender, "thing") and contender.method() != (rounds + 1) * per_round + 1:
                sys.exit(f"{contender.label}: the method was not called as often as it was timed")
    finally:
        gc.enable()
        for contender in opened:
            contender.close()
    return took


def percentile(values, q):
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def microseconds(ns):
    return f"{ns / 1000:.2f}" if ns < 10_000 else f"{ns / 1000:.1f}"


def table(took):
    """The results as Markdown, and whether the targets are met: (str, list of str that are missed)."""
    labels = list(dict.fromkeys(label for _, label in took))
    lines = ["| median (p99), µs | " + " | ".join(labels) + " | isolated / raw |"]
    lines.append("| --- |" + " ---: |" * (len(labels) + 1))
    missed = []
    for row, title in ROWS.items():
        median = {label: statistics.median(took[row, label]) for label in labels}
        cells = [f"{microseconds(median[x])} ({microseconds(percentile(took[row, x], 0.99))})" for x in labels]
        ratio = median["ipython_isolation"] / median["raw libzmq"]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {ratio:.2f} |")
        if ratio > TARGET:
            missed.append(f"{title}: {ratio:.2f} times the raw round trip; the target is {TARGET}")
        if median["ipython_isolation"] >= median["RPyC"]:
            missed.append(f"{title}: not faster than RPyC")
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


def plot(took, path):
    """A plot of the medians, with whiskers from the first to the 99th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [x for x in dict.fromkeys(label for _, label in took) if x != contenders.Local.label]
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        at = [j + (i - (len(labels) - 1) / 2) * width for j in range(len(ROWS))]
        middle = [statistics.median(took[row, label]) / 1000 for row in ROWS]
        low = [m - percentile(took[row, label], 0.01) / 1000 for m, row in zip(middle, ROWS)]
        high = [percentile(took[row, label], 0.99) / 1000 - m for m, row in zip(middle, ROWS)]
        axes.bar(at, middle, width * 0.92, label=label)
        axes.errorbar(at, middle, [low, high], fmt="none", ecolor="0.35", elinewidth=1, capsize=2)
    axes.set_xticks(range(len(ROWS)), [title.strip("`") for title in ROWS.values()])
    axes.set_ylabel("µs per operation (log scale)")
    axes.set_yscale("log")
    axes.set_title("One operation on an object in another process: median, 1st to 99th percentile")
    axes.legend(ncols=len(labels), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--per-round", type=int, default=250)
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and docs/latency.png")
    options = parser.parse_args(arguments)
    took = measure(options.rounds, options.per_round)
    text, missed = table(took)
    about = machine()
    samples = options.rounds * options.per_round
    print(text, "", *about, f"{samples} operations a cell, in {options.rounds} rounds", sep="\n")
    for line in missed:
        print("MISSED", line)
    if options.docs:
        plot(took, ROOT / "docs" / "latency.png")
        (ROOT / "docs" / "benchmarks.md").write_text(
            DOCUMENT.format(table=text, about="\n".join(f"- {line}" for line in about), samples=samples,
                            rounds=options.rounds, missed="".join(f"\nMissed: {line}.\n" for line in missed))
        )  # fmt: skip


DOCUMENT = """\
# Benchmarks

Made by `make bench ARGS=--docs`; nothing here is typed in by hand.

## One operation

{table}

{samples} operations a cell, in {rounds} rounds: a few operations of each contender in turn, so that noise hits
all alike. Each row checks that another process answered, and that the number of requests sent grew by exactly
the number of operations timed.
{missed}
- **raw libzmq**: a C program (tests/bench/pingpong.c) with two processes, a PAIR socket each on an abstract
  ipc:// name, frames of 64 bytes, zmq_poll to wait. It is what any round trip over ZeroMQ costs here.
- **ipython_isolation**: `bench_target` and `collections` isolated in one context, with default options.
- **RPyC**: classic mode over a socketpair. **multiprocessing**: a `BaseManager` over its Unix socket.
  **Pyro5**: over a Unix socket; it forwards no operators, so methods stand for them.

![latency](latency.png)

## Machine

{about}
"""

if __name__ == "__main__":
    main()
