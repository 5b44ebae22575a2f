"""What a context answers the core, and its child by name (``remote_*``). The child's counterpart is `child.Child`."""

import logging
import os
import threading

from . import _core, adapters, copies, display, errors, output, prompts, reports, session_cells, waiting

_SUPERVISOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_supervisor")


class Host:
    """The session's side of the policy that the core asks for.

    Parameters
    ----------
    context : IsolationContext
        Decides about the child's lives.
    lane : bool
        Small frames go through shared memory, where that is possible.

    Attributes
    ----------
    peer : _core.Peer
    output : output.OutputRelay
    reports : reports.SessionReports
    waiting : waiting.Waiting or None
        What the last interrupt that was not answered has found.
    shell_made : bool
        There is a shell of IPython in the child that runs.
    libraries : dict
        Which libraries the child can import, as far as that was asked.
    """

    def __init__(self, context, lane):
        self._context = context
        self.peer = _core.Peer(self, _SUPERVISOR, lane)
        self.peer.main_thread = threading.main_thread().ident
        self.peer.cell = session_cells.current()
        self.output = output.OutputRelay(self.peer, context._loaded)
        self.reports = reports.SessionReports(self.peer)
        self.waiting = None
        self.shell_made = False
        self.libraries = {}  # see libraries.py
        self._seen_requests = 0  # when the last cell ended

    @property
    def name(self):
        """str: the context's."""
        return self._context.name

    # -- what the context asks ------------------------------------------------------------------

    def life_begins(self):
        """Forgets what was left over of a life that has ended."""
        self.output.reset()
        self.reports.reset()

    def run_service(self):
        """What the service thread of a life does."""
        self.output.service_thread()
        self.peer.run_service()

    def show_figures(self):
        """Has the child show the figures that were drawn in the cell that ends, if it may have drawn any."""
        peer = self.peer
        # That it has died meanwhile is for the next use to raise.
        alive = peer.state == "running" and not peer.is_over()
        if self.shell_made and alive and peer.requests != self._seen_requests:
            peer.host_call("cell_ended")
            self._seen_requests = peer.requests

    # -- what the core calls --------------------------------------------------------------------

    def ensure_running(self):
        """Before a request when the child does not run."""
        self._context._ensure_running(asked=True)

    def files_changed(self):
        """Before a request when a file that the child runs may have changed."""
        with self._context._state_lock:
            self._context._watch.look()

    def renew_snapshot(self):
        """Before a request when another frozen copy is due."""
        self._context._snapshots.renew()

    def sync(self):
        """Before a request when what the child follows of the session may have changed."""
        self._context._following.sync()

    def on_output(self, stream, data):
        """Bytes that the child has printed; as for `OutputRelay.feed`."""
        self.output.feed(stream, data)

    def killed(self):
        """The user's second interrupt has killed the child, and no error will say what that means for its objects."""
        self._context._deaths.unsaid = True

    def interrupt_hint(self):
        """The child has not answered the user's interrupt: says what it does, and how to end it."""
        self.waiting = waiting.look(self.peer.pid)
        output.say(f"the isolated call has not stopped yet: {self.waiting.text}; interrupt again to kill its process")

    def spawn(self, strand):
        """A thread of the child wants to call here: gets one that serves its strand."""
        def serve():
            self.output.service_thread()
            self.reports.serve_callbacks(strand)

        threading.Thread(target=serve, name=f"isolation-callbacks-{strand}", daemon=True).start()

    def stale(self, name, attribute):
        """What the use of an object of an earlier life raises; `attribute`: as it is asked for one, by hasattr() too."""
        cls = errors.StaleAttributeError if attribute else errors.StaleProxyError
        return cls(f"this {name} was lost when the process of context {self.name!r} ended; make it again")

    def terminated(self, facts, first):
        """As `Deaths.terminated`."""
        return self._context._deaths.terminated(facts, first)

    def timed_out(self, operation, operand, arguments, timeout):
        """As `Deaths.timed_out`."""
        return self._context._deaths.timed_out(operation, operand, arguments, timeout)

    def signature(self, function):
        """What `inspect` says of a function of this process that the child asks about."""
        import inspect

        try:
            return inspect.signature(function)
        except (ValueError, TypeError) as error:
            raise AttributeError("__signature__") from error

    def reduce_function(self, function):
        """As `copies.reduce_function`."""
        return copies.reduce_function(function)

    def reduced(self, parts):
        """As `copies.reduced`."""
        return copies.reduced(parts)

    def reduce_container(self, proxy):
        """What rebuilds a container of the child, for pickling here."""
        items = _core.contents(proxy)
        return errors.container(proxy.__class__, self.peer.host_call("content", proxy) if items is None else items)

    # -- what the child asks --------------------------------------------------------------------

    def remote_plain(self, o):
        return adapters.plain(o)

    def remote_content(self, o):
        return errors.content(o)

    def remote_log(self, fields):
        record = logging.makeLogRecord(dict(fields))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def remote_late_output(self, cell, stream, text):
        self._in_cell(cell, self.output.late, stream, text)

    def remote_display(self, cell, *what):
        if not self.output.is_muted():
            self._in_cell(cell, display.publish, cell, *what)

    def remote_clear_output(self, cell, wait):
        if not self.output.is_muted():
            self._in_cell(cell, display.clear_output, cell, wait)

    def _in_cell(self, cell, function, *args):
        """Calls it as part of an earlier cell; 0: of the one that makes the call which led here."""
        variables = session_cells.variables(cell)
        if variables is None:
            self.reports.run(function, *args)
        else:
            variables.copy().run(function, *args)

    def remote_format_failed(self, error):
        self.reports.run(display.failed, error)

    def remote_shell_made(self):
        self.shell_made = True

    def remote_input(self, prompt, hidden):
        return self.reports.run(prompts.ask, prompt, hidden)

    def remote_warn(self, *details):
        return self.reports.warn(*details)

    def remote_unraisable(self, *details):
        self.reports.unraisable(*details)

    def remote_thread_ended(self, *details):
        self.reports.thread_ended(*details)

    def remote_uncaught(self, *details):
        self.reports.uncaught(*details)
