"""Ways of dying, and of nearly dying, that Python code has of its own. Those of C are in _deaths."""

import _thread
import os
import sys


def exit_by_sys(code=3):
    """Raises SystemExit, which is an exception like others until nobody catches it."""
    sys.exit(code)


def exit_by_os(code=3):
    """Gone at once: no handler, no flush."""
    os._exit(code)


def print_then_exit_by_os(text, code=3):
    """What was printed without a flush is in a buffer when the process goes."""
    print(text)
    os._exit(code)


def recurse(depth=0):
    """Raises RecursionError."""
    return recurse(depth + 1)


def recurse_to(depth):
    """As deep as asked; returns the depth."""
    return 0 if depth == 0 else 1 + recurse_to(depth - 1)


def interrupt():
    """Raises KeyboardInterrupt as if by itself."""
    raise KeyboardInterrupt("raised, not typed")


def interrupt_main():
    """What Ctrl-C does, seen from inside the process."""
    _thread.interrupt_main()


def fork():
    """Forks; the copy leaves at once. Returns its pid and exit status."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return os.waitpid(pid, 0)


class RaisesInDel:
    """Its finalizer raises: Python reports that on stderr and goes on."""

    def __del__(self):
        raise ValueError("raised in __del__")


class DiesInDel:
    """Kills the process when the last reference goes, which may be between two calls."""

    def __init__(self, code=3):
        self.code = code

    def __del__(self):
        os._exit(self.code)


class DiesInRepr:
    """Kills the process when somebody merely looks: repr(), an error message, a debugger."""

    def __init__(self, code=3):
        self.code = code

    def __repr__(self):
        os._exit(self.code)


class DiesOnUnpickling:
    """Can be pickled; kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def spoil_and_die(buffer, word, twice=False):
    """Overwrites its argument, then crashes."""
    import ctypes

    try:
        memoryview(buffer).cast("B")[:] = bytes(memoryview(buffer).nbytes)
    except TypeError:
        pass
    ctypes.string_at(0)


def die_if_there(path):
    import os

    if os.path.exists(path):
        os.abort()


class Fragile:
    def __init__(self, items):
        self.items = list(items)

    def add(self, item):
        self.items.append(item)

    def die(self, code):
        import os

        os._exit(code + len(self.items))
