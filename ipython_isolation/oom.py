"""Whether the operating system killed a process because memory ran out: only what can be proven."""

import os
import time

#: Of the operating system's first pid namespace, whose process ids its log has.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
#: Seconds by which the log's clock may differ from time.monotonic().
_CLOCK_TOLERANCE = 2
#: Seconds: a process is counted first, then killed, and then it is in the log.
_LOG_DELAY = 0.03


def _memory_cgroups(pid):
    """The files that count kills for lack of memory in a process's control group: (path, field) each."""
    found = []
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return found
    for _, controllers, path in groups:
        for mount in mounts:
            root, point, kind = mount[3], mount[4], mount[mount.index("-") + 1]
            options = mount[-1].split(",")
            v2 = controllers == "" and kind == "cgroup2"
            v1 = "memory" in controllers.split(",") and kind == "cgroup" and "memory" in options
            if not (v1 or v2):
                continue
            # In a container the mount may show a part of the tree only.
            inside = os.path.relpath(path, root) if path.startswith(root) else path.lstrip("/")
            where = os.path.normpath(os.path.join(point, inside))
            names = ("memory.events.local", "memory.events") if v2 else ("memory.oom_control",)
            there = [file for name in names if os.path.exists(file := os.path.join(where, name))]
            found += [(file, "oom_kill") for file in there[:1]]  # the local one does not count groups below
    return found


def _read(path, field):
    try:
        with open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == field:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None


def _kernel_log(pid, since):
    """The kernel's own word on having killed `pid`, not before `since` (time.monotonic()), when another process may
    have had that id: (whether the log can be read, str or None). Only root may read it."""
    try:
        if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
            return False, None
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False, None
    try:
        text = None
        while True:
            try:
                line = os.read(fd, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return True, text
            except BrokenPipeError:  # overwritten while it was read
                continue
            except OSError:
                return False, None
            # <priority>,<number>,<microseconds>,...;<text>
            facts, _, said = line.partition(";")
            if f"Killed process {pid} " in said and "ut of memory" in said:
                if int(facts.split(",")[2]) / 1e6 >= since - _CLOCK_TOLERANCE:
                    text = said.splitlines()[0]
    finally:
        os.close(fd)


class Watch:
    """Kills for lack of memory in one process's control group.

    Parameters
    ----------
    pid : int
        A process that runs.
    """

    def __init__(self, pid):
        self._pid = pid
        self._since = time.monotonic()
        self._counters = [(path, field, _read(path, field)) for path, field in _memory_cgroups(pid)]

    def proof(self):
        """Asked when the process has been killed: what shows that memory ran out (str), or None.

        The log says which process was killed, a counter only that one of the group was, which others may be in. So
        it is believed where the log cannot be read.
        """
        grown = None
        for path, field, before in self._counters:
            now = _read(path, field)
            if before is not None and now is not None and now > before:
                grown = f"{field} in {path} grew from {before} to {now}"
        readable, line = _kernel_log(self._pid, self._since)
        end = time.monotonic() + _LOG_DELAY
        while readable and not line and grown and time.monotonic() < end:
            time.sleep(0.002)
            readable, line = _kernel_log(self._pid, self._since)
        if line:
            return f"the kernel's log says: {line}"
        return None if readable else grown
