"""A process forked from the session does not own its contexts: a clear error there, no harm here."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import ipython_isolation
from ipython_isolation import ClientStateError, IsolationContext

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
VICTIMS = str(Path(__file__).with_name("victims"))


def in_fork(function):
    """What `function` returns or raises in a fork of this process."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            try:
                outcome = function()
            except BaseException as error:
                outcome = type(error).__name__, str(error)
            with open(writing, "wb") as file:
                pickle.dump(outcome, file)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    return pickle.loads(data)


def test_every_use_is_a_clear_error(context):
    ordered = context.load_module("collections").OrderedDict(a=1)
    zlib = context.load_module("zlib")
    pid = context.remote_pid
    for use in (
        lambda: ordered["a"],
        lambda: len(ordered),
        lambda: zlib.compress(b"x"),
        lambda: context.load_module("json"),
        lambda: context.call(os.getpid),
        context.restart,
        context.start,
    ):
        name, text = in_fork(use)
        assert name == "ClientStateError"
        assert str(os.getpid()) in text and "fork" in text
        assert ordered["a"] == 1
    assert in_fork(context.close) is None
    assert in_fork(lambda: context.info()["state"]) == "forked"
    assert in_fork(lambda: repr(ordered) and None) is None
    assert context.remote_pid == pid
    assert zlib.decompress(zlib.compress(b"x")) == b"x"


def test_a_fork_may_have_a_context_of_its_own(context):
    context.load_module("zlib")
    pid = context.remote_pid

    def other():
        with IsolationContext() as mine:
            return mine.load_module("zlib").crc32(b"abc"), mine.remote_pid != pid

    import zlib

    assert in_fork(other) == (zlib.crc32(b"abc"), True)
    assert context.load_module("zlib").crc32(b"abc") == zlib.crc32(b"abc")


def work(_):
    try:
        return ipython_isolation.default_context().name, sys.modules["cv_module"].grayscale(b"")
    except ClientStateError as error:
        return "ClientStateError"
    except BaseException as error:
        return type(error).__name__


def test_multiprocessing():
    ordered = ipython_isolation.import_isolated("cv_module")
    pid = ipython_isolation.default_context().remote_pid
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(work, range(6)) == ["ClientStateError"] * 6
    assert ipython_isolation.default_context().remote_pid == pid
    assert ordered.__name__ == "cv_module"


def tells_and_waits(tell, end):
    """Runs in the child; once it tells, the call is under way."""
    tell()
    return end.wait(50)


def test_a_fork_in_the_middle_of_a_call(context):
    """In a callback, and in one thread while another thread is in a call."""
    functools, clock = context.load_module("functools"), context.load_module("time")
    begun, end = threading.Event(), context.load_module("threading").Event()

    def forks(a, b):
        return in_fork(lambda: clock.time())[0]

    assert functools.reduce(forks, [1, 2]) == "ClientStateError"
    thread = threading.Thread(target=context.call, args=(tells_and_waits, begun.set, end))
    thread.start()
    assert begun.wait(30)
    assert in_fork(lambda: clock.time())[0] == "ClientStateError"
    end.set()
    thread.join()
    assert clock.time() > 0


def test_a_fork_that_returns_through_the_call(tmp_path):
    """The copy goes on where the session was: inside a request, which ends there with the error."""
    script = f"""
import os, sys
sys.path.insert(0, {VICTIMS!r})
import warnings; warnings.simplefilter("ignore")
import ipython_isolation as ii
context = ii.IsolationContext()
functools = context.load_module("functools")
parent = os.getpid()
try:
    pid = functools.reduce(lambda a, b: os.fork(), [1, 2])
except ii.ClientStateError:
    assert os.getpid() != parent
    print("copy", flush=True)
    sys.exit(0)
assert os.getpid() == parent
assert os.waitpid(pid, 0)[1] == 0
assert functools.reduce(lambda a, b: a + b, [1, 2]) == 3
context.close()
print("session", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["copy", "session"]), done.stderr
    assert done.stderr == ""


def test_a_fork_outlives_the_session(tmp_path):
    """It holds nothing that keeps the child alive or the session's pipes open."""
    script = f"""
import os, sys, time, warnings
warnings.simplefilter("ignore")
import ipython_isolation as ii
context = ii.IsolationContext()
context.load_module("zlib")
print(context.remote_pid, context._peer.supervisor_pid, flush=True)
pid = os.fork()
if pid == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
os._exit(0)
"""
    from conftest import wait_until

    session = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pids = [int(p) for p in session.stdout.readline().split()]
    session.wait(30)
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))
    session.stdin.close()
    session.stdout.close()
