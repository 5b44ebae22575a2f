"""What the benchmark calls: one specimen of each row."""

import os
import time
from collections import OrderedDict


def noop():
    """Does nothing."""


class Thing:
    """One method, which returns a small int that changes with each call."""

    def __init__(self):
        self.calls = 0

    def method(self):
        self.calls += 1
        return self.calls


def getpid():
    return os.getpid()


def make_dict():
    return OrderedDict(abc=0)


def time_callbacks(function, n):
    """n calls of a function, each timed here: list of int, nanoseconds."""
    clock, took = time.perf_counter_ns, []
    for _ in range(n):
        start = clock()
        function()
        took.append(clock() - start)
    return took


def numbers():
    """A list of 1,000 that stays here, since this module keeps it."""
    return _numbers


_numbers = list(range(1000))
_stash = []


def ends(array):
    """The first and the last number, and who has looked: takes no time, whatever the size."""
    return float(array[0]), float(array[-1]), os.getpid()


def fill(array, number):
    """Writes all of it."""
    array.fill(number)
    return os.getpid()


def stash(size, number):
    """Makes an array of doubles for `take`."""
    import numpy

    _stash.append(numpy.full(size, float(number)))


def take():
    """An array that nobody else has. That it was made before keeps the time of making it out."""
    return _stash.pop()
