"""What the benchmark calls: one specimen of each row."""

import os
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
