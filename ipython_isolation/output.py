"""What the child prints, into the session's own sys.stdout and sys.stderr."""

import codecs
import sys
import threading


class OutputRelay:
    """Decodes the child's two streams and writes them where the session prints.

    Parameters
    ----------
    peer : _core.Peer
        Says in which context variables (which cell) the last call was made.
    """

    def __init__(self, peer):
        self._peer = peer
        self.reset()

    def reset(self):
        """Forgets half a character of a life that is over."""
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self._service = None

    def service_thread(self):
        """Marks the calling thread as the one that reads output between calls."""
        self._service = threading.get_ident()

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
        context = self._peer.call_context
        if threading.get_ident() == self._service and context is not None:
            # Late output belongs to the cell that made the call, not to whatever runs now.
            context.copy().run(self._write, stream, text)
        else:
            self._write(stream, text)

    @staticmethod
    def _write(stream, text):
        target = sys.stderr if stream else sys.stdout
        if target is None:
            return
        target.write(text)
        target.flush()
