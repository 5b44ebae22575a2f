"""Starts the interpreter of a context's child, and another one in advance."""

import os
import subprocess
import sys

from .following import cwd

_BOOT = "import sys; sys.path[:] = {path!r}; from ipython_isolation.child import main; main({spare})"


class Launcher:
    """Starts the processes of one context, as its options say at that time.

    Parameters
    ----------
    context : IsolationContext
    peer : _core.Peer
    following : Following
        Gets what a process was started with.
    python : str
        The interpreter.

    Attributes
    ----------
    memory, cpu : int or None
        The limits of the child that runs, or ran last: bytes, and seconds.
    """

    def __init__(self, context, peer, following, python):
        self._context = context
        self._peer = peer
        self._following = following
        self._python = python
        self._spare = None  # what the spare was started with: `_recipe`, part of `Following.told`
        self.memory = self.cpu = None

    def start(self):
        """Starts a child, which may be the spare.

        Raises
        ------
        PermissionError
            When this user may not raise priorities, as the option ``nice`` wants.
        OSError
            When it cannot be started.
        """
        options = self._context
        self.memory, self.cpu = options._memory, options._cpu
        if self._spare is not None:
            (recipe, told), self._spare = self._spare, None
            if recipe == self._recipe():
                if self._peer.take_spare():
                    self._following.told.update(told)  # and it has not followed since
                    self._following.own_environ = options._env
                    return
            self._peer.drop_spare()
        self._following.own_environ = options._env
        try:
            self._peer.start(*self._command(spare=False))
        except PermissionError as error:
            if not (options._nice or 0) < 0:
                raise
            raise PermissionError(
                error.errno,
                f"nice={options._nice} is refused: this user may not raise priorities; use a positive number",
            ) from None

    def keep_spare(self):
        """Starts another interpreter in advance, or ends the one there is, as the option says. Waits for nothing."""
        options = self._context
        if not options._spare:
            self._spare = None
            self._peer.drop_spare()
        elif self._spare is None and self._peer.state == "running":
            try:
                self._peer.start_spare(*self._command(spare=True))
            except OSError:
                return  # then the next life takes as long as the first
            environ = {name: text for name, text in os.environ.items() if name not in options._env}
            self._spare = self._recipe(), {"environ": environ, "cwd": cwd()}

    def _command(self, spare):
        """What to start an interpreter with: its arguments, environment and working directory. Sets its limits."""
        options = self._context
        arguments = [
            *options._wrapper,
            self._python,
            *subprocess._args_from_interpreter_flags(),
            "-u",  # what was printed before a crash is not lost, C stdio included
            "-c",
            _BOOT.format(path=[p for p in sys.path if isinstance(p, str)], spare=spare),
        ]
        environ = [f"{k}={v}" for k, v in {**os.environ, **options._env}.items() if v is not None]
        self._peer.set_limits(options._memory or 0, options._cpu or 0, options._nice or 0)
        return arguments, environ, cwd()

    def _recipe(self):
        """What a process is started with and cannot follow later."""
        options = self._context
        return options._wrapper, tuple(options._env.items()), options._memory, options._cpu, options._nice
