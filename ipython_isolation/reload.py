"""Notices that files which a context's child runs have been rebuilt.

What counts are the files of its isolated modules, and every library that is mapped into it (a binding links to
the library that is really worked on), except the system's. Both are taken down while they are what the child
runs, and compared before a later call: as soon as inotify says that something happened in one of their
directories, and now and then anyhow, for file systems where it says nothing.
"""

import ctypes
import errno
import os
import struct
import sys
import sysconfig
import time

from . import output

#: Seconds after which everything is looked at again, whatever inotify says; and the share of the time it may take.
_ALWAYS = 1.0
_SHARE = 0.01
#: Seconds until a file that is still being written is looked at again.
_SOON = 0.05
#: A file is stable when it was not written for so many seconds, or did not change while that time was waited.
_STABLE = 0.05
#: For `Peer.changes_at`: long ago.
_NOW = 1e-9

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_SYSTEM = ("/lib/", "/lib32/", "/lib64/", "/libx32/", "/usr/", "/nix/store/", "/gnu/store/")
#: The interpreter's own.
_STDLIB = tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")})
_LOCAL = ("/usr/local/", "/usr/src/", "/usr/home/")
_SITES = ("/site-packages/", "/dist-packages/")


def is_system(path):
    """Whether nobody rebuilds this file while a session runs: the system's, the interpreter's, or of this package.

    Parameters
    ----------
    path : str

    Returns
    -------
    bool
    """
    if path.startswith(_PACKAGE + os.sep) or path == os.path.realpath(sys.executable):
        return True
    if any(site in path for site in _SITES):
        return False
    if path.startswith(_STDLIB) or os.path.basename(path).startswith("libpython"):
        return True
    return path.startswith(_SYSTEM) and not path.startswith(_LOCAL)


def mapped_libraries(pid):
    """The libraries and programs that a process runs, the system's left out.

    Parameters
    ----------
    pid : int

    Returns
    -------
    dict of str to bool
        Path, and whether the file that is mapped is still there under this path.

    Raises
    ------
    OSError
        When the process is gone, or may not be looked at.
    """
    found = {}
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) < 6 or "x" not in fields[1] or not fields[5].startswith("/"):
                continue
            path = fields[5]
            there = not path.endswith(" (deleted)")
            path = path if there else path.removesuffix(" (deleted)")
            if not is_system(path) and not path.startswith(("/memfd:", "/dev/", "/SYSV")):
                found[path] = found.get(path, True) and there
    return found


