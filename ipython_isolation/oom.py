"""Whether the operating system killed a process because memory ran out: only what can be proven."""

import os


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
            found.append((os.path.join(where, "memory.events" if v2 else "memory.oom_control"), "oom_kill"))
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


def _kernel_log(pid):
    """The kernel's own word on having killed `pid`, since it was started: str or None. Only root may read it."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = None
        while True:
            try:
                line = os.read(fd, 8192).decode("utf-8", "replace")
            except BlockingIOError:
                return text
            except OSError:  # overwritten while it was read
                continue
            if f"Killed process {pid} " in line and "ut of memory" in line:
                text = line.partition(";")[2].splitlines()[0]
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
        self._counters = [(path, field, _read(path, field)) for path, field in _memory_cgroups(pid)]

    def proof(self):
        """Asked when the process has been killed: what shows that memory ran out (str), or None."""
        for path, field, before in self._counters:
            now = _read(path, field)
            if before is not None and now is not None and now > before:
                return f"{field} in {path} grew from {before} to {now}"
        same_pids = True
        try:
            same_pids = os.readlink("/proc/self/ns/pid") == os.readlink("/proc/1/ns/pid")
        except OSError:
            pass
        line = _kernel_log(self._pid) if same_pids else None
        return f"the kernel's log says: {line}" if line else None
