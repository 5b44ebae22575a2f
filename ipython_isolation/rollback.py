"""When a context's child makes a frozen copy of itself, and what a copy that takes over brings back.

The copy is made between two requests, at the first one of a cell, and again whenever that is cheap in
relation to the time gone by. What it costs is measured each time, as its caller feels it.
"""

import contextlib
import time

from . import errors

#: Of the time since the last copy, what the next may take.
_SHARE = 0.01
#: The same where the child has exported something meanwhile, that would be lost.
_SHARE_NEW = 0.05
#: Seconds that copies may take besides. In a cell, for what it makes; outside of cells, where nothing says what
#: belongs together, at the beginning of a life and for any request.
_CREDIT_CELL = 0.01
_CREDIT_LIFE = 0.1
#: A copy of so many seconds is made in each cell; a dearer one where it takes `_SHARE_NEW` of a cell.
_CHEAP = 0.01
#: For `Peer.snapshot_at`: long ago.
_NOW = 1e-9


class Rollback:
    """The frozen copy of one context's child.

    Parameters
    ----------
    context : IsolationContext
    peer : _core.Peer
    on : bool
        Whether copies are made without being asked for.
    """

    def __init__(self, context, peer, on):
        self._context = context
        self._peer = peer
        self._on = on
        self._held = 0  # > 0: within a transaction, whose copy must stay
        self._credit = 0.0
        self._modules = ()  # loaded when the copy was made
        self._sent = None  # of the session's state, at that time
        self._cell_start = None
        self._cell_seconds = None  # of the last cell
        self.made_at = None  # monotonic seconds
        self.in_cell = False  # the copy is of before the present cell
        self.cost = None  # seconds, of the last copy
        self.count = 0
        self.take_overs = 0
        self.reason = None if on else "it was not asked for"

    # -- when ------------------------------------------------------------------------------------

    def life_began(self):
        """The child runs, and has loaded something or taken over: the next request comes after a copy."""
        if self._on and not self._held:
            self._credit = _CREDIT_LIFE if self._cell_start is None else _CREDIT_CELL
            self._due()

    def loaded(self):
        """Another module is there, and is to be part of a copy."""
        if self._on and not self._held:
            self._due()

    def cell_began(self):
        now = time.monotonic()
        if self._cell_start is not None:
            self._cell_seconds = now - self._cell_start
        self._cell_start = now
        self.in_cell = True
        if not self._on or self._held:
            return
        self._credit = _CREDIT_CELL
        cost = self.cost or 0.0
        if cost > _CHEAP and cost > _SHARE_NEW * (self._cell_seconds or 0.0):
            self.reason = f"a snapshot takes {cost * 1000:.0f} ms, too much for so short cells"
            self._peer.snapshot_at = self._peer.snapshot_soon = now + cost / _SHARE_NEW
        else:
            self._due()

    def cell_ended(self):
        if self._cell_start is not None:
            self._cell_seconds = time.monotonic() - self._cell_start
            self._cell_start = None

    def _due(self):
        self._peer.snapshot_at = _NOW

    def renew(self):
        """Called by the core when another copy is due."""
        if self._held or not self._context._loaded:
            self._peer.snapshot_at = 0
            return
        start = time.monotonic()
        self.take()
        now = time.monotonic()
        cost = now - start
        self._credit -= cost
        afford = self._credit > cost
        self._peer.snapshot_at = _NOW if afford and self._cell_start is None else now + cost / _SHARE
        self._peer.snapshot_soon = _NOW if afford else now + cost / _SHARE_NEW

    # -- copies ----------------------------------------------------------------------------------

    def take(self):
        """Makes a copy of the child as it is now, instead of the last one.

        Returns
        -------
        bool
            False: there is none now, for the reason that `reason` says.
        """
        start = time.monotonic()
        outcome = self._peer.host_call("freeze")
        if isinstance(outcome, str):
            self.forget()
            self.reason = outcome
            return False
        try:
            self._peer.keep_frozen(outcome)
        except OSError as error:
            self.forget()
            self.reason = f"it could not be copied: {error}"
            return False
        self.reason = None
        self.made_at = time.monotonic()
        self.in_cell = False
        self.cost = self.made_at - start
        self.count += 1
        self._sent = self._context._sent
        epoch = self._peer.epoch
        self._modules = tuple(n for n, e in self._context._loaded_in.items() if e == epoch)
        return True

    def forget(self):
        """There is no copy any more."""
        self._peer.drop_frozen()
        self.made_at = None
        self._modules = ()

    @property
    def ready(self):
        """bool: a copy would take over if the child died now."""
        return self._peer.has_frozen

    def take_over(self):
        """Makes the copy the child.

        Returns
        -------
        (tuple of str, dict) or None
            The modules that it has loaded, and what it knows of the session's state (`IsolationContext._sent`).
            None: there is no copy, or it has died too.
        """
        if not self.ready:
            return None
        kept = self._modules, self._sent
        try:
            if not self._peer.take_over():
                return None
            counts, proxies = self._peer.survivors()
            self._peer.settle(*self._peer.host_call("take_over", counts))
            del proxies
        except errors.ProcessTerminationError:
            return None
        finally:
            self.made_at = None
            self._modules, self._sent = (), None
        self.take_overs += 1
        return kept

    def status(self):
        """For `IsolationContext.info`: dict."""
        on = self.ready
        reason = None if on else self.reason or "there is nothing to keep yet"
        return {"on": on, "reason": reason, "snapshots": self.count, "take_overs": self.take_overs, "cost": self.cost}

    def describe(self):
        """What a death means for what the child had: str, or None when nothing is kept."""
        if not self.ready:
            return None
        seconds = time.monotonic() - self.made_at
        ago = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        return f"objects made in it earlier are kept, as they were {ago} before"

    @contextlib.contextmanager
    def hold(self):
        """While this lasts, no copy takes the place of the present one."""
        self._held += 1
        self._peer.snapshot_at = 0
        try:
            yield
        finally:
            self._held -= 1
            if self._on and not self._held:
                self._due()
