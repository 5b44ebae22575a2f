"""Run modules in a child process, behind proxies that behave like the real thing.

In a notebook::

    %load_ext ipython_isolation
    %isolate cv_module
    import cv_module

In plain Python::

    from ipython_isolation import import_isolated
    cv_module = import_isolated("cv_module")

When native code of the module dies, the call raises `ProcessTerminationError`; the session and all
its variables are unharmed, and the next call works.
"""

import importlib

TYPE_CHECKING = False  # for type checkers; typing itself takes a millisecond to import
try:
    from ._core import isproxy
except ModuleNotFoundError as error:
    if error.name != f"{__name__}._core":
        raise
    raise ImportError(
        f"ipython_isolation is not built in {__path__[0]} ({error}); if it is installed elsewhere, start Python in another"
        " directory than its source tree, else run `make build` there"
    ) from None

if TYPE_CHECKING:
    from .batch import Future
    from .context import IsolationContext, default_context
    from .copies import byvalue, register_value_type
    from .decorator import isolated
    from .errors import (
        ClientStateError,
        ProcessTerminatedError,
        ProcessTerminationError,
        ProcessTimeoutError,
        ProtocolError,
        StaleProxyError,
    )
    from .importer import import_isolated, isolate, release

__version__ = "0.1.0"

__all__ = [
    "ClientStateError",
    "Future",
    "IsolationContext",
    "ProcessTerminatedError",
    "ProcessTerminationError",
    "ProcessTimeoutError",
    "ProtocolError",
    "StaleProxyError",
    "byvalue",
    "default_context",
    "import_isolated",
    "isolate",
    "isolated",
    "isproxy",
    "load_module",
    "register_value_type",
    "release",
]


#: Where each name comes from. Imported once it is asked for: a child, which imports this package too, does without.
_HOMES = {
    **dict.fromkeys(("IsolationContext", "default_context"), "context"),
    **dict.fromkeys(("byvalue", "register_value_type"), "copies"),
    "Future": "batch",
    "isolated": "decorator",
    **dict.fromkeys(("import_isolated", "isolate", "release"), "importer"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "errors"),
}
_MODULES = ("context", "decorator", "errors", "importer")


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__():
    return sorted({*globals(), *_HOMES, *_MODULES})


def load_module(name, path=None):
    """Imports a module in the default context; see `IsolationContext.load_module`."""
    from .context import default_context

    return default_context().load_module(name, path)


def load_ipython_extension(ipython):
    """``%load_ext ipython_isolation``"""
    from .magics import load_ipython_extension as load

    load(ipython)


def unload_ipython_extension(ipython):
    """``%unload_ext ipython_isolation``"""
    from .magics import unload_ipython_extension as unload

    unload(ipython)
