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


def make_object(kind, megabytes, number):
    """An object of so many MB that has a number in it (0 to 255): see big_objects.py."""
    size = int(megabytes * 1e6)
    if kind in ("bytes", "view"):
        data = bytes([number]) * size
        return data if kind == "bytes" else memoryview(bytearray(data))
    if kind == "image":
        from PIL import Image

        return Image.new("RGB", (1000, max(1, size // 3000)), (number, 1, 2))
    import numpy

    columns = {name: numpy.full(max(1, size // 32), float(number)) for name in "abcd"}
    if kind == "table":
        import pandas

        return pandas.DataFrame(columns)
    import pyarrow

    return pyarrow.table(columns)


def number_of(o):
    """What `make_object` has put into it."""
    if hasattr(o, "getpixel"):
        return o.getpixel((0, 0))[0]
    if hasattr(o, "iat"):
        return int(o.iat[0, 0])
    return int(o["a"][0].as_py()) if hasattr(o, "schema") else o[-1]


def look(o):
    """The number, and who has looked."""
    return number_of(o), os.getpid()


def stash_object(kind, megabytes, number):
    """Makes an object for `take`."""
    _stash.append(make_object(kind, megabytes, number))
