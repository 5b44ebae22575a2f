"""Which contexts there are in this process: all of them, and those that a name leads to."""

import os
import threading
import weakref

_lock = threading.RLock()
_named = {}  # name -> IsolationContext
_all = weakref.WeakSet()


def add(context):
    """Notes a context that has been made.

    Parameters
    ----------
    context : IsolationContext
    """
    with _lock:
        _all.add(context)


def contexts():
    """The contexts of this process that are not closed: list of IsolationContext."""
    with _lock:
        return [c for c in _all if c._peer.state not in ("closed", "forked")]


def named(name, make):
    """The context that a name leads to, made when there is none.

    Parameters
    ----------
    name : str
    make : callable
        Makes it.

    Returns
    -------
    (IsolationContext, bool)
        The context, and whether it was made now.
    """
    with _lock:
        context = _named.get(name)
        if context is not None:
            return context, False
        context = _named[name] = make()
        return context, True


def drop_name(context):
    """From now on no name leads to a context: it is being closed.

    Parameters
    ----------
    context : IsolationContext
    """
    with _lock:
        if _named.get(context.name) is context:
            del _named[context.name]


def _forget_all():
    global _lock
    _lock = threading.RLock()  # another thread may have held it, and is not here
    for context in list(_all):
        context._peer.forget()
        context._watch.forget()
    _named.clear()


os.register_at_fork(after_in_child=_forget_all)
