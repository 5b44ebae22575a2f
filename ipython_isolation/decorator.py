"""``@isolated``: a function of the session that runs in a child whenever it is called."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

from . import importer
from .context import IsolationContext, default_context, named_context


def isolated(function: Callable | None = None, /, *, context: IsolationContext | str | None = None) -> object:
    """Have a function run in a child process: ``@isolated``, or ``@isolated(context="name")``.

    Each call ships the function, as it is then, as `IsolationContext.call` does, and runs it in the child. When it
    crashes there, the call raises `ProcessTerminationError`. A decorated function that another one calls runs where
    that one runs. Without arguments, ``isolated()`` says which modules are isolated.

    Parameters
    ----------
    function : function or None
        A Python function that is no method.
    context : IsolationContext, str or None
        Where it runs: a context, or the name of one, which is made when there is none. By default the context that
        ``%isolate`` and `import_isolated` use.

    Returns
    -------
    function
        What calls it in the child, with the same name, documentation and signature; ``__wrapped__`` is the function
        itself. With nothing but a context: the decorator. Without arguments: a dict of the isolated modules' names and
        their `IsolationContext`.

    Raises
    ------
    TypeError
        When it is a method, a class or anything else than a Python function, or `context` is no context.

    Examples
    --------
    >>> @isolated
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    """
    if function is None and context is None:
        return importer.isolated()
    if context is not None and not isinstance(context, (IsolationContext, str)):
        raise TypeError(f"context is an IsolationContext or the name of one, not {type(context).__name__}")
    if function is None:
        return functools.partial(isolated, context=context)
    _check(function)

    @functools.wraps(function)
    def call_in_child(*args: object, **kwargs: object) -> object:
        chosen = _resolved(context)
        chosen.load_module("__main__")  # else the call would be set-up, made again at each restart
        return chosen.call(function, *args, **kwargs)

    call_in_child.__isolated_function__ = function  # for `shipping`
    return call_in_child


def _check(function: object) -> None:
    if isinstance(function, (staticmethod, classmethod, types.MethodType)):
        raise TypeError("@isolated is for functions, not for methods: their objects are in this process")
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"@isolated is for Python functions, not for {function!r}")
    owner = function.__qualname__.rpartition(".")[0]
    if owner and not owner.endswith("<locals>"):
        raise TypeError(f"@isolated is for functions, {function.__qualname__} is a method of an object in this process")


def _resolved(context: IsolationContext | str | None) -> IsolationContext:
    if context is None:
        return default_context()
    return named_context(context) if isinstance(context, str) else context
