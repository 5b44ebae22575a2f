"""Fixtures of all tests, and the leak check: after every test nothing of it is left."""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import ipython_isolation
from ipython_isolation import context as _context
from ipython_isolation import rollback as _rollback

# A shell without job control starts its background jobs with SIGINT ignored, and so would every session
# that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["IPYTHON_ISOLATION_BUNDLES"] = "off"  # but for the tests that ask for them

VICTIMS = str(Path(__file__).with_name("victims"))
if VICTIMS not in sys.path:
    sys.path.insert(0, VICTIMS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config):
    from scheduling import Scheduling  # which needs pytest-xdist

    return Scheduling(config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """A worker that dies between tests, or after the last, fails the run too."""
    if error:
        report = pytest.CollectReport(node.gateway.id, "failed", longrepr=f"the worker died: {error}", result=[])
        node.config.hook.pytest_collectreport(report=report)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many as there are processors that may be used, not as the machine has."""
    return len(os.sched_getaffinity(0))


def children(pid=None):
    """Process ids of all descendants."""
    found, todo = [], [pid or os.getpid()]
    while todo:
        parent = todo.pop()
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    kids = [int(p) for p in file.read().split()]
            except OSError:
                continue
            found += kids
            todo += kids
    return found


def wait_until(condition, seconds=30.0):
    """Polls an outside condition that no event announces; the last value. The time is for a hang to be seen, however
    slow the machine."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return value


def settled_counts(counts):
    """What `counts` says once no release is on its way any more: those that no frame took along travel a tenth of a
    second later, by a thread of their own. What is counted too early is too much, and less later."""
    last, since = counts(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        now = counts()
        if now != last:
            last, since = now, time.monotonic()
    return last


@contextlib.contextmanager
def alarm(handler, context=None, seconds=0.1):
    """A signal comes while the block runs; given a context, while something is under way there, however long that
    takes to begin: a request of the block, not the making of a frozen copy before it, which is one too."""
    over = False

    def on_alarm(*_):
        if over:
            return
        if context is not None and context._peer.active == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            handler()

    before = signal.signal(signal.SIGALRM, on_alarm)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.nullcontext() if context is None else context._snapshots.hold():
            yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


def _descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing; another thread may close one, too
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def _is_extent(target):
    # The second is what notices writes to memory that was sent (ext/pages.c).
    return target.startswith("/memfd:isolation-extent") or target == "anon_inode:[userfaultfd]"


def _ours(descriptors, extents=True):
    return sum(
        not target.startswith("/proc/") and (extents or not _is_extent(target)) for target in descriptors.values()
    )


def close_contexts(but=()):
    """Ends all contexts, but for some, and releases all isolated names."""
    names = list(ipython_isolation.isolated())
    if names:
        ipython_isolation.release(*names)
    for context in _context.contexts():
        if context not in but:
            context.close()


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """What the tests and libraries that are loaded by now have made stays, and need not be gone through by each
    of the leak check's collections: that took more time than the tests. Before the fixtures of a file, whose
    contexts come to an end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def shared_context(frozen_heap):
    """One context for all tests of a file that ask for it."""
    with ipython_isolation.IsolationContext(restart="auto", name="shared", rollback="off") as made:
        yield made
    assert wait_until(lambda: not any(map(_is_extent, _descriptors().values()))), _descriptors()


@pytest.fixture(autouse=True)
def transport_of_the_run(request, monkeypatch):
    """`make test-zmq` sets the transport of contexts that are not told one; not where that is what a test is about."""
    if request.node.get_closest_marker("shared_memory"):
        monkeypatch.delenv("IPYTHON_ISOLATION_TRANSPORT", raising=False)


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """Every test closes, or leaves open to be closed here, its contexts; then all must be as before.
    A child that the tests of a file share lives on."""
    if "shared_context" in request.fixturenames:
        request.getfixturevalue("shared_context").ensure_started()
    gc.collect()
    shared = _context.contexts()  # of fixtures that several tests share
    before_processes, before_shm = set(children()), set(os.listdir("/dev/shm"))
    before_threads = {t for t in threading.enumerate() if t.name.startswith("isolation")}
    before = _descriptors()
    yield
    close_contexts(but=shared)
    extents = not shared  # those of a context that lives on are kept for other frames
    del shared
    gc.collect()
    gone = wait_until(lambda: not (set(children()) - before_processes))
    assert gone, f"processes left: {set(children()) - before_processes}"
    # Those that another worker's tests have just made go away.
    new_shm = set(os.listdir("/dev/shm")) - before_shm
    assert wait_until(lambda: not new_shm & set(os.listdir("/dev/shm"))), new_shm
    gone = wait_until(
        lambda: not {t for t in threading.enumerate() if t.name.startswith("isolation")} - before_threads
    )
    assert gone, [t.name for t in threading.enumerate()]
    same = wait_until(lambda: (gc.collect(), _ours(_descriptors(), extents) <= _ours(before, extents))[1])
    assert same, sorted(set(_descriptors().items()) - set(before.items()))


@pytest.fixture
def context(request):
    """A context that restarts by itself; with the mark `restarts`, always with a fresh child."""
    rollback = "off" if request.node.get_closest_marker("restarts") else "auto"
    with ipython_isolation.IsolationContext(restart="auto", name="test", rollback=rollback) as made:
        yield made


@pytest.fixture
def affordable(monkeypatch):
    """A frozen copy is made before each request, however long one takes on this machine: for tests that are not
    about when one is made, and need what was made last."""
    monkeypatch.setattr(_rollback, "_CHEAP", 60)
    monkeypatch.setattr(_rollback, "_CREDIT", 60)


@pytest.fixture
def bare_context():
    """A context that does not restart by itself."""
    with ipython_isolation.IsolationContext(name="bare") as made:
        yield made
