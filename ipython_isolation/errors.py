"""The exceptions, and what the core needs to rebuild those of the other process."""

import copyreg
import functools
import importlib
import sys
import types


class ProtocolError(RuntimeError):
    """A frame from the other process made no sense. The context should be restarted."""


class ClientStateError(RuntimeError):
    """The context cannot do this in its present state (dead, closed, owned by another process)."""


class StaleProxyError(ClientStateError):
    """The object behind this proxy was lost when its process ended."""


class StaleAttributeError(StaleProxyError, AttributeError):
    """Of ``__dict__``: views of the variables ask each for it by ``hasattr``, and would show none if that failed."""


class ProcessTerminationError(Exception):
    """The isolated process died. The session and its variables are unharmed.

    ``str()`` of it has a first line that says what happened, and a few more with the details. A cell of IPython shows
    them at full length, as `report` gives them.

    Attributes
    ----------
    pid : int
        Process id of the process that died.
    verdict : str
        What happened, for programs: ``"segfault"``, ``"bus-error"``, ``"stack-overflow"``, ``"arithmetic-error"``,
        ``"illegal-instruction"``, ``"trap"``, ``"bad-system-call"``, ``"abort"``, ``"assertion"``,
        ``"heap-corruption"``, ``"stack-smashing"``, ``"buffer-overflow"``, ``"cxx-terminate"``,
        ``"python-fatal-error"``, ``"sanitizer"``, ``"out-of-memory"`` (only where that is proven), ``"cpu-limit"``,
        ``"killed"`` (by a signal that a process sent), ``"disconnected"``, ``"exit"``, ``"_exit"``,
        ``"another-program"``, ``"timeout"``, ``"unknown"``. See docs/deaths.md.
    reason : str
        The same for people, e.g. ``"SIGSEGV (segmentation fault, NULL dereference at 0x0)"``.
    signal : signal.Signals or int or None
        The signal that killed it.
    exit_code : int or None
        Its exit status, when it ended by itself.
    address : int or None
        The fault address of a memory fault, where the signal handler reported one.
    operation : str
        The call under way, e.g. ``"cv_module.sobel_edges"``; empty when there was none.
    arguments : tuple of str
        Those of the call, in a few words each: types, shapes, sizes.
    native_stack : tuple of NativeFrame
        Of the thread that died, innermost first: ``function``, ``library``, ``file``, ``line``, ``offset``,
        ``address``, ``inlined``.
    python_stack : tuple of PythonFrame
        Likewise: ``function``, ``file``, ``line``. Without the frames of this package.
    thread : str or None
        Name of the thread that died, where it was not the main one.
    registers : dict of str to int
        Of that thread, when it died.
    output : tuple of str
        The last lines that the process printed.
    sanitizer : str or None
        The report of the sanitizer that the process ran under.
    bundle : str or None
        The crash bundle: a file with which ``python -m ipython_isolation replay FILE`` makes the call again.
    unreplayable : str or None
        Why it cannot; None when it can.
    context : str
        Name of the isolation context.
    limit : str or None
        The limit of the context that was behind it, where that is proven: ``"timeout"``, ``"cpu"`` or
        ``"memory"``.
    """

    bundle = unreplayable = limit = None
    pid = signal = exit_code = address = thread = sanitizer = None
    verdict, reason, operation, context, summary = "unknown", "", "", "", ""
    arguments = native_stack = python_stack = output = ()
    registers = types.MappingProxyType({})

    def report(self):
        """All that is known, as a cell of IPython shows it.

        Returns
        -------
        str
            Several lines, without colours.
        """
        from . import diagnosis

        return diagnosis.report(self)

    def _render_traceback_(self):
        """What IPython shows for a cell that ended with this: the session's own frames, then the report."""
        from . import rendering

        return rendering.traceback(self)


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


def set_summary(error, summary):
    """Gives an error another first line."""
    error.args = (error.args[0].replace(error.summary, summary, 1),)
    error.summary = summary


def add_bundle(error, path, reason):
    """Tells where the crash bundle of a death is.

    Parameters
    ----------
    error : ProcessTerminationError
    path : path-like or None
    reason : str or None
        Why it cannot be replayed.
    """
    error.bundle = None if path is None else str(path)
    error.unreplayable = reason
    if path is not None and reason is None:
        error.args = (f"{error.args[0]}\n  crash bundle: {path}",)


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


