"""What it costs that code in the other process calls a function of this one.

    python tests/bench/callbacks.py [--launches N] [--rounds N] [--per-round N]

The other process times each of its calls; that the function has run here as often is checked.
"""

import argparse
import os
import statistics
import sys

import contenders
import report

LEFT_OUT = {
    "multiprocessing": "a manager's process cannot call back",
    "ipyparallel": "an engine cannot call back",
}
KINDS = [contenders.Isolated, contenders.IsolatedZmq, contenders.RPyC, contenders.Pyro, contenders.Local]
TARGET_US = 2.0


def measure(launches, rounds, per_round):
    """{label: list of float, microseconds}."""
    took = {}
    for _ in range(launches):
        opened = [kind() for kind in contenders.installed(KINDS)]
        try:
            for i in range(-1, rounds):
                for contender in opened:
                    sample = checked(contender, per_round)
                    if i >= 0:
                        took.setdefault(contender.label, []).extend(ns / 1000 for ns in sample)
        finally:
            for contender in opened:
                contender.close()
    return took


def checked(contender, n):
    """n callbacks, which must have run in this process."""
    ran = []

    def function():
        ran.append(os.getpid())

    sample = list(contender.time_callbacks(function, n))
    if ran != [os.getpid()] * n or len(sample) != n:
        sys.exit(f"{contender.label}: {len(ran)} callbacks have run here, not {n}")
    return sample


def section(launches=6, rounds=4, per_round=200, docs=False):
    took = measure(launches, rounds, per_round)
    rows = [(label, [report.cell(values)]) for label, values in took.items()]
    text = report.table("one callback", ["median (p99), µs"], rows)
    text += f"\n\n{launches * rounds * per_round:,} callbacks each, without arguments, on all processors. Left out: " + "; ".join(
        f"{label} ({why})" for label, why in LEFT_OUT.items()
    )
    text += ". Pyro5 needs a server of its own in the session for that."
    return report.Section(
        "Callbacks",
        text,
        [report.Target("a callback", statistics.median(took["ipython_isolation"]), TARGET_US, " µs")],
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--launches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--per-round", type=int, default=200)
    options = parser.parse_args(arguments)
    found = section(**vars(options))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
