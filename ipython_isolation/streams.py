"""The child's ``sys.stdout`` and ``sys.stderr``: what a thread prints belongs to the cell that has started it."""

import io
import sys

from . import _core


class _Stream(io.TextIOWrapper):
    """Writes to the pipe, as any text stream; but what a thread of an earlier cell prints is told to the session, since
    nobody could tell it apart in the pipe."""

    def write(self, text, /):
        cell = _core.thread_cell()
        if cell and isinstance(text, str) and self._peer.may_ask is not False:
            try:
                self._peer.host_call("late_output", cell, self._number, text)
                return len(text)
            except Exception:
                pass  # nobody is there to be told
        return super().write(text)


_Stream.__name__ = _Stream.__qualname__ = io.TextIOWrapper.__name__
_Stream.__module__ = io.TextIOWrapper.__module__


def install(peer):
    """Replaces both.

    Parameters
    ----------
    peer : _core.Peer
    """
    for number, name in enumerate(("stdout", "stderr")):
        own = getattr(sys, name)
        options = {"encoding": own.encoding, "errors": own.errors, "newline": "\n"}
        options.update(line_buffering=own.line_buffering, write_through=own.write_through)
        made = _Stream(own.detach(), **options)
        made.mode, made._peer, made._number = "w", peer, number
        setattr(sys, name, made)
        setattr(sys, f"__{name}__", made)