def _called(facts):
    """The call under way: (operation, operand, args, kwargs), where a call by way of a function of this package
    is the one that was meant."""
    operation, operand, arguments = facts["operation"], facts["operand"], facts.get("arguments")
    args, kwargs = arguments or ((), {})
    if operation == "call_named" and len(args) == 4:
        return f"{args[0]}.{args[1]}", None, args[2], args[3]
    if operation == "call_shipped" and len(args) == 3:
        return args[0][1][4], None, args[1], args[2]
    if operation == "run_cell" and len(args) == 7:
        return args[0], None, (), dict(zip(args[3], args[4]))
    if operation == "load":
        return operation, operand, (), {}
    # A function is the first argument of its own call, and so is a method's object.
    if operation == "method" and args:
        args = args[1:]
    return operation, operand, args, kwargs


def call_under_way(facts):
    """The call under way as its user would write it.

    Parameters
    ----------
    facts : dict
        With ``operation``, ``operand`` and ``arguments``, as for `terminated`.

    Returns
    -------
    tuple
        Name, args and kwargs: (str, tuple, dict).
    """
    operation, operand, args, kwargs = _called(facts)
    if operation not in ("", "start") and operand is not None:
        operation = describe_operation(operation, operand)
    return operation, args, kwargs


def terminated(facts, context, diagnosis=None, kept=None):
    """A fresh ProcessTerminationError.

    Parameters
    ----------
    facts : dict
        What peer.c knows: pid, known, exit_code, exit_status, announced, signal, si_code, address,
        operation, operand, arguments, cut_off.
    context : str
        Name of the context.
    diagnosis : diagnosis.Diagnosis or None
        Of this death; made from the facts alone when None.
    kept : str or None
        What the death means for the objects that the process had.

    Returns
    -------
    ProcessTerminationError
    """
    from . import arguments, diagnosis as _diagnosis

    if diagnosis is None:
        diagnosis = _diagnosis.Diagnosis(facts)
    operation, args, kwargs = call_under_way(facts)
    call = f" (call {facts['batch']} of the batch)" if "batch" in facts else ""
    during = "while it started" if operation == "start" else f"in {operation}{call}" if operation else "between calls"
    summary = f"the isolated process (pid {facts['pid']}, context {context!r}) died {during}: {diagnosis.reason}"
    error = ProcessTerminationError()
    error.summary = f"{summary}; {kept}" if kept else summary
    error.operation = operation
    error.arguments = arguments.summaries(args, kwargs)
    error.context = context
    for name in (
        "pid", "verdict", "reason", "signal", "exit_code", "address", "native_stack", "python_stack", "thread",
        "registers", "output", "sanitizer",
    ):  # fmt: skip
        setattr(error, name, getattr(diagnosis, name))
    try:
        details = _diagnosis.text(error)
    except Exception:  # whatever the child left behind: that it died must be said
        details = ()
    error.args = ("\n  ".join((error.summary, *details)),)
    return error


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
    if type(o).__name__ == "NAType":
        return find, ("pandas", "NA")  # which its class does not say, nor its module
    if type(o).__module__ == "dataclasses":  # its markers, compared by identity, do not say their names
        return next(name for name, value in vars(sys.modules["dataclasses"]).items() if value is o)
    if type(o).__module__ == "typing" and getattr(o, "_name", "") is None:
        # Not by subscription, as it says itself: that may be a matter of the other process.
        return type(o), (o.__origin__, o.__args__)
    zone = getattr(o, "tzinfo", None)
    if zone is not None and not _is_value(zone):
        raise TypeError("its time zone is of a class of the program's, and goes by reference")
    parts = o.__reduce_ex__(2)
    if isinstance(parts, tuple) and isinstance(getattr(parts[0], "__self__", None), type):
        # A class method, as ZoneInfo's: by name, as a function is.
        function, args, *more = parts
        return (class_method, (function.__self__, function.__name__, *args), *more)
    return parts


def _is_value(zone):
    """Whether a time zone crosses by value."""
    from . import _core

    module = type(zone).__module__
    name = f"{module}.{type(zone).__qualname__}"
    types = _core.value_types
    return name in types or type(zone) in types or f"{module.partition('.')[0]}." in types


def class_method(cls, name, *args):
    """What a class method returns."""
    return getattr(cls, name)(*args)


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
