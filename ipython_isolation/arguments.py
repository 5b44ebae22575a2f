"""A call's arguments in a few words: types, shapes and sizes. Nothing here asks the other process."""

from . import _core

_SHORT = 40
_name_of = type.__dict__["__name__"].__get__
_module_of = type.__dict__["__module__"].__get__
_CONTAINERS = (list, tuple, set, frozenset, dict)


def size(n):
    """A number of bytes for people, e.g. ``"900.0 kB"``."""
    if n < 1000:
        return f"{n} bytes"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 1000 or unit == "GB":
            return f"{n:.1f} {unit}"


def _library(cls):
    try:
        return str(_module_of(cls)).partition(".")[0]
    except AttributeError:
        return ""


def _array(o, kind):
    text = f"{kind} {o.dtype} {tuple(o.shape)}"
    nbytes = getattr(o, "nbytes", None)
    return f"{text}, {size(nbytes)}" if isinstance(nbytes, int) else text


def _container(o, kind):
    if not o:
        return f"empty {kind}"
    kinds = list(dict.fromkeys(_name_of(type(item)) for _, item in zip(range(1000), o)))
    shown = ", ".join(kinds[:3]) + (", ..." if len(kinds) > 3 else "")
    return f"{kind} of {len(o)} ({shown})"


def _summary(o):
    cls = type(o)
    kind = _name_of(cls)
    if _core.isproxy(o):
        name = _core.target_name(o)
        return f"{name} (isolated)" if name else f"{kind} object (isolated)"
    if o is None or cls in (bool, float, complex) or o is Ellipsis or o is NotImplemented:
        return repr(o)
    if cls is int:
        return repr(o) if o.bit_length() <= 128 else f"int of {o.bit_length()} bits"
    if cls is str:
        return repr(o) if len(o) <= _SHORT else f"str of {len(o)} characters, {o[:_SHORT]!r}..."
    if cls in (bytes, bytearray):
        return repr(o) if len(o) <= _SHORT // 2 else f"{kind}, {size(len(o))}"
    if cls is memoryview:
        return f"memoryview {o.format} {o.shape}, {size(o.nbytes)}"
    if cls in _CONTAINERS:
        return _container(o, kind)
    if cls in (range, slice):
        return repr(o)
    if isinstance(o, type):
        return f"class {_name_of(o)}"
    library = _library(cls)
    if library == "numpy":
        return _array(o, kind) if kind != "dtype" and hasattr(o, "dtype") and o.shape else f"{kind} {o!s:.{_SHORT}}"
    if library in ("torch", "cupy", "jax", "tensorflow") and hasattr(o, "shape") and hasattr(o, "dtype"):
        return _array(o, kind)
    if library in ("pandas", "polars", "scipy") and hasattr(o, "shape"):
        return f"{kind} {tuple(o.shape)}"
    if library == "PIL" and hasattr(o, "size"):
        return f"{kind} {o.mode} {o.size}"
    if library in ("array", "collections") and hasattr(o, "__len__"):
        return f"{kind} of {len(o)}"
    name = getattr(o, "__qualname__", None) if library in ("builtins", "") else None
    return f"{kind} {name}" if isinstance(name, str) else f"{kind} object"


def summarize(o):
    """One argument in a few words.

    Parameters
    ----------
    o : object

    Returns
    -------
    str
        E.g. ``"ndarray uint8 (480, 640, 3), 921.6 kB"``; short numbers and texts as they are written.
    """
    try:
        return _summary(o)
    except Exception:
        return f"{_name_of(type(o))} object"


def summaries(args, kwargs):
    """All arguments of a call: tuple of str, those given by keyword as ``"name=..."``."""
    return (*map(summarize, args), *(f"{name}={summarize(value)}" for name, value in kwargs.items()))
