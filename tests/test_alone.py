"""What only holds, or can only be measured, where no other test runs: `make test` runs this file last, and in one
process (scheduling.py)."""

import contextlib
import os
import signal
import statistics
import threading
import time

import pytest
from conftest import wait_until
from test_death import die, resident
from test_lane import library, transport  # noqa: F401: fixtures
from test_tools import ready_spare, tooled

import ipython_isolation
from ipython_isolation import IsolationContext

# --- How soon a death is known ---------------------------------------------------------------------------

PROMPT = """
import os, time
import _deaths
def at(path, name, *args):
    with open(path + ".new", "w") as file:
        file.write(repr(time.monotonic()))
    os.rename(path + ".new", path)
    getattr(_deaths, name)(*args)
"""


def kill_when_there(path, pid):
    """As the out-of-memory killer does it. Writes down when."""
    assert wait_until(path.exists)
    path.write_text(repr(time.monotonic()))
    os.kill(pid, signal.SIGKILL)


@pytest.mark.no_asan  # which takes its time
@pytest.mark.parametrize("megabytes", [0, 2048])
@pytest.mark.parametrize(
    "name, args, how",
    [
        ("segfault", (), signal.SIGSEGV),
        ("abort", (), signal.SIGABRT),
        ("crash_in_thread", (), signal.SIGSEGV),
        ("_exit", (3,), 3),
        ("exit", (4,), 4),
        ("kill_self", (9,), signal.SIGKILL),
        ("sleep_in_c_without_gil", (60.0,), signal.SIGKILL),
    ],
    ids=lambda x: str(x),
)
def test_promptly(context, tmp_path, name, args, how, megabytes):
    """From just before the fatal instruction, by the child's clock, until the exception is raised. The fastest of three
    lives, each begun at once: what is left of the one before may still be there, and other load only adds to it."""
    (tmp_path / "prompt_victim.py").write_text(PROMPT)
    if megabytes:
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) // 1024 for line in file if line.startswith("MemAvailable"))
        assert available > megabytes + 512, "too little memory for this test"
    limit, took, left = 0.1, [], []
    while len(took) < 3 and not (any(t < limit for t in took) and (any(left) or not megabytes)):
        victim = context.load_module("prompt_victim", [str(tmp_path)])
        pid = context.remote_pid
        path = tmp_path / f"time{len(took)}"
        if megabytes:
            deaths = context.load_module("_deaths")
            deaths.release_all()  # a frozen copy that took over has what the last life had
            assert deaths.allocate(megabytes) == megabytes
            assert resident(pid) * os.sysconf("SC_PAGE_SIZE") > megabytes << 20
        if name == "sleep_in_c_without_gil":
            threading.Thread(target=kill_when_there, args=(path, pid)).start()
        error, known = die(victim.at, str(path), name, *args)
        left.append(os.path.exists(f"/proc/{pid}"))
        took.append(known - float(path.read_text()))
        assert (error.signal, error.exit_code) == ((how, None) if isinstance(how, signal.Signals) else (None, how))
        assert (error.pid, error.operation) == (pid, "prompt_victim.at")
    print(" ".join(f"{t * 1000:.1f} ms" for t in took))
    assert min(took) < limit, took
    # However busy the machine: not after its memory was taken down.
    assert any(left) or not megabytes


# --- Processor time of who waits ---------------------------------------------------------------------------


def cpu_seconds(pid):
    """Of all threads of a process but the calling one: what measures has costs of its own, and with as many objects as
    a test run has by now, a garbage collection that happens to fall into it takes longer than all that is measured."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        if int(task) != threading.get_native_id():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as file:  # it may end meanwhile
                total += int(file.read().split()[0])
    return total / 1e9


def test_idle_costs_no_processor_time(library):
    pids = os.getpid(), ipython_isolation.context.contexts()[0].remote_pid
    for _ in range(2000):
        library.echo(1)
    time.sleep(0.3)  # the last releases travel after 0.1 s
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(1)
    after = [cpu_seconds(pid) for pid in pids]
    assert after[0] - before[0] < 0.01 and after[1] - before[1] < 0.01


def test_a_long_call_costs_no_processor_time(transport):
    with IsolationContext(transport=transport) as context:
        clock = context.load_module("time")
        for _ in range(100):
            clock.time()
        pids = os.getpid(), context.remote_pid
        before = [cpu_seconds(pid) for pid in pids]
        caller = time.thread_time()
        clock.sleep(1)
        assert time.thread_time() - caller < 0.05
        after = [cpu_seconds(pid) for pid in pids]
        assert after[0] - before[0] < 0.05 and after[1] - before[1] < 0.05


# --- How soon a spare child is there -----------------------------------------------------------------------


def test_a_restart_with_a_spare_is_faster():
    """By processor time of the child, which other load of the machine does not change; and not slower by the clock."""

    def restart(context, spare=None):
        before = 0 if spare is None else cpu_seconds(spare)
        start = time.monotonic()
        context.restart()
        took = time.monotonic() - start
        assert spare in (None, context.remote_pid)
        return cpu_seconds(context.remote_pid) - before, took

    with tooled(rollback="off") as context:
        context.load_module("zlib")
        without = [restart(context) for _ in range(9)]
        context.configure(spare=True)
        with_spare = [restart(context, ready_spare(context)) for _ in range(9)]
        used, used_with = (statistics.median(used for used, _ in r) for r in (without, with_spare))
        assert used_with < used / 2
        assert min(took for _, took in with_spare) < min(took for _, took in without)
