"""When a context's child makes a frozen copy of itself, and what a copy that takes over brings back.

The copy is made between two requests, at the first one of a cell, and again whenever that is cheap in
relation to the time gone by. What it costs is measured each time, as its caller feels it.
"""

import contextlib
import os
import time

from . import errors

#: Of the time since the last copy, what the next may take.
_SHARE = 0.01
#: The same where the child has exported something meanwhile, that would be lost.
_SHARE_NEW = 0.05
#: Seconds that copies may take besides at the beginning of a life, outside of cells: nothing says there what belongs
#: together. A short cell, however, is kept whole or not at all.
_CREDIT = 0.1
#: And so many copies in any case, if they are cheap.
_FREE = 10
#: A copy of so many seconds, which nobody feels who runs cells by hand, is made in each cell; a dearer one where it
#: takes `_SHARE_NEW` of a cell.
_CHEAP = 0.1
#: Memory that is written for the first time after a copy was made is copied by the operating system, page by page:
#: seconds a byte, measured by tests/bench/recovery.py; and from which size of a process on it is looked at.
_COPY_SECONDS = 0.6e-9
_COPY_LEAST = 32 << 20
#: For `Peer.snapshot_at`: long ago.
_NOW = 1e-9

_PAGE = os.sysconf("SC_PAGE_SIZE")


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
        self._free = 0
        self._modules = ()  # loaded when the copy was made
        self._told = None  # of the session's state, at that time
        self._cell_start = None
        self._cell_seconds = None  # of the last cell
        self._copying = 0.0  # seconds that copying memory took after the last copy but one
        self.made_at = None  # monotonic seconds
        self.cost = None  # seconds, of the last copy
        self.count = 0
        self.take_overs = 0
        self.reason = None if on else "it was not asked for"

    # -- when ------------------------------------------------------------------------------------

    def life_began(self):
        """The child runs, and has loaded something or taken over: the next request comes after a copy."""
        if self._on and not self._held:
            self._credit, self._free = (_CREDIT, _FREE) if self._cell_start is None else (0.0, 0)
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
        if not self._on or self._held:
            return
        self._credit, self._free = 0.0, 0
        cost = (self.cost or 0.0) + self._copying
        if cost > _CHEAP and cost > _SHARE_NEW * (self._cell_seconds or 0.0):
            self.reason = (
                f"a snapshot took {cost * 1000:.0f} ms with what had to be copied after it, too much for cells of"
                f" {(self._cell_seconds or 0.0) * 1000:.0f} ms"
            )
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
        self._copying = self._copied() * _COPY_SECONDS
        self.take()
        now = time.monotonic()
        cost = now - start + self._copying
        self._credit -= cost
        self._free -= 1
        afford = self._credit > cost or (self._free > 0 and cost < _CHEAP)
        self._peer.snapshot_at = _NOW if afford else now + cost / _SHARE
        self._peer.snapshot_soon = now + cost / _SHARE_NEW

    def _copied(self):
        """Bytes that the child has written to since the present copy was made: the copy alone has the old ones."""
        pid = self._peer.frozen_pid
        try:
            with open(f"/proc/{pid}/statm") as file:
                if int(file.read().split()[1]) * _PAGE < _COPY_LEAST:
                    return 0
            with open(f"/proc/{pid}/smaps_rollup") as file:
                return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty:"))
        except (OSError, ValueError, IndexError):
            return 0  # there is none, or it is somebody else's

    # -- copies ----------------------------------------------------------------------------------

    def take(self):
        """Makes a copy of the child as it is now, instead of the last one.

        Returns
        -------
        bool
            False: there is no such copy, for the reason that `reason` says. The last one is kept if it was only that
            none could be made this time.
        """
        start = time.monotonic()
        try:
            try:
                outcome = self._peer.host_call("freeze")
            except BaseException:  # an interrupt, which may come once the copy is there
                self._peer.keep_frozen(None)
                raise
            if isinstance(outcome, str):  # what it would bring back is not what there is now
                self.forget()
                self.reason = outcome
                return False
            self._peer.keep_frozen(outcome)
        except OSError as error:  # such as no memory; the last copy is as good as it was
            self.reason = f"it could not be copied: {error.strerror or error}"
            return False
        self.reason = None
        self.made_at = time.monotonic()
        self.cost = self.made_at - start
        self.count += 1
        self._told = self._context._following.told
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
            The modules that it has loaded, and what it knows of the session's state (`Following.told`).
            None: there is no copy, or it has died too.
        """
        if not self.ready:
            return None
        kept = self._modules, self._told
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
            self._modules, self._told = (), None
        self.take_overs += 1
        return kept

    def status(self):
        """For `IsolationContext.info`: dict."""
        on = self.ready
        reason = None if on else self.reason or "there is nothing to keep yet"
        return {"on": on, "reason": reason, "snapshots": self.count, "take_overs": self.take_overs, "cost": self.cost}

    def age(self):
        """How old the copy is, for messages: str."""
        seconds = 0.0 if self.made_at is None else time.monotonic() - self.made_at
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

    def describe(self):
        """What a death means for what the child had: str, or None when nothing is kept."""
        return f"objects made in it earlier are kept, as they were {self.age()} before" if self.ready else None

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
