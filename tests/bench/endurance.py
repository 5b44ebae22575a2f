"""What a million calls leave behind, and what a context costs that nobody uses.

    python tests/bench/endurance.py [--calls N] [--seconds S]
"""

import argparse
import os
import sys
import time
from pathlib import Path

import contenders
import report

#: Calls before memory is looked at for the first time: caches and pools are as full then as they get.
WARM_UP = 50_000
#: MB: what the allocator may have taken or given back meanwhile. A leak of one byte a call would be one.
TARGET_GROWTH = 0.5
#: Percent of one processor; the clock itself is no better.
TARGET_IDLE = 0.1


def processes(context):
    """{name: pid} of all that belongs to a context, this process included."""
    return {"session": os.getpid(), "child": context.remote_pid, "supervisor": context._peer.supervisor_pid}


def growth(calls):
    """Growth of memory (USS, MB) by that many calls: dict by process, and microseconds a call."""
    contender = contenders.Isolated()
    try:
        mine = {name: pid for name, pid in processes(contender.context).items()}
        call(contender.noop, WARM_UP)
        before = {name: report.memory(pid)["Uss"] for name, pid in mine.items()}
        requests, start = contender.requests(), time.perf_counter()
        call(contender.noop, calls)
        took = (time.perf_counter() - start) / calls * 1e6
        if contender.requests() - requests != calls:
            sys.exit("not every call was a request")
        return {name: report.memory(pid)["Uss"] - before[name] for name, pid in mine.items()}, took
    finally:
        contender.close()


def call(function, n):
    for _ in range(n):
        function()


def used(pid):
    """Seconds of processor time of all its threads, as the scheduler counts them."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # a thread that has ended
    return total / 1e9


def idle(seconds):
    """Percent of a processor that each process of an idle context uses: dict by process."""
    contender = contenders.Isolated()
    try:
        contender.method()
        mine = processes(contender.context)
        time.sleep(1)  # releases are sent, spinning has ended
        before = {name: used(pid) for name, pid in mine.items()}
        start = time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - start
        return {name: (used(pid) - before[name]) / elapsed * 100 for name, pid in mine.items()}
    finally:
        contender.close()


def section(calls=1_000_000, seconds=5.0, docs=False):
    idling = idle(seconds)
    grown, took = growth(calls)
    rows = [(name, [f"{grown[name]:+.3f}", f"{idling[name]:.3f}"]) for name in grown]
    columns = [f"growth over {calls:,} calls, MB (USS)", f"idle for {seconds:g} s, % of a processor"]
    text = report.table("process", columns, rows)
    text += f"\n\n{took:.2f} µs a call, in a loop without a clock. Memory is what the process has for itself (USS)."
    found = [
        report.Target(f"growth over {calls:,} calls", max(0.0, *grown.values()), TARGET_GROWTH, " MB"),
        report.Target("processor time of an idle context", sum(idling.values()), TARGET_IDLE, " %"),
    ]
    return report.Section("A million calls, and none", text, found)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    found = section(**vars(parser.parse_args(arguments)))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
