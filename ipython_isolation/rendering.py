"""How a cell of IPython shows the death of an isolated process."""

import os
import sys
import types

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _users(traceback):
    """A traceback without the frames of this package."""
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith((_PACKAGE, "<frozen importlib")):
            kept.append(traceback)
        traceback = traceback.tb_next
    following = None
    for each in reversed(kept):
        following = types.TracebackType(following, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return following


def traceback(error):
    """The lines that IPython is to print.

    Parameters
    ----------
    error : ProcessTerminationError

    Returns
    -------
    list of str
        First the frames of the session, as IPython shows those of any exception; then `error.report()`.
    """
    shell = sys.modules["IPython.core.interactiveshell"].InteractiveShell.instance()
    long, error.args = error.args, (error.summary,)
    try:
        lines = shell.InteractiveTB.structured_traceback(type(error), error, _users(error.__traceback__), tb_offset=1)
    finally:
        error.args = long
    _, *more = error.report().split("\n")
    return [*lines, "\n".join(more)] if more else list(lines)
