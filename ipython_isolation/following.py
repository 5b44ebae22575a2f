"""What the child follows of the session: sys.path, the environment, the working directory and log levels."""

import logging
import os
import sys
import weakref

_followings = weakref.WeakSet()


class Following:
    """What one context's child has been told of the session's state, and what it has not been told yet.

    Parameters
    ----------
    peer : _core.Peer

    Attributes
    ----------
    told : dict
        What the child knows, by ``path``, ``environ``, ``cwd`` and ``levels``. None: what it was started with.
    own_environ : dict
        Variables that the child has for itself, which do not follow the session's.
    """

    def __init__(self, peer):
        self._peer = peer
        self.own_environ = {}
        self._forget()
        _followings.add(self)

    def _forget(self):
        self.told = {"path": None, "environ": None, "cwd": None, "levels": None}

    def life_begins(self):
        """Another process is about to run, which has been told nothing."""
        _watch_log_levels()
        self._forget()

    def due(self):
        """The session's state may have changed: the core calls `sync` before the next request."""
        self._peer.sync = True

    def sync(self):
        """Tells the child what has changed."""
        changes = self.changes()
        if any(change is not None for change in changes):
            self._peer.host_call("sync", *changes)

    def changes(self):
        """What has changed since the child was told: it counts as told from now on.

        Returns
        -------
        list
            As for `child.Child.remote_sync`; None for each part that has not changed.
        """
        told, changes = self.told, []
        path = tuple(p for p in sys.path if isinstance(p, str))
        changes.append(None if path == told["path"] else path)
        environ = {name: text for name, text in os.environ.items() if name not in self.own_environ}
        before = told["environ"]
        if before is None:
            before = environ  # it was started with it
        removed = tuple(k for k in before if k not in environ)
        changed = tuple((k, v) for k, v in environ.items() if before.get(k) != v)
        changes.append((changed, removed) if changed or removed else None)
        directory = cwd()
        changes.append(None if directory == (told["cwd"] or directory) else directory)
        levels = _log_levels()
        gone = tuple((name, 0) for name, _ in (told["levels"] or ()) if name not in dict(levels))
        changes.append(None if levels == told["levels"] else levels + gone)
        self.told = {"path": path, "environ": environ, "cwd": directory, "levels": levels}
        return changes


def cwd():
    """The working directory: str, also where it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _watch_log_levels():
    """Has every child's levels looked at again whenever one changes: loggers then clear this cache."""
    manager = logging.root.manager
    if hasattr(manager, "_isolation_watches"):
        return
    clear, manager._isolation_watches = manager._clear_cache, True

    def clear_cache():
        clear()
        for following in list(_followings):
            following.due()

    manager._clear_cache = clear_cache


def _log_levels():
    """The levels set in this process, for the child's loggers: tuple of (name, level). None: for all."""
    levels = [("", logging.root.level), (None, logging.root.manager.disable)]
    for name, logger in list(logging.root.manager.loggerDict.items()):
        level = getattr(logger, "level", 0)
        if level:
            levels.append((name, level))
    return tuple(levels)
