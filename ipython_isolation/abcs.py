"""What was registered with abstract base classes, for the mirrors on the other side.

Bases cross with the description of a class, and what ABCs find out by looking (``__len__`` makes a
`Sized`) holds for mirrors too. What was said by ``ABC.register(cls)`` is kept by the ABC alone.
"""

import abc
import sys
from _weakref import ref  # weakref itself has more, which no child needs from the start

from ipython_isolation import _core

# Where the standard library has its ABCs. Loaded when a mirror is registered with one, since
# isinstance() may ask later; any other module is looked into only if it is loaded.
_HOMES = {"collections.abc", "contextlib", "importlib.abc", "importlib.resources.abc", "io", "numbers", "os", "typing"}

_dump = getattr(abc, "_get_dump", None)  # not in other implementations of abc: then nothing is told
_token = None  # abc.get_cache_token() when _registered was gathered; each registration makes a new one
_registered = {}  # id(class) -> [(weak reference to it, weak reference to an ABC that it is registered with)]


def _is_abc(cls):
    """Without asking the class, whose metaclass may have a mind of its own."""
    return abc.ABCMeta in type(cls).__mro__ and "_abc_impl" in type.__getattribute__(cls, "__dict__")


def _all_abcs():
    """The ABCs of this process: a walk over all classes (0.3 µs each)."""
    seen, left = set(), [object]
    while left:
        for cls in type.__subclasses__(left.pop()):
            if id(cls) not in seen:
                seen.add(id(cls))
                left.append(cls)
                if _is_abc(cls):
                    yield cls


def _gather():
    global _token
    _token = abc.get_cache_token()
    _registered.clear()
    for abstract in _all_abcs():
        for reference in _dump(abstract)[0]:
            cls = reference()
            if cls is not None:
                _registered.setdefault(id(cls), []).append((reference, ref(abstract)))


def _find(name, load=False):
    """The class "module:qualname" of this process, or None."""
    module, _, qualname = name.partition(":")
    if load and module in _HOMES and module not in sys.modules:
        try:
            __import__(module)
        except ImportError:
            return None
    found = sys.modules.get(module)
    for part in qualname.split("."):
        if found is None or _core.isproxy(found):
            return None
        found = getattr(found, part, None)
    return found


def _name(peer, cls):
    """"module:qualname" of a class that the other side may have too, or None."""
    module, qualname = cls.__module__, cls.__qualname__
    name = f"{module}:{qualname}"
    return name if module != "__main__" and not _is_isolated(peer, module) and _find(name) is cls else None


def _is_isolated(peer, module):
    parts = module.split(".")
    return any(".".join(parts[: n + 1]) in peer.isolated for n in range(len(parts)))


def registered(peer, cls):
    """What `cls` itself was registered with, and what with it, as the other side can find them.

    Parameters
    ----------
    peer : _core.Peer
    cls : type

    Returns
    -------
    list of str, type or (str,)
        The ABCs that have the class: "module:qualname", or the mirror of one that lives on the other
        side. In a tuple of one: a class that the class, an ABC, has.
    """
    if _dump is None:
        return []
    if _token != abc.get_cache_token():
        _gather()
    found = []
    for reference, abstract in _registered.get(id(cls), ()):
        abstract = abstract()
        if abstract is None or reference() is not cls:
            continue
        proxy = _core.proxy_info(abstract)
        if proxy is not None:
            if proxy[0] is peer and not proxy[3]:
                found.append(abstract)
            continue
        name = _name(peer, abstract)
        if name is not None:
            found.append(name)
    if _is_abc(cls):
        # Members that are mirrors over there are asked for, one by one, when they are.
        members = (reference() for reference in _dump(cls)[0])
        names = (_name(peer, member) for member in members if member is not None)
        found.extend((name,) for name in names if name is not None)
    return found


def register(cls, entries):
    """Registers a mirror as the class that it stands for is. What is not here is left out.

    Parameters
    ----------
    cls : type
        A mirror.
    entries : list of str, type or (str,)
        What `registered` said on the other side.
    """
    global _token
    current = _token == abc.get_cache_token()
    for entry in entries:
        match entry:
            case str():
                abstract, member = _find(entry, load=True), cls
            case type():
                abstract, member = entry, cls
            case (str(name),):
                abstract, member = cls, _find(name)
            case _:
                continue
        if isinstance(abstract, abc.ABCMeta) and isinstance(member, type):
            try:
                abc.ABCMeta.register(abstract, member)
            except RuntimeError:
                pass  # one derives from the other here
    if current:
        _token = abc.get_cache_token()  # mirrors are never described: what was gathered holds
