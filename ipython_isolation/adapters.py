"""What the standard library does by exact type in C, where a proxy cannot be of that type.

A proxy of a list or dict of the child has no real list or dict inside: C code that looked there would find nothing
and be wrong, so it finds no list at all. Where the library then asks a Python function, that one knows proxies.
"""

import collections

from . import _core

_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_VALUES = (str, int, float, bool, type(None))
_DEEPEST = 100  # what is nested deeper is left to whoever wants it


def plain(o):
    """What is in a list or dict, down to its last item, where that is a tree of plain values.

    Parameters
    ----------
    o : object

    Returns
    -------
    list or dict or None
        A copy at all depths; None where there is anything that a copy could not stand for: objects of other classes, or
        a container that is there twice, or in itself.
    """
    try:
        return _copied(o, set(), _DEEPEST)
    except _NotPlain:
        return None


class _NotPlain(Exception):
    pass


def _copied(o, seen, depth):
    kind = type(o)
    if kind in _VALUES:
        return o
    if id(o) in seen or depth == 0:
        raise _NotPlain
    if kind is tuple:
        return tuple([_copied(item, seen, depth - 1) for item in o])
    seen.add(id(o))
    if kind is list:
        return [_copied(item, seen, depth - 1) for item in o]
    if kind in _DICTS and all(type(key) in _VALUES for key in o):
        return {key: _copied(value, seen, depth - 1) for key, value in o.items()}
    raise _NotPlain


def install():
    """Teaches the library's modules about proxies. Nothing changes for other objects."""
    import json  # not above: the child asks for `plain` before anybody has imported it, and installs this with it

    refuse = json.JSONEncoder.default

    def default(encoder, o):
        """`json.JSONEncoder.default`: a list or dict of the child is encoded as one of this process would be."""
        if _core.isproxy(o):
            cls = o.__class__
            if issubclass(cls, (dict, list)):
                content = _core.proxy_info(o)[0].host_call("plain", o)
                if content is not None:
                    return content
            if issubclass(cls, dict):
                return dict(o)
            if issubclass(cls, list):
                return list(o)
        return refuse(encoder, o)

    json.JSONEncoder.default = default