def fingerprint(path):
    """What tells one state of a file from another, or None where there is no such file: tuple."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def flaw(path):
    """Why a file is not complete, as one that is still being written is not.

    Parameters
    ----------
    path : str
        A shared library or other ELF file, or Python source (``.py``).

    Returns
    -------
    str or None
        None for a complete file.
    """
    try:
        if path.endswith((".py", ".pyw")):
            with open(path, "rb") as file:
                compile(file.read(), path, "exec", dont_inherit=True)
            return None
        with open(path, "rb") as file:
            return _elf_flaw(file, os.fstat(file.fileno()).st_size)
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        return error.strerror or str(error)


def _elf_flaw(file, size):
    header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF" or header[4] not in (1, 2) or header[5] not in (1, 2):
        return "it is no ELF file"
    order, wide = "<>"[header[5] - 1], header[4] == 2
    number = order + ("Q" if wide else "I")
    segments, sections = (struct.unpack_from(number, header, at)[0] for at in ((32, 40) if wide else (28, 32)))
    at = 54 if wide else 42
    segment_size, segment_count, section_size, section_count = struct.unpack_from(order + "4H", header, at)
    if segment_count == 0:
        return "it has no segments"
    # (table, entry size, entries, where a type says so without content, where offset and size are)
    tables = [(segments, segment_size, segment_count, None, (8, 32) if wide else (4, 16))]
    if sections:
        tables.append((sections, section_size, max(section_count, 1), (0, 8), (24, 32) if wide else (16, 20)))
    for table, entry_size, count, empty, (offset_at, size_at) in tables:
        if table + entry_size * count > size:
            return "it ends before its headers do"
        file.seek(table)
        data = file.read(entry_size * count)
        if len(data) < entry_size * count or entry_size < size_at + struct.calcsize(number):
            return "its headers make no sense"
        for entry in range(0, len(data), entry_size):
            if empty is not None and struct.unpack_from(order + "I", data, entry + 4)[0] in empty:
                continue
            begin, length = (struct.unpack_from(number, data, entry + at)[0] for at in (offset_at, size_at))
            if begin + length > size:
                return "it ends before its contents do"
    return None


def unfinished(path, seconds=0.0):
    """Waits until a file is complete and stable.

    Parameters
    ----------
    path : str
    seconds : float
        How long to wait for one that is not complete.

    Returns
    -------
    str or None
        Why it is not finished; None when it is.
    """
    end = time.monotonic() + seconds
    while True:
        state = fingerprint(path)
        why = "there is no such file" if state is None else flaw(path)
        if why is None:
            age = time.time() - state[3] / 1e9
            if age >= _STABLE:
                return None
            # Just written; or, by another machine's clock, in the future: what counts is that it stands still.
            time.sleep(_STABLE)
            if fingerprint(path) == state:
                return None
            why = "it is still being written"
        if time.monotonic() >= end:
            return why
        time.sleep(0.01)


class _Directories:
    """Says whether something happened in some directories: a descriptor that becomes readable."""

    _EVENTS = 0x8 | 0x80 | 0x100 | 0x4 | 0x200  # IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE, IN_ATTRIB, IN_DELETE
    _FLAGS = os.O_NONBLOCK | os.O_CLOEXEC

    def __init__(self):
        self._watched = set()
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self.fd = self._libc.inotify_init1(self._FLAGS)
        except (OSError, AttributeError):
            self.fd = -1  # then only the clock says when to look

    def add(self, path):
        directory = os.path.dirname(path)
        if self.fd >= 0 and directory not in self._watched:
            self._watched.add(directory)
            self._libc.inotify_add_watch(self.fd, os.fsencode(directory), self._EVENTS)

    def drain(self):
        while self.fd >= 0:
            try:
                if not os.read(self.fd, 65536):
                    return
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    self.close()
                return

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Watch:
    """The files that one context's child runs, and which of them have changed.

    Parameters
    ----------
    context : IsolationContext
    peer : _core.Peer
    """

    def __init__(self, context, peer):
        self._context = context
        self._peer = peer
        self._directories = None  # None: off
        self._files = {}  # path -> fingerprint of what the child runs
        self._behind = False  # something was loaded that was not looked at
        self._mapped_at = self._map_cost = 0.0  # the last look at what is mapped, and its cost; monotonic seconds
        self._look_at = 0.0  # when everything is looked at again, monotonic seconds
        self._said = {}  # path -> fingerprint, of files with a flaw that was said

    @property
    def on(self):
        """bool: the child is reloaded by itself."""
        return self._directories is not None

    @on.setter
    def on(self, on):
        if on and self._directories is None:
            self._directories = _Directories()
            self._peer.changes_fd = self._directories.fd
            for path in self._files:
                self._directories.add(path)
            if self._peer.state == "running":
                self.take_down()
            self.soon()
        elif not on and self._directories is not None:
            self._peer.changes_at = 0
            self._peer.changes_fd = -1
            self._directories.close()
            self._directories = None

    # -- when -----------------------------------------------------------------------------------

    def soon(self):
        """Everything is looked at before the next call: a cell begins."""
        if self.on:
            self._look_at = 0.0
            self._peer.changes_at = _NOW

    def life_began(self, fresh):
        """Another process runs; a fresh one will load what is there now, a frozen copy runs what it did."""
        if fresh:
            self._files = {path: fingerprint(path) for path in self._files}
            self._said.clear()
        self.soon()

    def loaded(self):
        """The child has loaded a module. A package may be hundreds: not each is worth a look of its own."""
        start = time.monotonic()
        self._behind = True
        if start - self._mapped_at >= self._map_cost / _SHARE:
            self._map()
            self._mapped_at = time.monotonic()
            self._map_cost = self._mapped_at - start
        if self.on:
            self._peer.changes_at = time.monotonic() + _ALWAYS
            self._look_at = 0.0

    def look(self):
        """Called by the core before a request, when something may have happened: reloads if need be."""
        start = time.monotonic()
        if not self.on:
            self._peer.changes_at = 0
            return
        self._peer.changes_at = 0  # what this asks the child is not to come here again
        pending = False
        try:
            self._directories.drain()
            if start >= self._look_at:
                self.take_down()
                self._look_at = 0.0
            changed = self.changed()
            if changed:
                # Not in a transaction: its checkpoint would go with the process.
                busy = self._peer.active > 0 or self._context._in_transaction
                pending = busy or any(self._is_unfinished(path) for path in changed) or self._peer.active > 0
                if not pending:
                    self._context._reload_changed(changed)
        finally:
            now = time.monotonic()
            if self.on:
                self._peer.changes_fd = self._directories.fd
                if now >= self._look_at:
                    self._look_at = now + max(_ALWAYS, (now - start) / _SHARE)
                self._peer.changes_at = now + _SOON if pending else self._look_at

    # -- what -----------------------------------------------------------------------------------

    def take_down(self):
        """Takes down what the child runs by now."""
        self._map()
        if self._context._loaded and not self._peer.active:
            for path in self._peer.host_call("files"):
                self._note(path, True)

    def _map(self):
        self._behind = False
        pid = self._peer.pid
        try:
            mapped = {} if pid is None else mapped_libraries(pid)
        except OSError:
            return  # it is gone, or belongs to somebody else
        for path, there in mapped.items():
            self._note(path, there)

    def _note(self, path, there):
        if path not in self._files and not is_system(path):
            self._files[path] = fingerprint(path) if there else None
            if self.on:
                self._directories.add(path)

    def changed(self):
        """The files that are not any more what the child runs: list of str."""
        if self._behind:
            self._map()
        return [path for path, known in list(self._files.items()) if fingerprint(path) not in (known, None)]

    def _is_unfinished(self, path):
        why = unfinished(path)
        state = fingerprint(path)
        if why is not None and path.endswith(".py") and state is not None and self._said.get(path) != state:
            self._said[path] = state
            output.say(f"ipython_isolation: {path} has changed, but the old one runs on: {why}")
        return why is not None

    def await_finished(self, seconds=5.0):
        """Waits until each file that has changed is complete.

        Parameters
        ----------
        seconds : float
            How long, in all.

        Raises
        ------
        ImportError
            When one is not complete by then.
        """
        end = time.monotonic() + seconds
        for path in self._files:
            why = None
            if fingerprint(path) != self._files[path]:
                why = unfinished(path, max(0.0, end - time.monotonic()))
            if why is not None:
                raise ImportError(f"{path} is not complete: {why}; the old one runs on", path=path)

    def close(self):
        """The context is closed."""
        self.on = False
        self._files.clear()

    def forget(self):
        """In a fork of the session: the descriptor is its own, and nothing is watched any more."""
        if self._directories is not None:
            self._directories.close()
            self._directories = None

