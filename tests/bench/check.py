"""``make bench-check``: fails when a ratio of bounds.py is exceeded. Takes less than a minute.

A round measures both figures of a ratio, one right after the other, and takes medians; the ratio is the median over the
rounds. Where it is above its bound there are more rounds, up to a limit: noise comes and goes, a slower program stays. Round
trips are measured with all processes on one processor, so that it does not count where the scheduler puts them.
"""

import os
import statistics
import sys
import time

import arrays
import contenders
import numpy
import report
import start
from bounds import BOUNDS

ROUNDS, MORE_ROUNDS = 7, 35
#: Seconds that all further rounds together may take.
PATIENCE = 30
ARRAY = 1_000_000  # doubles


class Check:
    """The ratio of two functions' results: `over` / `under`, each called once a round."""

    def __init__(self, name, over, under):
        self.name, self._over, self._under = name, over, under
        self._ratios = []

    def round(self):
        over = self._over()
        self._ratios.append(over / self._under())

    @property
    def ratio(self):
        return statistics.median(self._ratios)

    @property
    def passes(self):
        return self.ratio <= BOUNDS[self.name].most

    def measure(self, until):
        """Enough rounds to tell; `until`: time.monotonic() after which there are no further ones."""
        while len(self._ratios) < ROUNDS or (
            not self.passes and len(self._ratios) < MORE_ROUNDS and time.monotonic() < until
        ):
            self.round()

    def line(self):
        bound = BOUNDS[self.name]
        verdict = "ok" if self.passes else f"EXCEEDED: {bound.why}"
        return f"{self.name:40} {self.ratio:7.2f} <= {bound.most:<6g} ({len(self._ratios)} rounds) {verdict}"


def median_of(function, n=300):
    """A function that calls another n times: median nanoseconds."""

    def measured():
        clock, took = time.perf_counter_ns, []
        for _ in range(n):
            begin = clock()
            function()
            took.append(clock() - begin)
        return statistics.median(took)

    return measured


def iterate(numbers):
    for _ in numbers:
        pass


def nothing():
    pass


def round_trips(until):
    """The checks on one processor, measured."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})  # inherited by all that is started
    opened = []
    try:
        for kind in (contenders.Raw, contenders.Isolated, contenders.IsolatedZmq):
            opened.append(kind())
        raw, isolated, over_zmq = opened
        numbers, noop = isolated.numbers(), median_of(isolated.noop)

        def ping():
            return statistics.median(raw.run(300))

        def callback():
            return statistics.median(isolated.time_callbacks(nothing, 300))

        checks = [
            Check("noop / raw libzmq", noop, ping),
            Check("noop over ZeroMQ / raw libzmq", median_of(over_zmq.noop), ping),
            Check("callback / noop", callback, noop),
            Check("list of 1,000 / noop", median_of(lambda: iterate(numbers), 30), noop),
        ]
        for check in checks:
            check.round()
            check._ratios.clear()  # the first round warms up
            check.measure(until)
        return checks
    finally:
        os.sched_setaffinity(0, processors)
        for contender in opened:
            contender.close()


def array_argument(until):
    isolated = contenders.Isolated()
    source, copy = numpy.full(ARRAY, 1.0), numpy.zeros(ARRAY)
    number = 0

    def argument():
        nonlocal number
        number += 1
        return arrays.once(isolated, "read", ARRAY, number)

    def memcpy():
        return arrays.clocked(numpy.copyto, copy, source)[0]

    def several(function):
        return lambda: statistics.median(function() for _ in range(5))

    try:
        argument()
        check = Check("array argument / memcpy", several(argument), several(memcpy))
        check.measure(until)
        return check
    finally:
        isolated.close()


def start_of_child(until):
    start.compiled()

    def ready():
        took = {}
        start.child(took.__setitem__)
        return took[start.READY]

    check = Check(
        "start of a child / import of the core", ready, lambda: start.run("import ipython_isolation._core")
    )
    check.measure(until)
    return check


def memory_of_child(until):
    def child():
        with start.IsolationContext(rollback="off") as context:
            return report.memory(context.remote_pid)["Rss"]

    check = Check("memory of a child / of an interpreter", child, lambda: start.sleeping("pass")["Rss"])
    check.measure(until)
    return check


def main():
    until = time.monotonic() + PATIENCE
    checks = [*round_trips(until), array_argument(until), start_of_child(until), memory_of_child(until)]
    for check in checks:
        print(check.line())
    assert {check.name for check in checks} == set(BOUNDS)
    sys.exit(0 if all(check.passes for check in checks) else 1)


if __name__ == "__main__":
    main()
