"""What the interpreter reports of itself while code runs: warnings, exceptions that nobody can catch."""

import abc
import atexit
import ctypes
import logging
import numbers
import sys
import threading
import warnings

# --- Warnings --------------------------------------------------------------------------------------------


class LionWarning(UserWarning):
    pass


class CubWarning(LionWarning):
    def __init__(self, text, age=1):
        super().__init__(text)
        self.age = age


def warn(text, category=LionWarning, stacklevel=1):
    warnings.warn(text, category, stacklevel=stacklevel)


def warn_below(text, stacklevel):
    warn(text, stacklevel=stacklevel)


def warn_cub(text):
    warnings.warn(CubWarning(text, age=3))


def warn_explicit(text, filename, lineno, module=None):
    warnings.warn_explicit(text, LionWarning, filename, lineno, module)


def call(function, *args):
    return function(*args)


def pass_on(function, *args):
    return call(function, *args)


def call_twice(function, *args):
    function(*args)
    return function(*args)


def repeat(count, text, after=None):
    for i in range(count):
        warnings.warn(text, LionWarning)
        if after is not None:
            after(i)


def recorded(text):
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        warn(text)
        warnings.warn(text + "!")
    return [(str(w.message), w.category.__name__) for w in log]


def as_error(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(text)


def ignored(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warn(text)


def caught(text):
    """What a warning raises, as its code sees it: (class name, text, functions in the traceback)."""
    try:
        warn(text)
    except Warning as error:
        functions, traceback = [], error.__traceback__
        while traceback is not None:
            functions.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        return type(error).__name__, str(error), functions
    return None


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, name="den")
    thread.start()
    thread.join()


def leave_open(path):
    open(path)  # noqa: SIM115


# C functions that the caller's frame calls without one of Python's in between.
warn_from_c = ctypes.pythonapi.PyErr_WarnEx
warn_from_c.argtypes = [ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t]
warn_from_c.restype = ctypes.c_int

# --- Exceptions that nobody can catch --------------------------------------------------------------------


class Grave:
    def __init__(self, error, text):
        self.error, self.text = error, text

    def __del__(self):
        raise self.error(self.text)


class Diary:
    """Logs its end."""

    def __init__(self, text):
        self.text = text

    def __del__(self):
        logging.getLogger(__name__).warning(self.text)


def at_exit(path):
    """Reports when the process ends, and then writes a file."""

    def last():
        warn("the end")
        bury(ValueError, "the end")
        logging.getLogger(__name__).warning("the end")
        with open(path, "w") as file:
            file.write("went on")

    atexit.register(last)


def bury(error, text):
    Grave(error, text)


def callback_from_c(function):
    ctypes.CFUNCTYPE(ctypes.c_int)(function)()


def fail(error, text):
    raise error(text)


def own_hook(text):
    """A hook that code of this module sets for itself."""
    seen, before = [], sys.unraisablehook
    sys.unraisablehook = seen.append
    try:
        bury(ValueError, text)
    finally:
        sys.unraisablehook = before
    return [(type(u.exc_value).__name__, str(u.exc_value)) for u in seen]


def top_level_hook(text):
    try:
        raise ValueError(text)
    except ValueError:
        sys.excepthook(*sys.exc_info())


# --- Abstract base classes -------------------------------------------------------------------------------


class Length:
    def __init__(self, metres):
        self.metres = metres


numbers.Real.register(Length)


class Height(Length):
    pass


class Walker(abc.ABC):
    @abc.abstractmethod
    def walk(self): ...


class Wolf:
    pass


class Fox(Wolf):
    pass


Walker.register(Wolf)
Walker.register(int)


def is_a(o, module, name):
    return isinstance(o, getattr(sys.modules[module], name))


def is_walker(o):
    return isinstance(o, Walker), issubclass(type(o), Walker)
