"""Objects as copies in this process: `byvalue`, what crosses by value, and what pickling a proxy says."""

import io
import pickle
import sys

from . import _core, errors


def byvalue(proxy):
    """A copy, in this process, of the object behind a proxy.

    Parameters
    ----------
    proxy : object
        A proxy; its target must be picklable.

    Returns
    -------
    object
        Independent of the original, like a deep copy. Its methods run in this process.

    Raises
    ------
    AssertionError
        When it is no proxy.
    """
    if not _core.isproxy(proxy):
        raise AssertionError(f"byvalue() needs a proxy, not {type(proxy).__name__}")
    peer = _core.proxy_info(proxy)[0]
    return _Unpickler(io.BytesIO(peer.host_call("byvalue", proxy))).load()


class _Unpickler(pickle.Unpickler):
    """Finds real classes, also of modules whose name stands for an isolated one here."""

    def find_class(self, module, name):
        found = sys.modules.get(module)
        if found is not None and not _core.isproxy(found):
            return super().find_class(module, name)
        from . import importer

        o = importer.real_module(module)
        for part in name.split("."):
            o = getattr(o, part)
        return o


def register_value_type(cls):
    """From now on, instances of `cls` cross by value: rebuilt from what ``__reduce_ex__`` says.

    Parameters
    ----------
    cls : type
        Immutable, importable by name in both processes.

    Returns
    -------
    type
        `cls`, so that this can be used as a decorator.
    """
    if not isinstance(cls, type):
        raise TypeError(f"a class is needed, not {cls!r}")
    _core.value_types[cls] = True
    _core.value_types[f"{cls.__module__}.{cls.__qualname__}"] = True
    return cls


def containers(o, seen=None):
    """Built-in containers copied at all depths, everything else as it is."""
    seen = {} if seen is None else seen
    if id(o) in seen:
        return seen[id(o)]
    kind = type(o)
    if kind is tuple:
        return tuple(containers(item, seen) for item in o)
    if kind is list:
        copy = seen[id(o)] = []
        copy.extend(containers(item, seen) for item in o)
    elif kind is dict:
        copy = seen[id(o)] = {}
        copy.update((key, containers(value, seen)) for key, value in o.items())
    elif kind in (set, bytearray):
        copy = seen[id(o)] = o.copy()
    else:
        return o
    return copy


# -- pickling of proxies -----------------------------------------------------------------------


def reduce_function(function):
    """What rebuilds the proxy of a function: its name, if that leads to it here; else the function of that name."""
    module, qualname = function.__module__, function.__qualname__
    try:
        local = errors.find(module, qualname)
    except (ImportError, AttributeError, TypeError, ValueError):
        return qualname
    return qualname if local is function else (errors.find, (module, qualname))


def reduced(parts):
    """What `__reduce_ex__` of a proxy's target said, for pickling here."""
    if not isinstance(parts, tuple):
        return parts
    parts = (*parts[:3], *(iter(part) if type(part) is tuple else part for part in parts[3:5]), *parts[5:])
    if len(parts) > 1 and isinstance(parts[1], tuple):
        parts = (parts[0], tuple(map(_own_class, parts[1])), *parts[2:])
    function = parts[0]
    module, name = getattr(function, "__module__", None), getattr(function, "__name__", None)
    if module == "copyreg" and name in _NEW:
        return (_NEW[name], *parts[1:])
    if _core.isproxy(function) and isinstance(module, str) and isinstance(name, str):
        # A function that is here too: copyreg's, functools' ...
        here = getattr(sys.modules.get(module), name, None)
        if here is not None and not _core.isproxy(here):
            return (here, *parts[1:])
    return parts


def _own_class(o: object) -> object:
    """Return the class of this process that a mirrored, un-isolated one has the name of; anything else as it is."""
    if not (isinstance(o, type) and _core.isproxy(o)):
        return o
    here = getattr(sys.modules.get(o.__module__), o.__qualname__, None)
    return here if isinstance(here, type) and not _core.isproxy(here) else o


def _new_object(cls, *args):
    return cls.__new__(cls, *args)


def _new_object_ex(cls, args, kwargs):
    return cls.__new__(cls, *args, **kwargs)


# Under their own names pickle writes an opcode that calls tp_new, which for a mirrored class is the whole
# construction.
_NEW = {"__newobj__": _new_object, "__newobj_ex__": _new_object_ex}
