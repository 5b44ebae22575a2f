"""What it costs that big objects of libraries cross: tables of pandas and Arrow, images, bytes, memoryviews.

    python tests/bench/big_objects.py [--megabytes M] [--repeats N]

Each operation checks that the other process has seen, or made, the number of this very repetition.
"""

import argparse
import os
import statistics
import sys

import arrays
import bench_target
import contenders
import report

KINDS = [contenders.Isolated, contenders.RPyC, contenders.Manager, contenders.IPyParallel, contenders.Local]
OBJECTS = {
    "table": "pandas.DataFrame",
    "arrow": "pyarrow.Table",
    "image": "PIL.Image",
    "bytes": "bytes",
    "view": "memoryview",
}
ROWS = {"read": "an argument", "result": "a fresh result"}
#: Who has no such result: a memoryview cannot be pickled, and one that is fresh has nothing to view.
NO_VIEWS = ("RPyC", "multiprocessing", "ipyparallel")


def once(contender, kind, row, megabytes, number):
    """One operation, checked: milliseconds."""
    local = type(contender) is contenders.Local
    if row == "result":
        contender.stash_object(kind, megabytes, number)
        took, o = arrays.clocked(contender.take)
        right = type(o) is type(bench_target.make_object(kind, 0.001, 0)) and bench_target.number_of(o) == number
    else:
        o = bench_target.make_object(kind, megabytes, number)
        took, (seen, pid) = arrays.clocked(contender.look, o)
        right = seen == number and (pid == os.getpid()) is local
    if not right:
        sys.exit(f"{contender.label}, {kind}, {row}: the other process has not done its work")
    return took


def measure(opened, megabytes, repeats):
    """{row: {title of an object: {label: list of float, milliseconds}}}"""
    took = {row: {title: {} for title in OBJECTS.values()} for row in ROWS}
    for i in range(-1, repeats):
        for contender in opened:
            for kind, title in OBJECTS.items():
                for row in ROWS:
                    if kind == "view" and (row == "result" or contender.label in NO_VIEWS):
                        continue
                    found = once(contender, kind, row, megabytes, (i + 2) % 250)
                    if i >= 0:
                        took[row][title].setdefault(contender.label, []).append(found)
    return took


def section(megabytes=8, repeats=20, docs=False):
    opened = []
    try:
        for kind in contenders.installed(KINDS):
            opened.append(kind())
        took = measure(opened, megabytes, repeats)
    finally:
        for contender in opened:
            contender.close()
    labels = [contender.label for contender in opened]
    tables = []
    for row, title in ROWS.items():
        rows = [(name, [report.cell(by[label]) if label in by else "" for label in labels]) for name, by in took[row].items() if by]
        tables.append(report.table(f"{title}; median (p99), ms", labels, rows))
    text = "\n\n".join(tables) + NOTES.format(megabytes=megabytes, repeats=repeats)
    targets = []
    for row in ROWS:
        for name, by in took[row].items():
            others = [statistics.median(by[label]) for label in NO_VIEWS if label in by]
            if others:
                ratio = min(others) / statistics.median(by["ipython_isolation"])
                targets.append(report.Target(f"{name}, {ROWS[row]}: faster than the fastest of the others", ratio, 1, " times", least=True))
    return report.Section("Big objects of libraries", text, targets)


NOTES = """

{megabytes} MB each, made anew each time, {repeats} repetitions. The libraries are not isolated: real objects are on both sides. The others
pickle: RPyC by `deliver` and `obtain`; a memoryview cannot be pickled. *A fresh result* was made before the time begins. In this
process nothing is passed. Left out: Pyro5 (its serializers have no such objects)."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    found = section(**vars(parser.parse_args(arguments)))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
