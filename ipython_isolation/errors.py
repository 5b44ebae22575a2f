"""The exceptions, and what the core needs to rebuild those of the other process."""

import copyreg
import functools
import importlib
import signal as _signal
import sys
import types


class ProtocolError(RuntimeError):
    """A frame from the other process made no sense. The context should be restarted."""


class ClientStateError(RuntimeError):
    """The context cannot do this in its present state (dead, closed, owned by another process)."""


class StaleProxyError(ClientStateError):
    """The object behind this proxy was lost when its process ended."""


class ProcessTerminationError(Exception):
    """The isolated process died. The session and its variables are unharmed.

    Attributes
    ----------
    pid : int
        Process id of the process that died.
    signal : signal.Signals or None
        The signal that killed it.
    exit_code : int or None
        Its exit status, when it ended by itself.
    address : int or None
        The fault address of a memory fault, where the signal handler reported one.
    operation : str
        The call under way, e.g. ``"cv_module.sobel_edges"``; empty when there was none.
    context : str
        Name of the isolation context.
    limit : str or None
        The limit of the context that was behind it, where that is proven: ``"timeout"``, ``"cpu"`` or
        ``"memory"``.
    """

    limit = None
    pid = signal = exit_code = address = None
    operation = context = ""


class ProcessTimeoutError(ProcessTerminationError):
    """An isolated call took longer than its context allows. It was interrupted, and if it did not stop, its process
    was killed.

    Attributes
    ----------
    timeout : float
        The limit, in seconds.
    survived : bool
        Whether the call stopped when it was interrupted: its process lives on, and so do its objects.
    """

    timeout = None
    survived = False


#: The name that the ancestor's page uses.
ProcessTerminatedError = ProcessTerminationError

_FAULTS = {_signal.SIGSEGV, _signal.SIGBUS}
_MEANING = {
    _signal.SIGSEGV: "segmentation fault",
    _signal.SIGBUS: "bus error",
    _signal.SIGFPE: "arithmetic error",
    _signal.SIGILL: "illegal instruction",
    _signal.SIGABRT: "aborted",
    _signal.SIGSYS: "bad system call",
    _signal.SIGTRAP: "trap",
    _signal.SIGKILL: "killed",
    _signal.SIGTERM: "terminated",
}
_CLD_EXITED = 1


def describe_operation(operation, operand):
    """The call under way as its user would write it.

    Parameters
    ----------
    operation : str
        A trace name of the operation table.
    operand : object
        What it was asked of: a function's proxy, a stub, a class, or anything else.

    Returns
    -------
    str
    """
    from ipython_isolation import _core

    try:
        if operation == "load" and isinstance(operand, str):
            return f"the import of {operand}"
        if _core.isproxy(operand) or isinstance(operand, type):
            name = _core.target_name(operand) or type(operand).__name__
        else:
            owner = getattr(operand, "__objclass__", None)
            name = getattr(operand, "__name__", None)
            if not isinstance(name, str):
                return operation
            if owner is not None:
                name = f"{owner.__module__}.{owner.__qualname__}.{name}"
        return name
    except Exception:
        return operation


def terminated(facts, context):
    """A fresh ProcessTerminationError.

    Parameters
    ----------
    facts : dict
        What peer.c knows: pid, known, exit_code, exit_status, announced, signal, si_code, address,
        operation, operand.
    context : str
        Name of the context.

    Returns
    -------
    ProcessTerminationError
    """
    signum, status, address = None, None, None
    if facts["announced"] in (2, 3) and facts["signal"]:
        signum = facts["signal"]
        if signum in _FAULTS and facts["si_code"] > 0:
            address = facts["address"]
    elif facts["known"]:
        if facts["exit_code"] == _CLD_EXITED:
            status = facts["exit_status"]
        else:
            signum = facts["exit_status"]
    operation = facts["operation"]
    if operation not in ("", "start"):
        operation = describe_operation(operation, facts["operand"])
    if signum is not None:
        try:
            signum = _signal.Signals(signum)
            name = signum.name
        except ValueError:
            name = f"signal {signum}"
        meaning = _MEANING.get(signum)
        reason = f"{name} ({meaning}{_at(address)})" if meaning else name
    elif status is not None:
        reason = f"exit code {status}"
    else:
        reason = "an unknown cause: its supervisor is gone"
    during = "while it started" if operation == "start" else f"in {operation}" if operation else "between calls"
    error = ProcessTerminationError(
        f"the isolated process (pid {facts['pid']}, context {context!r}) died {during}: {reason}"
    )
    error.pid = facts["pid"]
    error.signal = signum
    error.exit_code = status
    error.address = address
    error.operation = operation
    error.context = context
    return error


