"""The Python surface over the core. It stays in the session when only the core is isolated."""

import os

from . import _core
from ._core import add as core_add

_core.imported.append(__name__)


def describe():
    return f"{__package__} with {_core.Counter.__qualname__}"


def sum_all(numbers):
    total = 0
    for number in numbers:
        total = core_add(total, number)
    return total


def crash():
    _core.crash()


def pids():
    """Of the surface, and of the core."""
    return os.getpid(), _core.pid()
