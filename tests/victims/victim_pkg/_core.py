"""What would be C in a real package. Isolating only this one must be enough to survive it."""

import os

imported = [__name__]


class Counter:
    """Has state, which a restart loses."""

    def __init__(self, start=0):
        self.value = start

    def __call__(self):
        self.value += 1
        return self.value


def add(a, b):
    return a + b


def pid():
    """Where this code runs."""
    return os.getpid()


def crash():
    """Dies as C code does; imported late, so that the package needs no compiler."""
    import _deaths

    _deaths.segfault()
