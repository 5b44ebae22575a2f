"""What the child prints, and lines of our own, into the session's sys.stdout and sys.stderr; and what is muted."""

import codecs
import collections
import sys
import threading


#: How much of the child's last output is kept, for the report of its death: characters, and pieces.
_KEPT = 1 << 16
_PIECES = 256


def say(line):
    """Writes a line of our own to the session's stderr, where a call is about to go on.

    Parameters
    ----------
    line : str
        Without the end of line.
    """
    # ipykernel sends its two streams on at different times: what the call then prints must not come first.
    print(line, file=sys.stderr, flush=True)


class OutputRelay:
    """Decodes the child's two streams and writes them where the session prints.

    Parameters
    ----------
    peer : _core.Peer
        Says in which context variables (which cell) the last call was made.
    loaded : collection of str
        The modules of the child, as they are at any time.
    """

    def __init__(self, peer, loaded):
        self._peer = peer
        self._loaded = loaded
        self._mute = False
        self._muted = {}  # module -> bool, where it is not as for the others
        self._foreign = threading.local()
        self.reset()

    def reset(self):
        """Forgets half a character of a life that is over."""
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self._last = collections.deque(maxlen=_PIECES)
        self._kept = 0

    def last(self, stream=None):
        """The end of what the child printed in this life: str, of one stream or of both, by lines: what comes between the
        pieces of a line is another's."""
        lines, unfinished = [], {}
        for number, text in self._last:
            if stream not in (None, number):
                continue
            for piece in text.splitlines(keepends=True):
                at = unfinished.pop(number, None)
                if at is None:
                    at = len(lines)
                    lines.append("")
                lines[at] += piece
                if not piece.endswith("\n"):
                    unfinished[number] = at
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines[:-1]) + "".join(lines[-1:])

    def _keep(self, stream, text):
        text = text[-_KEPT:]
        if len(self._last) == _PIECES:
            self._kept -= len(self._last[0][1])
        self._last.append((stream, text))
        self._kept += len(text)
        while self._kept > _KEPT:
            self._kept -= len(self._last.popleft()[1])

    def service_thread(self):
        """Marks the calling thread as one that makes no calls: what it reads is the output of others."""
        self._foreign.here = True

    def feed(self, stream, data):
        """Writes bytes of the child.

        Parameters
        ----------
        stream : int
            0 for stdout, 1 for stderr.
        data : bytes
        """
        text = self._decoders[stream].decode(data)
        if not text:
            return
        self._keep(stream, text)
        if self.is_muted():
            return
        context = self._peer.call_context
        if hasattr(self._foreign, "here") and context is not None:
            # It belongs to the cell that made the call, not to whatever runs now, or has started this thread.
            context.copy().run(self._write, stream, text)
        else:
            self._write(stream, text)

    def late(self, stream, text):
        """Writes a text that a thread of the child has printed, of a cell that is over."""
        self._keep(stream, text)
        if not self.is_muted():
            self._write(stream, text)

    @staticmethod
    def _write(stream, text):
        target = sys.stderr if stream else sys.stdout
        if target is None:
            return
        target.write(text)
        target.flush()

    # -- muting ---------------------------------------------------------------------------------

    def mute(self, on):
        """What the child shows is not seen, or is; whatever was said of single modules. It is kept all the same."""
        self._mute = on
        self._muted.clear()

    def mute_module(self, name, on):
        """The same for what is shown during calls of one module, and of those below it."""
        self._muted[name] = on

    def is_muted(self):
        """Whether what the child shows at this moment is not to be seen."""
        if not self._muted:
            return self._mute
        name = self._peer.module
        if name is not None and any(_is_within(name, known) for known in (*self._loaded, *self._muted)):
            return self._mutes(name)
        return all(map(self._mutes, self._loaded)) if self._loaded else self._mute

    def _mutes(self, name):
        while name and name not in self._muted:
            name = name.rpartition(".")[0]
        return self._muted[name] if name else self._mute


def _is_within(name, module):
    return name == module or name.startswith(module + ".")
