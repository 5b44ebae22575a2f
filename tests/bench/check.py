"""``make bench-check``: fails when a ratio of bounds.py is exceeded. Takes less than a minute.

A round measures both figures of a ratio, one right after the other. The ratio is that of their lower quartiles over the
rounds, since other processes only ever make a figure greater. Where it is above its bound there are more rounds, up to a
limit; and at the end what has failed is measured afresh, twice at most: noise comes and goes, a slower program stays. Round trips are measured with all processes on one processor, so that it does not count where the scheduler puts them.
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

ROUNDS, MORE_ROUNDS = 9, 60
#: Seconds that a check may take with further rounds; and after which nothing is measured afresh.
PATIENCE, PATIENCE_IN_ALL = 4, 30
ATTEMPTS = 3
ARRAY = 5_000_000  # doubles: more than a processor's cache holds


class Check:
    """The ratio of two functions' results: `over` / `under`, each called once a round."""

    def __init__(self, name, over, under):
        self.name, self._over, self._under = name, over, under
        self._rounds = []  # (over, under)

    def round(self):
        self._rounds.append((self._over(), self._under()))

    @property
    def ratio(self):
        over, under = (statistics.quantiles(figures, n=4)[0] for figures in zip(*self._rounds))
        return over / under

    @property
    def passes(self):
        return self.ratio <= BOUNDS[self.name].most

    def measure(self):
        """Enough rounds to tell."""
        until = time.monotonic() + PATIENCE
        self.round()
        self._rounds.clear()  # the first round warms up
        while len(self._rounds) < ROUNDS or (
            not self.passes and len(self._rounds) < MORE_ROUNDS and time.monotonic() < until
        ):
            self.round()

    def line(self):
        bound = BOUNDS[self.name]
        verdict = "ok" if self.passes else f"EXCEEDED: {bound.why}"
        return f"{self.name:40} {self.ratio:7.2f} <= {bound.most:<6g} ({len(self._rounds)} rounds) {verdict}"


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


def round_trips():
    """Those on one processor; as each of these functions: list of Check, measured."""
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
            check.measure()
        return checks
    finally:
        os.sched_setaffinity(0, processors)
        for contender in opened:
            contender.close()


def array_argument():
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
        return lambda: statistics.median(function() for _ in range(3))

    try:
        check = Check("array argument / memcpy", several(argument), several(memcpy))
        check.measure()
        return [check]
    finally:
        isolated.close()


def start_of_child():
    start.compiled()

    def ready():
        took = {}
        start.child(took.__setitem__)
        return took[start.READY]

    check = Check(
        "start of a child / import of the core", ready, lambda: start.run("import ipython_isolation._core")
    )
    check.measure()
    return [check]


def memory_of_child():
    def child():
        with start.IsolationContext(rollback="off") as context:
            return report.memory(context.remote_pid)["Rss"]

    check = Check("memory of a child / of an interpreter", child, lambda: start.sleeping("pass")["Rss"])
    check.measure()
    return [check]


def main():
    began, checks = time.monotonic(), {}
    groups = [round_trips, array_argument, start_of_child, memory_of_child]
    for _ in range(ATTEMPTS):
        for group in groups[:]:
            found = group()
            checks.update((check.name, check) for check in found)
            if all(check.passes for check in found):
                groups.remove(group)
        if not groups or time.monotonic() - began > PATIENCE_IN_ALL:
            break
    assert checks.keys() == BOUNDS.keys()
    for name in BOUNDS:
        print(checks[name].line())
    sys.exit(0 if all(check.passes for check in checks.values()) else 1)


if __name__ == "__main__":
    main()
