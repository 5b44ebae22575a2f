"""What it costs that an array crosses, beside copying it once in this process.

    python tests/bench/arrays.py [--megabytes M ...] [--repeats N]

Each operation checks that the other process has seen, or made, the numbers of this very repetition.
"""

import argparse
import os
import statistics
import sys
import time

import contenders
import numpy
import report

ROWS = {
    "read": "an argument is only read",
    "again": "the same argument again",
    "written": "an argument is written, all of it",
    "result": "a fresh result",
    "next": "the next one",
}
KINDS = [
    contenders.Isolated,
    contenders.IsolatedShared,
    contenders.RPyC,
    contenders.Manager,
    contenders.Pyro,
    contenders.IPyParallel,
    contenders.Local,
]
MEMCPY, MEMCPY_FRESH = "memcpy", "memcpy into fresh memory"
TARGET_MEMCPY = 1.2
TARGET_AGAIN_MS = 2.0
TARGET_SHARED_US = 50.0
#: Who needs a third of a second for 100 MB is asked less often.
SLOW = ("RPyC", "multiprocessing", "Pyro5", "ipyparallel")


def clocked(function, *args):
    """(milliseconds, result)"""
    start = time.perf_counter_ns()
    result = function(*args)
    return (time.perf_counter_ns() - start) / 1e6, result


class Copies:
    """Copies within this process: what any way of copying costs at the least."""

    def __init__(self, size):
        self._from, self._to = numpy.full(size, 1.0), numpy.zeros(size)

    def measure(self, took):
        took.setdefault(MEMCPY, []).append(clocked(numpy.copyto, self._to, self._from)[0])
        took.setdefault(MEMCPY_FRESH, []).append(clocked(self._from.copy)[0])


def once(contender, row, size, number):
    """One operation, checked: milliseconds."""
    here = os.getpid() if type(contender) is contenders.Local else None
    if row in ("result", "next"):
        contender.stash(size, number)
        if row == "next":
            contender.stash(size, number + 0.5)
            contender.take()
        took, array = clocked(contender.take)
        right = type(array) is numpy.ndarray and array.size == size and array[0] == array[-1] == number
    else:
        array = numpy.full(size, float(number))
        if row == "again":
            contender.ends(array)
        if row == "written":
            took, _ = clocked(contender.fill, array, number + 0.5)
            right = array[0] == array[-1] == number + 0.5
        else:
            took, (first, last, pid) = clocked(contender.ends, array)
            right = first == last == number and (pid == os.getpid()) is (here is not None)
    if not right:
        sys.exit(f"{contender.label}, {row}: the other process has not done its work")
    return took


def measure(opened, megabytes, repeats):
    """{row or name of a copy: {label: list of float, milliseconds}}; the copies have one label, their own."""
    size, took, number = int(megabytes * 1e6) // 8, {}, 0
    copies, plain = Copies(size), {}
    for i in range(-1, repeats):
        for contender in opened:
            # The first time is no measurement, and the slow ones are tired after some.
            if contender.label in SLOW and i >= (3 if megabytes > 50 else 8):
                continue
            for row in ROWS:
                number += 1
                found = once(contender, row, size, number)
                if i >= 0:
                    took.setdefault(row, {}).setdefault(contender.label, []).append(found)
            if i >= 0:
                copies.measure(plain)
    return took, plain


def tables(megabytes, took, plain):
    labels = list(took["read"])
    rows = [(title, [report.cell(took[row][label]) for label in labels]) for row, title in ROWS.items()]
    corner = f"{megabytes} MB; median (p99), ms"
    counts = ", ".join(f"{label} {len(took['read'][label])}" for label in labels)
    memcpys = "; ".join(f"{label}: {report.cell(values)} ms" for label, values in plain.items())
    return report.table(corner, labels, rows) + f"\n\nIn the same run, {memcpys}. Repetitions: {counts}."


def targets(results):
    """For the biggest arrays, and whether it depends on the size."""
    biggest = max(results)
    took, plain = results[biggest]
    memcpy = statistics.median(plain[MEMCPY])
    found, name = [], "ipython_isolation"
    for row in ("read", "result"):
        ratio = statistics.median(took[row][name]) / memcpy
        found.append(report.Target(f"{biggest} MB, copy: {ROWS[row]}", ratio, TARGET_MEMCPY, " memcpy"))
    again = statistics.median(took["again"][name])
    found.append(report.Target(f"{biggest} MB, copy: read-only again", again, TARGET_AGAIN_MS, " ms"))
    shared = contenders.IsolatedShared.label
    for row in ("again", "result", "next"):
        for megabytes, (values, _) in results.items():
            us = statistics.median(values[row][shared]) * 1000
            found.append(report.Target(f"{megabytes} MB, shared: {ROWS[row]}", us, TARGET_SHARED_US, " µs"))
    return found


def section(megabytes=(100, 8), repeats=16, docs=False):
    kinds = contenders.installed(KINDS)
    # Not beside the others: while it is open, all big arrays of this process are in shared memory.
    apart = [contenders.IsolatedShared]
    groups, results = [[kind for kind in kinds if kind not in apart], apart], {}
    for group in groups:
        opened = []
        try:
            for kind in group:
                opened.append(kind())
            for size in megabytes:
                took, plain = measure(opened, size, repeats if size > 50 else 3 * repeats)
                for row, found in results.setdefault(size, (took, plain))[0].items():
                    found.update(took[row])
        finally:
            for contender in opened:
                contender.close()
    if docs:
        biggest = max(results)
        took, plain = results[biggest]
        others = {row: {k: v for k, v in found.items() if k != contenders.Local.label} for row, found in took.items()}
        groups = {title: others[row] for row, title in ROWS.items()}
        level = MEMCPY, statistics.median(plain[MEMCPY])
        report.bars(groups, f"An array of {biggest} MB", "milliseconds", report.DOCS / "arrays.png", level)
    text = "\n\n".join(tables(size, *found) for size, found in results.items())
    text += NOTES
    text += "\n\n![arrays](arrays.png)"
    return report.Section("Arrays", text, targets(results))


NOTES = """

- **ipython_isolation**: `arrays="copy"`, the default; the module is isolated, numpy is not, so that arrays are real ones on both
  sides. *only read*: an array that was never sent before; *the same argument again*: unchanged since the last call.
- *a fresh result*: the array was made before the time begins, and nobody else in the other process has it. To fill it has
  emptied the processor's caches of all else, which is what the shared one pays for; *the next one* was made before that.
- **RPyC** passes arrays by reference, an item at a time: `deliver` and `obtain` copy them, as its manual advises.
  **multiprocessing** and **ipyparallel** copy arguments, and what was written has to be returned. **Pyro5** takes bytes, with its
  serializer "marshal"."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[100, 8])
    parser.add_argument("--repeats", type=int, default=16)
    found = section(**vars(parser.parse_args(arguments)))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
