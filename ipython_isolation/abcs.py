"""Which abstract base classes a class was registered with, for its mirror on the other side.

Bases cross with the description of a class, and what ABCs find out by looking (``__len__`` makes a
`Sized`) holds for mirrors too. What was said by ``ABC.register(cls)`` is kept by the ABC alone.
"""

import abc
import sys
import weakref

from ipython_isolation import _core

# Where the standard library has its ABCs. Loaded when a mirror is registered with one, since
# isinstance() may ask later; any other module is looked into only if it is loaded.
_HOMES = {"collections.abc", "contextlib", "importlib.abc", "importlib.resources.abc", "io", "numbers", "os", "typing"}

_dump = getattr(abc, "_get_dump", None)  # not in other implementations of abc: then nothing is told
_token = None  # abc.get_cache_token() when _registered was gathered; each registration makes a new one
_registered = {}  # id(class) -> [(weak reference to it, weak reference to an ABC that it is registered with)]


def _all_abcs():
    """The ABCs of this process: a walk over all classes (0.3 µs each)."""
    seen, left = set(), [object]
    while left:
        for cls in type.__subclasses__(left.pop()):
            if id(cls) not in seen:
                seen.add(id(cls))
                left.append(cls)
                if abc.ABCMeta in type(cls).__mro__ and "_abc_impl" in type.__getattribute__(cls, "__dict__"):
                    yield cls


def _gather():
    global _token
    _token = abc.get_cache_token()
    _registered.clear()
    for abstract in _all_abcs():
        for reference in _dump(abstract)[0]:
            cls = reference()
            if cls is not None:
                _registered.setdefault(id(cls), []).append((reference, weakref.ref(abstract)))


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


def registered(peer, cls):
    """The ABCs that `cls` itself was registered with, as the other side can find them.

    Parameters
    ----------
    peer : _core.Peer
    cls : type

    Returns
    -------
    list of str or type
        "module:qualname"; of an ABC that lives on the other side its mirror.
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
        name = f"{abstract.__module__}:{abstract.__qualname__}"
        if not name.startswith("__main__:") and _find(name) is abstract:
            found.append(name)
    return found


def register(peer, cls, abstracts):
    """Registers a mirror as the class that it stands for is. ABCs that are not here are left out.

    Parameters
    ----------
    peer : _core.Peer
    cls : type
        A mirror.
    abstracts : list of str or type
        What `registered` said on the other side.
    """
    global _token
    for abstract in abstracts:
        if isinstance(abstract, str):
            module = abstract.partition(":")[0].split(".")
            if any(".".join(module[: n + 1]) in peer.isolated for n in range(len(module))):
                continue
            abstract = _find(abstract, load=True)
        if isinstance(abstract, abc.ABCMeta):
            current = _token == abc.get_cache_token()
            abc.ABCMeta.register(abstract, cls)
            if current:
                _token = abc.get_cache_token()  # a mirror is never described: what was gathered holds
