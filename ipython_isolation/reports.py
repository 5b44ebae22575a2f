"""What the interpreter itself reports in the child, as if the code had run in the session.

Warnings, exceptions that cannot be raised, and exceptions that end a thread of the child are handed to
the session, whose filters and hooks deal with them.
"""

import _thread
import collections
import functools
import os
import sys
import threading
import time
import warnings

#: How many frames of the session a ``stacklevel`` can name from the child.
_LEVELS = 8
_SESSION = "<session>"
#: For so long an ignored warning is not reported again by the call that it came from.
_SILENCE = 0.1

_PACKAGE = __name__.partition(".")[0] + "."
_OWN = frozenset({"ipython_isolation.child", __name__})


def _is_own(frame):
    return frame.f_globals.get("__name__") in _OWN


def _is_import(frame):
    """Frames that a ``stacklevel`` does not count."""
    filename = frame.f_code.co_filename
    return "importlib" in filename and "_bootstrap" in filename


def _levels():
    """Functions that call one another on their way to one that is given, each on a line of its own: the
    frames at the bottom of the child's stack, for the session's. So the place of a warning tells how many
    frames of the session its ``stacklevel`` names, also where C code has worked it out."""
    lines = ["def session(function, *args): return function(*args)"]
    for n in range(1, _LEVELS):
        lines.append(f"def session(function, *args, next=session): return next(function, *args)")
    exec(compile("\n".join(lines), _SESSION, "exec"), globals(), namespace := {})
    return namespace["session"]


