"""However the session ends, nothing of it is left: no child, no supervisor, nothing the child started."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ipython_isolation
import pytest
from conftest import children, wait_until

VICTIMS = str(Path(__file__).with_name("victims"))

PREFIX = f"""
import sys, os, time, signal, threading
sys.path.insert(0, {VICTIMS!r})
import ipython_isolation as ii
context = ii.IsolationContext(restart="auto")
deaths, clock = context.load_module("_deaths"), context.load_module("time")
print(context.remote_pid, context._peer.supervisor_pid, flush=True)
"""

INSIDE = {
    "idle": "time.sleep(60)",
    "in a C call": "deaths.sleep_in_c_without_gil(60.0)",
    "in a C call with the GIL": "deaths.hold_gil(60.0)",
    "in a callback": "context.load_module('functools').reduce(lambda a, b: time.sleep(60), [1, 2])",
    "with a program of its own": "context.load_module('subprocess').run(['sleep', '60'])",
}


def start(script):
    process = subprocess.Popen(
        [sys.executable, "-c", PREFIX + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, [int(p) for p in process.stdout.readline().split()]


def alive(pids):
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(pid)
        except OSError:
            pass
    return found


def is_running(pids, name):
    """Whether one of the processes runs that program."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n":
                return True
    return False


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_a_session_that_is_killed(inside):
    process, pids = start(f"print('ready', flush=True)\n{inside}")
    assert len(pids) == 2
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # into the call; being early only makes the test weaker
    if "subprocess" in inside:
        assert wait_until(lambda: is_running(children(process.pid), "sleep"))
    below = children(process.pid)
    assert set(pids) <= set(below)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert wait_until(lambda: not alive(below))


ENDS = {
    "by the end of the script": ("", 0),
    "by close": ("context.close()", 0),
    "by _exit": ("os._exit(4)", 4),
    "by sys.exit": ("sys.exit(5)", 5),
    "by an exception": ("raise ValueError('on purpose')", 1),
    "by an exception in a callback": (
        "context.load_module('functools').reduce(lambda a, b: os._exit(6), [1, 2])",
        6,
    ),
    "by a signal": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "after a crash": ("try: deaths.segfault()\nexcept ii.ProcessTerminationError: pass", 0),
    "with a thread in a call": (
        "threading.excepthook = print; threading.Thread(target=clock.sleep, args=(60,), daemon=True).start(); time.sleep(0.2)",
        0,
    ),
    "with the child deaf": (
        "threading.excepthook = print; threading.Thread(target=deaths.hold_gil, args=(60.0,), daemon=True).start(); time.sleep(0.2)",
        0,
    ),
    "with references in a cycle": ("a = [deaths, context]; a.append(a); context.mine = a", 0),
}


@pytest.mark.parametrize("end, code", ENDS.values(), ids=ENDS)
def test_a_session_that_ends(end, code):
    process, pids = start(end)
    assert len(pids) == 2
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert wait_until(lambda: not alive(pids))
    if code == 0:
        assert err == ""


def test_contexts_that_are_dropped_without_close(nothing_is_left):
    import gc

    from ipython_isolation import IsolationContext

    before = set(children())
    for _ in range(3):
        context = IsolationContext()
        module = context.load_module("zlib")
        assert module.crc32(b"") == 0
        context.close()
        del context, module
    gc.collect()
    assert wait_until(lambda: set(children()) <= before)


def test_the_supervisor_is_killed(context):
    """Then nobody can say how the child died; that it died is said all the same, and a restart works."""
    from ipython_isolation import ProcessTerminationError

    clock = context.load_module("time")
    os.kill(context._peer.supervisor_pid, signal.SIGKILL)
    with pytest.raises(ProcessTerminationError) as caught:
        clock.sleep(60)
    assert "supervisor" in str(caught.value)
    assert clock.time() > 0

def test_a_child_imports_what_it_needs(context):
    """Before a module is loaded: nothing of the session's side. Before a set-up call, which may be a chroot: all."""
    modules = context.load_module("sys").modules
    assert "ipython_isolation.child" in modules
    assert not {"ipython_isolation.context", "json", "logging", "pickle", "subprocess"} & set(modules)
    with ipython_isolation.IsolationContext() as other:
        other.call(os.getpid)
        assert {"ipython_isolation.context", "json", "pickle"} <= set(other.load_module("sys").modules)


def test_json_in_the_child_knows_proxies(context):
    kept = {"a": [1]}

    def dump(function):
        import json

        return json.dumps(function())

    context.load_module("sys")  # what is called now is no set-up, before which json would be imported
    assert context.call(dump, lambda: kept) == '{"a": [1]}'
