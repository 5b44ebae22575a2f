"""Runs one row of the corpus in a context of its own and looks at the session afterwards."""

import contextlib
import io
import os
import select
import threading
import time
from dataclasses import dataclass

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError

import corpus

_HERE = os.path.dirname(os.path.abspath(__file__))


class Watch:
    """Notices when a process has ended."""

    def __init__(self, pid):
        self._fd = os.pidfd_open(pid)
        self._thread = threading.Thread(target=self._wait)
        self._at = None
        self._thread.start()

    def _wait(self):
        select.select([self._fd], [], [])
        self._at = time.monotonic()

    def end(self):
        """When it ended: monotonic seconds. To be called once it has ended, or is about to."""
        self._thread.join()
        os.close(self._fd)
        return self._at


@dataclass
class Outcome:
    """What came of one death.

    Attributes
    ----------
    error : ProcessTerminationError or corpus.StillAlive
    died : bool
    pid : int
    seconds : float or None
        That the deadly call took, until the exception was there; of a row that is `late`, since the operating system
        saw the process ended (0: it was there before). None: it did not end.
    intact : bool
        The session's objects are as before, and the next call works.
    kept : bool or None
        What the child had made earlier is there, as it was; None: no frozen copy could be made.
    """

    error: Exception
    died: bool
    pid: int
    seconds: float | None
    intact: bool
    kept: bool | None


def run(row, megabytes=0):
    """Runs a death.

    Parameters
    ----------
    row : corpus.Death
    megabytes : int
        Memory that the child uses meanwhile.

    Returns
    -------
    Outcome
    """
    values = {"list": [1, 2, 3], "text": "x" * 100}
    try:
        with IsolationContext(restart="auto", name="deaths", rollback="auto") as context:
            return _run(row, context, values, megabytes)
    finally:
        if row.cleanup:
            row.cleanup()


def _run(row, context, values, megabytes):
    if row.prepare:
        row.prepare(context)
    child = context.load_module("corpus", [_HERE])
    if megabytes:
        context.load_module("_deaths").allocate(megabytes)
    child.load(f"_deaths {'_crashes' if not row.environ() else ''} {row.imports}")
    made = child.something()
    with contextlib.suppress(ClientStateError):  # where the set-up is not fit to be copied
        context.checkpoint()
    pid, error, watch = context.remote_pid, None, Watch(context.remote_pid)
    start = time.monotonic()
    try:
        if row.session:
            row.run(context, child)
        else:
            getattr(child, row.name)()
    except (ProcessTerminationError, corpus.StillAlive) as raised:
        error = raised
    raised = time.monotonic()
    assert error is not None, "it did not die"
    with contextlib.redirect_stderr(io.StringIO()):  # which says that it was restarted
        intact = child.call(int) == 0 and values == {"list": [1, 2, 3], "text": "x" * 100}
    kept = made.value == [1, 2] if "earlier are kept" in str(error) else None
    died = isinstance(error, ProcessTerminationError)
    ended = watch.end()  # what does not answer has been killed
    seconds = max(0.0, raised - ended) if row.late else raised - start
    return Outcome(error, died, pid, seconds if died else None, intact and context.remote_pid != pid, kept)
