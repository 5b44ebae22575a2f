"""IPython in the child: what its code displays appears in the session's cell.

Nothing of IPython is imported here before code of the child does so.
"""

import sys

_FALLBACK = "InteractiveShell"


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

    @property
    def made(self):
        """bool: there is one."""
        return self._made is not None

    def watch(self, module):
        """Called with ``IPython.core.interactiveshell`` once that is imported."""
        cls = module.InteractiveShell
        initialized, instance = cls.__dict__.get("initialized"), cls.__dict__.get("instance")

        def make():
            for name, before in (("initialized", initialized), ("instance", instance)):
                if before is None:
                    delattr(cls, name)  # SingletonConfigurable's shows again
                else:
                    setattr(cls, name, before)
            if self.name is not None and not cls.initialized():
                self._made = _make(module, self.name, self._reports)
                if self._made is not None:
                    self._reports.tell("shell_made")

        def asked(_):
            make()
            return cls.initialized()

        def wanted(asking, *args, **kwargs):
            make()
            return asking.instance(*args, **kwargs)

        cls.initialized, cls.instance = classmethod(asked), classmethod(wanted)

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
            reports.tell("display", dict(data), dict(metadata or {}), dict(transient or {}), bool(update))

        def clear_output(self, wait=False):
            reports.tell("clear_output", bool(wait))

    def nothing(self, *args, **kwargs):
        pass

    members = {
        "__module__": __name__,
        "display_pub_class": Type(SessionPublisher),
        "init_virtualenv": nothing,
        "init_logger": nothing,
        "init_sys_modules": nothing,  # the child's __main__ is no user's name space
    }
    kind = type(name or _FALLBACK, (module.InteractiveShell,), members)
    try:
        return kind.instance(config=Config(HistoryManager={"enabled": False}), user_module=sys.modules["__main__"])
    except Exception as error:
        kind.clear_instance()
        print(f"ipython_isolation: nothing can be displayed from this process: {error}", file=sys.stderr)
        return None
