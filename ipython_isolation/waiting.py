"""Why a process that lives does not answer: what the operating system says of its threads."""

import os
import time
from typing import NamedTuple

#: Seconds between two looks, to see what has run meanwhile.
_INTERVAL = 0.1
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine)
_FUTEX_COMMANDS = (0, 9)  # FUTEX_WAIT, FUTEX_WAIT_BITSET
#: Threads that this package makes, and libzmq's: they never wait for the user's code.
_OURS = ("isolation-", "ZMQbg/")


class Waiting(NamedTuple):
    """What a process does that has not answered.

    Attributes
    ----------
    verdict : str
        ``"stopped"``, ``"traced"``, ``"deadlock"``, ``"asleep"``, ``"running"`` or ``"unknown"``.
    text : str
        The same for people, one line.
    """

    verdict: str
    text: str


class _Thread(NamedTuple):
    state: str
    ran: tuple  # changes whenever the thread runs
    name: str
    locked: bool  # waits for a lock, without a time limit


def _thread(pid, tid):
    directory = f"/proc/{pid}/task/{tid}"
    with open(f"{directory}/stat") as file:
        name, _, rest = file.read().partition("(")[2].rpartition(")")
    fields = rest.split()
    switches = []
    with open(f"{directory}/status") as file:
        switches = [line.split()[1] for line in file if "ctxt_switches" in line]
    locked = False
    try:
        with open(f"{directory}/syscall") as file:
            call = file.read().split()
        # futex(address, operation, value, time limit)
        locked = call[0] == str(_FUTEX) and int(call[2], 16) & 0x7F in _FUTEX_COMMANDS and int(call[4], 16) == 0
    except (OSError, ValueError, IndexError):
        pass
    return _Thread(fields[0], (fields[11], fields[12], *switches), name, locked)


def _threads(pid):
    found = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            found[int(tid)] = _thread(pid, tid)
        except (OSError, IndexError):
            continue
    return found


def look(pid):
    """Looks at a process twice, a tenth of a second apart.

    Parameters
    ----------
    pid : int

    Returns
    -------
    Waiting
    """
    try:
        before = _threads(pid)
        time.sleep(_INTERVAL)
        after = _threads(pid)
        main = after[pid]
    except (OSError, KeyError):
        return Waiting("unknown", "nothing can be learnt about its process")
    if main.state == "T":
        return Waiting("stopped", f"its process is stopped by a signal; `kill -CONT {pid}` lets it go on")
    if main.state == "t":
        return Waiting("traced", "its process is stopped by a debugger")
    ran = [tid for tid, thread in after.items() if tid not in before or thread.ran != before[tid].ran or thread.state == "R"]
    others = {tid: thread for tid, thread in after.items() if tid != pid and not thread.name.startswith(_OURS)}
    if pid in ran:
        return Waiting("running", "its main thread runs")
    busy = [tid for tid in ran if tid in others]
    if busy:
        return Waiting("running", f"its main thread waits, {len(busy)} other thread{'s' * (len(busy) > 1)} of it run")
    if main.locked:
        return Waiting(
            "deadlock",
            "its main thread waits for a lock, without a time limit, and no thread of it runs",
        )
    return Waiting("asleep", "its main thread sleeps in a system call, and no other thread of it runs")
