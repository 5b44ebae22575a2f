"""What the standard library does by exact type in C, where a proxy cannot be of that type.

A proxy of a list or dict of the child has no real list or dict inside: C code that looked there would find nothing
and be wrong, so it finds no list at all. Where the library then asks a Python function, that one knows proxies.
"""

import json

from . import _core


def _json_default(encoder, o, *, refuse=json.JSONEncoder.default):
    """`json.JSONEncoder.default`: a list or dict of the child is encoded as one of this process would be."""
    if _core.isproxy(o):
        cls = o.__class__
        if issubclass(cls, dict):
            return dict(o)
        if issubclass(cls, list):
            return list(o)
    return refuse(encoder, o)


def install():
    """Teaches the library's modules about proxies. Nothing changes for other objects."""
    json.JSONEncoder.default = _json_default