class ChildReports:
    """The child's end.

    Parameters
    ----------
    peer : _core.Peer
    """

    def __init__(self, peer):
        self._peer = peer
        self._queue = collections.deque()
        self._sending = False
        self.closed = False
        self.freezing = False
        self._turn = None
        self._silent = {}  # warnings that the session would ignore, until when
        self._serve = _levels()

    def serve(self, strand):
        """Serves a strand, with frames below that stand for the session's."""
        self._serve(self._peer.serve_strand, strand)

    def install(self):
        """Takes over from the interpreter."""
        from ipython_isolation import _core

        self._show = warnings._showwarnmsg
        self._show_impl = warnings._showwarnmsg_impl
        self._filters = warnings.filters[:]
        # The session's filters decide; those that code of the child adds come first.
        warnings.resetwarnings()
        warnings.simplefilter("always")
        self._always = warnings.filters[0]
        self._impl = warnings._showwarnmsg_impl = _core.raiser(self._warn)
        warnings._showwarnmsg = _core.raiser(self._dispatch)
        sys.unraisablehook = self._unraisable
        sys.excepthook = self._uncaught
        threading.excepthook = self._thread_ended
        os.register_at_fork(after_in_child=self.close)

    def close(self):
        """From now on (the session has gone, or this is a fork) the interpreter reports by itself."""
        if self.freezing:  # a frozen copy, which goes on reporting
            return
        self.closed = True
        if self._always in warnings.filters:
            at = warnings.filters.index(self._always)
            warnings.filters[at : at + 1] = self._filters
            warnings._filters_mutated()
        if warnings._showwarnmsg_impl is self._impl:
            warnings._showwarnmsg_impl = self._show_impl

    def reborn(self):
        """In a frozen copy that takes over: the thread that was sending is not here, nor is whom it told."""
        self._queue.clear()
        self._sending = False
        self._turn = None
        self._silent.clear()

    # -- to the session -------------------------------------------------------------------------

    def _may_ask(self):
        return False if self.closed else self._peer.may_ask

    def tell(self, name, *args):
        """Calls ``remote_<name>`` in the session; later, and from another thread, where the calling one
        must not wait: in the middle of a frame, or outside of any request."""
        may = self._may_ask()
        if may is not False:
            return self._peer.host_call(name, *args)
        self._later(name, args)

    def _later(self, name, args):
        if self.closed:
            return
        # No lock: a finaliser may come here at any point of another's way through.
        self._queue.append((name, args))
        if not self._sending:
            self._sending = True
            try:
                _thread.start_new_thread(self._send, ())
            except RuntimeError:
                self._sending = False  # the interpreter is about to end

    def _send(self):
        while True:
            while self._queue:
                name, args = self._queue.popleft()
                try:
                    self._peer.host_call(name, *args)
                except Exception:
                    pass  # nobody is there to be told
            self._sending = False
            if not self._queue or self._sending:
                return
            self._sending = True

    # -- warnings -------------------------------------------------------------------------------

    def _dispatch(self, message):
        """As ``warnings._showwarnmsg``; but what the session makes of a warning is raised by the caller."""
        if warnings.showwarning is not warnings._showwarning_orig or warnings._showwarnmsg_impl is not self._impl:
            return self._show(message)
        return self._warn(message)

    def _warn(self, message):
        may = self._may_ask()
        if self.closed:
            return self._show_impl(message)
        key = (message.filename, message.lineno, message.category, str(message.message), _thread.get_ident())
        if self._turn != self._peer.turn:
            self._silent.clear()  # the session had a say: its filters may have changed
        elif self._silent.get(key, 0) > time.monotonic():
            return None
        module, level, below = self._place(message.filename, message.lineno)
        details = (
            message.message, message.category, message.filename, message.lineno, module, level, below, message.source,
        )  # fmt: skip
        if may is False:
            return self._later("warn", details)
        outcome = self._peer.host_call("warn", *details)
        if outcome is True:
            if self._turn != self._peer.turn or len(self._silent) > 1000:
                self._silent.clear()
            self._turn = self._peer.turn
            self._silent[key] = time.monotonic() + _SILENCE
            return None
        return outcome or None

    def _place(self, filename, lineno):
        """Where the place of a warning is: (module, level, below).

        The level is 0 in the child, and n for the n-th frame of what has called it; `below` has the
        child's frames that belong to that, where the session was called back in between.
        """
        skipped = (__file__, warnings.__file__)
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename in skipped:
            frame = frame.f_back
        entries = self._peer.entries()
        level = 0
        while frame is not None:
            if level or _is_own(frame) or (entries and frame is entries[0]):
                level += not _is_import(frame)
            if frame.f_code.co_filename == filename and frame.f_lineno == lineno:
                below = self._below(entries, level) if level and entries else ()
                return frame.f_globals.get("__name__") if level == 0 else None, level, below
            frame = frame.f_back
        return None, 0, ()  # given by the caller, not by a frame

    @staticmethod
    def _below(entries, most):
        below = []
        for frame, end in zip(entries, entries[1:] + [None]):
            rows = []
            while frame is not None and frame is not end and not _is_own(frame) and len(rows) < most:
                if not _is_import(frame):
                    rows.append((frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")))
                frame = frame.f_back
            below.append(tuple(rows))
        return tuple(below)

    # -- exceptions -----------------------------------------------------------------------------

    def _unraisable(self, report):
        details = (report.exc_type, report.exc_value, report.err_msg, report.object)
        may = self._may_ask()
        if self.closed:
            sys.__unraisablehook__(report)
        elif may:
            self._peer.host_call("unraisable", *details)
        else:
            self._later("unraisable", details)

    def _thread_ended(self, report):
        if self._may_ask() is False:
            threading.__excepthook__(report)
        else:
            self._peer.host_call("thread_ended", report.exc_type, report.exc_value, report.thread)

    def _uncaught(self, kind, value, traceback):
        if self._may_ask():
            self._peer.host_call("uncaught", kind, value, traceback)
        else:
            sys.__excepthook__(kind, value, traceback)


class SessionReports:
    """The session's end.

    Parameters
    ----------
    peer : _core.Peer
    """

    def __init__(self, peer):
        self._peer = peer
        self._callbacks = threading.local()
        self.reset()

    def reset(self):
        """Another life begins: its modules have not warned yet."""
        self._registries = {}

    def serve_callbacks(self, strand):
        """Serves threads of the child that no thread of the session has called."""
        self._callbacks.here = True
        self._peer.serve_strand(strand)

    def run(self, function, *args):
        """Calls a hook, in the context of the last call when no call of this thread led here: what it
        prints belongs to that cell."""
        context = self._peer.call_context if hasattr(self._callbacks, "here") else None
        return function(*args) if context is None else context.copy().run(function, *args)

    def warn(self, message, category, filename, lineno, module, level, below, source):
        """A warning of the child.

        Returns
        -------
        Warning or bool
            What this session's filters raise; True when the same warning would do nothing again.
        """
        registry = None
        if level:
            filename, lineno, module, registry = self._frame(level, below)
        known = {}
        if module is not None:  # a None that is passed on would mean the end of the interpreter
            known["module"] = module
            if registry is None:
                registry = self._registries.setdefault(module, {})
        try:
            self.run(
                functools.partial(
                    warnings.warn_explicit, message, category, filename, lineno,
                    registry=registry, source=source, **known,
                )
            )  # fmt: skip
        except Warning as error:
            return error
        return _is_silent(message, category, filename, lineno, module, registry)

    def _frame(self, level, below):
        """The place `level` frames up from the child: (file, line, module, registry or None)."""
        entries = self._peer.entries()
        below = iter(below)
        for frame, end in zip(entries, entries[1:] + [None]):
            while frame is not None and frame is not end:
                if not _is_import(frame) and not str(frame.f_globals.get("__name__")).startswith(_PACKAGE):
                    level -= 1
                    if level == 0:
                        names = frame.f_globals
                        return (
                            frame.f_code.co_filename, frame.f_lineno, names.get("__name__") or "<string>",
                            names.setdefault("__warningregistry__", {}),
                        )  # fmt: skip
                frame = frame.f_back
            rows = next(below, ())
            if level <= len(rows):
                return *rows[level - 1], None
            level -= len(rows)
        # What warnings.warn() says when the stack ends before.
        return ("sys", 1, "sys", None) if sys.version_info < (3, 13) else ("<sys>", 0, "sys", None)

    def unraisable(self, kind, value, err_msg, o):
        traceback = None if value is None else value.__traceback__
        self.run(sys.unraisablehook, _unraisable_args()((kind, value, traceback, err_msg, o)))

    def thread_ended(self, kind, value, thread):
        traceback = None if value is None else value.__traceback__
        self.run(threading.excepthook, threading.ExceptHookArgs((kind, value, traceback, thread)))

    def uncaught(self, kind, value, traceback):
        self.run(sys.excepthook, kind, value, traceback)


def _unraisable_args():
    """The class of what sys.unraisablehook is called with; it has no public name."""
    return next(cls for cls in tuple.__subclasses__() if cls.__name__ == "UnraisableHookArgs")


def _is_silent(message, category, filename, lineno, module, registry):
    """Whether a warning that was just given would do nothing if it were given again."""
    text = str(message)
    if isinstance(message, Warning):
        category = type(message)
    if registry and (text, category, lineno) in registry:
        return True
    if module is None:
        module = filename.removesuffix(".py") or "<unknown>"
    for action, pattern, cls, where, line in warnings.filters:
        if (
            line in (0, lineno) and issubclass(category, cls) and _matches(pattern, text) and _matches(where, module)
        ):  # fmt: skip
            return action == "ignore"
    return warnings.defaultaction == "ignore"


def _matches(pattern, text):
    return pattern is None or (pattern == text if isinstance(pattern, str) else pattern.match(text) is not None)
