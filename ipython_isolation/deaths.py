"""How the lives of a context's child have ended: what is raised, what is written down, and what the user is told."""

from . import bundle, diagnosis, errors, limits, oom, output, session_cells


class Deaths:
    """The ends of one context's lives.

    Parameters
    ----------
    context : IsolationContext
    peer : _core.Peer
    relay : output.OutputRelay
        Has the end of what the child printed.

    Attributes
    ----------
    count : int
        So far.
    last : str or None
        Why there is no child now, for messages.
    lost : bool
        Objects were lost with the last child, and no other has begun since.
    promised : bool
        The last end's error said that objects are kept.
    unsaid : bool
        The user has killed the child, and no error says what that means for its objects.
    """

    def __init__(self, context, peer, relay):
        self._context = context
        self._peer = peer
        self._relay = relay
        self.count = 0
        self.last = None
        self.lost = False
        self.promised = False
        self.unsaid = False
        self._said_in = None  # the cell in which a loss of state was said last
        self._bundle = None  # of the last death; may wait for a frozen copy
        self._unwritten = None  # pid of a process whose death has no bundle yet
        self._diagnosis = (None, None)  # of the last death: pid, Diagnosis
        self._oom = None

    # -- what the next life makes of it ---------------------------------------------------------

    def watch_memory(self):
        """Takes down how often the system has killed for lack of memory, where the child is now."""
        self._oom = oom.Watch(self._peer.pid)

    def life_began(self, kept):
        """Another life has been set up.

        Parameters
        ----------
        kept : bool
            A frozen copy has taken over.
        """
        self._finish_bundle(kept)
        self.lost = self.promised = False
        self._unwritten = None
        self.watch_memory()

    def set_up_failed(self, error):
        """A life could not be set up, for a reason other than its death: then that says why there is no child."""
        if not isinstance(error, errors.ProcessTerminationError):
            self.last = f"it could not be set up: {type(error).__name__}: {error}"

    def closed(self):
        """There will be no other life."""
        self._finish_bundle(False)

    def _finish_bundle(self, kept):
        if self._bundle is not None:
            self._bundle.finish(kept)

    def say(self, lost, broken, age):
        """Says what the user has not been told yet of the last end, as another life goes on.

        Parameters
        ----------
        lost : bool
            Objects were lost.
        broken : bool
            Objects were lost of which an error has said that they are kept: the frozen copy has died, too.
        age : str or None
            How old the frozen copy was that has taken over; None: none has.
        """
        name = self._context.name
        if age is not None and self.unsaid:
            output.say(
                f"ipython_isolation: the process of context {name!r} was rolled back: objects made in it are as"
                f" they were {age} before it was killed"
            )
        self.unsaid = False
        cell = session_cells.execution_count()
        if broken or (lost and (cell is None or cell != self._said_in)):
            # A loop over inputs of which many crash says it once.
            self._said_in = cell
            why = ", since the copy that was to go on has died, too" if broken else ""
            output.say(
                f"ipython_isolation: the process of context {name!r} was restarted{why}: objects made in it before are"
                " lost"
            )

    # -- what is raised -------------------------------------------------------------------------

    def terminated(self, facts, first):
        """What a call raises whose child is no more.

        Parameters
        ----------
        facts : dict
            What the core knows; see `errors.terminated`.
        first : bool
            No other thread has been told of this end.

        Returns
        -------
        ProcessTerminationError or ClientStateError
            The latter when it was ended here.
        """
        context = self._context
        if facts["ended"]:
            name = errors.describe_operation(facts["operation"], facts["operand"])
            during = f" during the call of {name}" if name else ""
            return errors.ClientStateError(f"context {context.name!r} was {facts['ended']}{during}")
        kept = context._snapshots.describe()
        error = errors.terminated(facts, context.name, self.diagnose(facts), kept)
        limits.explain(error, facts, context)
        if first:
            self.count += 1
            self.last = error.reason
            self.lost = bool(context._loaded) and kept is None
            self.promised = kept is not None
        if context._hold and self._peer.held is not None:
            what = "it is" if self._peer.held == error.pid else f"process {self._peer.held}, of an earlier crash, is"
            held = f"{what} held for a debugger (gdb -p {self._peer.held}) until %isolate --release"
            errors.set_summary(error, f"{error.summary}; {held}")
        if first:
            self._unwritten = error.pid
        if self._unwritten == error.pid and facts["operation"]:
            # What a signal handler asked may have met the death of the call that it interrupted.
            self._unwritten = None
            self._write_bundle(facts, error, kept is not None)
        return error

    def timed_out(self, operation, operand, arguments, timeout):
        """What a call raises that took too long, and has stopped: ProcessTimeoutError."""
        facts = {"operation": operation, "operand": operand, "arguments": arguments}
        return limits.interrupted(facts, timeout, self._context)

    def _write_bundle(self, facts, error, kept):
        where = bundle.directory(self._context._bundles)
        if where is None or facts["operation"] == "start":
            return
        self._bundle = bundle.Writer(bundle.call_of(facts), error.report(), self._context.name, kept, where)
        errors.add_bundle(error, self._bundle.path, self._bundle.reason)

    def diagnose(self, facts):
        """What is known of a death: diagnosis.Diagnosis. Made once for each life, however many threads of the session
        are told of its end."""
        pid, known = self._diagnosis
        if pid != facts["pid"] or known is None:
            text, stderr = self._relay.last(), self._relay.last(1)
            try:
                known = diagnosis.Diagnosis(facts, self._peer.death_record(), text, stderr, self._memory_ran_out)
            except Exception:  # whatever the child left behind: that it died must be said
                known = diagnosis.Diagnosis(facts)
            self._diagnosis = facts["pid"], known
        return known

    def _memory_ran_out(self):
        return None if self._oom is None else self._oom.proof()