def _at(address):
    if address is None:
        return ""
    # The first page is never mapped: an index or a field of a NULL pointer.
    null = ", NULL dereference" if address < 4096 else ""
    return null if address == 0 else f"{null} at address {address:#x}"


@functools.lru_cache(maxsize=1024)
def _code(filename, name, line):
    """A code object that gives its own frame and says, for each instruction, this line and no column.

    Instructions without any position make traceback printers search for one, some without end.
    Format: Objects/locations.md (3.12+: InternalDocs) of CPython, entry kind 13, "no column info".
    """
    code = compile("frame = __import__('sys')._getframe()", filename, "exec")
    units, table = len(code.co_code) // 2, bytearray()
    while units > 0:
        n = min(units, 8)
        table += bytes((0x80 | 13 << 3 | n - 1, 0))
        units -= n
    return code.replace(co_name=name, co_qualname=name, co_firstlineno=max(line, 1), co_linetable=bytes(table))


def build_traceback(frames):
    """A real traceback for frames of the other process.

    Parameters
    ----------
    frames : list of (str, str, int)
        File name, function name and line, outermost first.

    Returns
    -------
    types.TracebackType or None
        Source text is found by file name, as for any traceback.
    """
    traceback = None
    for filename, name, line in reversed(frames):
        namespace = {"__name__": name, "__file__": filename, "__builtins__": {"__import__": _sys}}
        exec(_code(filename, name, line), namespace)
        frame = namespace.pop("frame")
        traceback = types.TracebackType(traceback, frame, frame.f_lasti, line)
    return traceback


def _sys(*_):
    return sys


@functools.cache
def overriding_frame(name):
    """A function ``f(self, function, ...)`` that calls function(...) in a frame with this name and self in it."""
    return types.FunctionType(_calling.replace(co_name=name, co_qualname=name), {})


_calling = compile("lambda self, function, /, *args, **kwargs: function(*args, **kwargs)", "<isolation>", "eval").co_consts[0]


def reduce(o):
    """What rebuilds a value, as copy and pickle ask for it: (callable, arguments[, state]), or the name of a constant."""
    reducer = copyreg.dispatch_table.get(type(o))
    if reducer is not None:
        return reducer(o)
    if type(o).__module__ == "dataclasses":  # its markers, compared by identity, do not say their names
        return next(name for name, value in vars(sys.modules["dataclasses"]).items() if value is o)
    if type(o).__module__ == "typing" and getattr(o, "_name", "") is None:
        # Not by subscription, as it says itself: that may be a matter of the other process.
        return type(o), (o.__origin__, o.__args__)
    return o.__reduce_ex__(2)


def find(module, qualname):
    """What a name means in this process, e.g. ``find("_operator", "pow")``; for functions in pickles."""
    o = importlib.import_module(module)
    for part in qualname.split("."):
        o = getattr(o, part)
    return o


def registered(o):
    """What the reducer says that is registered for the class of `o` (copyreg): as `reduce`, or None. Tables do not
    cross: the other process, whose copy or pickle asks, has none for what stands for this class there."""
    reducer = copyreg.dispatch_table.get(type(o))
    return None if reducer is None else reducer(o)


def content(o):
    """What is in a list, dict, set or bytearray: tuple, or bytes."""
    return bytes(o) if type(o) is bytearray else tuple(o.items() if type(o) is dict else o)


def container(kind, items):
    """What rebuilds a list, dict, set or bytearray here from its content, for copy and pickle."""
    if kind is list:
        return list, (), None, iter(items)
    if kind is dict:
        return dict, (), None, None, iter(items)
    return kind, (items if kind is bytearray else list(items),)


def set_state(o, state):
    """Restores what ``__reduce_ex__`` said is the state of a value (as copy and pickle do)."""
    if hasattr(o, "__setstate__"):
        o.__setstate__(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        o.__dict__.update(state)
    for name, value in (slots or {}).items():
        object.__setattr__(o, name, value)


def unpassable(error, second):
    """What is raised over there instead of an exception that cannot be passed."""
    text = f"{type(error).__name__}: {error}"
    if second is not None:
        text += f" (passing it on failed: {type(second).__name__}: {second})"
    return RuntimeError(text)
