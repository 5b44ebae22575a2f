"""IPython in the child: what its code displays appears in the session's cell.

Nothing of IPython is imported here before code of the child does so.
"""

import sys
import threading

from . import _core

#: Seconds.
_PATIENCE = 10


class ChildShell:
    """Makes the child's shell once somebody asks for one.

    Parameters
    ----------
    reports : reports.ChildReports
    name : str or None
        What the class of the session's shell is called, which libraries look at; None: the session has none.
    """

    def __init__(self, reports, name):
        self._reports = reports
        self.name = name
        self._made = None
        self._asked = self._making = False
        self._lock = threading.RLock()

    @property
    def made(self):
        """bool: there is one."""
        return self._made is not None

    def watch(self, module):
        """Called with ``IPython.core.interactiveshell`` once that is imported."""
        cls = module.InteractiveShell
        own = cls.initialized.__func__, cls.instance.__func__

        def initialized(asking):
            self._make(module)
            return own[0](asking)

        def instance(asking, *args, **kwargs):
            self._make(module)
            return own[1](asking, *args, **kwargs)

        cls.initialized, cls.instance = classmethod(initialized), classmethod(instance)

    def _make(self, module):
        """Once; another thread that asks meanwhile waits, but not for ever: it may be what the making waits for."""
        if self._asked or not self._lock.acquire(timeout=_PATIENCE):
            return
        try:
            if not self._making and not self._asked:  # else it asks itself, or has just been made
                self._making = True
                self._make_once(module)
        finally:
            self._lock.release()

    def _make_once(self, module):
        cls = module.InteractiveShell
        if self.name is not None and cls._instance is None:
            self._made = _make(module, self.name, self._reports)
        self._asked = True
        del cls.initialized, cls.instance  # SingletonConfigurable's show again
        if self.made:
            self._reports.tell("shell_made")

    def reborn(self):
        """In a frozen copy that takes over: the thread that was making one is not here."""
        self._lock = threading.RLock()
        self._making = False

    def cell_ended(self):
        """What IPython does at the end of a cell, such as showing figures that were drawn in it."""
        if self._made is not None:
            self._made.events.trigger("post_execute")


def _make(module, name, reports):
    """A shell that runs no code of its own: it formats, and passes on what is displayed. None where IPython cannot
    make one, as in a jail."""
    from IPython.core.displaypub import DisplayPublisher
    from traitlets import Type
    from traitlets.config import Config

    class SessionPublisher(DisplayPublisher):
        def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
            reports.tell("display", _core.thread_cell(), dict(data), dict(metadata or {}), dict(transient or {}), bool(update))

        def clear_output(self, wait=False):
            reports.tell("clear_output", _core.thread_cell(), bool(wait))

    def nothing(self, *args, **kwargs):
        pass

    members = {
        "__module__": __name__,
        "display_pub_class": Type(SessionPublisher),
        "init_virtualenv": nothing,
        "init_logger": nothing,
        "init_sys_modules": nothing,  # the child's __main__ is no user's name space
    }
    kind = type(name, (module.InteractiveShell,), members)
    try:
        return kind.instance(config=Config(HistoryManager={"enabled": False}), user_module=sys.modules["__main__"])
    except Exception as error:
        kind.clear_instance()
        print(f"ipython_isolation: nothing can be displayed from this process: {error}", file=sys.stderr)
        return None
