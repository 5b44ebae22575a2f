"""What it costs to iterate a list of 1,000 numbers that is in the other process.

    python tests/bench/iteration.py [--launches N] [--rounds N]

That all numbers have come, and that the list is not a copy here, is checked.
"""

import argparse
import statistics
import sys
import time

import contenders
import report

LEFT_OUT = {"ipyparallel": "it has no objects that stand for remote ones"}
KINDS = [
    contenders.Isolated,
    contenders.IsolatedZmq,
    contenders.RPyC,
    contenders.Manager,
    contenders.Pyro,
    contenders.Local,
]
TARGET_US = 50
#: Loops a round: those that take a third of a second each are timed less often.
LOOPS = {"RPyC": 1, "Pyro5": 1, "multiprocessing": 2}
SUM = sum(range(1000))


def measure(launches, rounds):
    """{label: list of float, microseconds}."""
    took, clock = {}, time.perf_counter_ns
    for _ in range(launches):
        opened = [kind() for kind in contenders.installed(KINDS)]
        try:
            for contender in opened:
                numbers = contender.numbers()
                if (type(numbers) is list) is not (type(contender) is contenders.Local):
                    sys.exit(f"{contender.label}: the list is not there")
                for i in range(-1, rounds * LOOPS.get(contender.label, 10)):
                    total = 0
                    start = clock()
                    for number in numbers:
                        total += number
                    end = clock()
                    if total != SUM:
                        sys.exit(f"{contender.label}: the numbers are wrong")
                    if i >= 0:
                        took.setdefault(contender.label, []).append((end - start) / 1000)
        finally:
            for contender in opened:
                contender.close()
    return took


def section(launches=5, rounds=4, docs=False):
    took = measure(launches, rounds)
    rows = [(label, [report.cell(values), str(len(values))]) for label, values in took.items()]
    text = report.table("`for x in numbers: ...`", ["median (p99), µs", "loops"], rows)
    text += "\n\nThe list lives in the other process and has 1,000 numbers. Left out: " + "; ".join(
        f"{label} ({why})" for label, why in LEFT_OUT.items()
    )
    text += ". Pyro5 streams an iterator's items, one request each."
    median = statistics.median(took["ipython_isolation"])
    return report.Section("Iteration", text, [report.Target("a list of 1,000", median, TARGET_US, " µs")])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args(arguments)
    found = section(**vars(options))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
