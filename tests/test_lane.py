"""The lane and ZeroMQ: two transports, the same behaviour; and what only shared memory can get wrong."""

import collections
import contextlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import wait_until

import ipython_isolation
from ipython_isolation import IsolationContext, ProcessTerminationError
from ipython_isolation.errors import ProtocolError

LIBRARY = """
import ctypes, os, sys, threading
from collections import OrderedDict

libc = ctypes.CDLL(None)

def echo(value):
    return value

def through(value, function):
    return function(value)

def say_print(text):
    print(text)

def say_write(text):
    os.write(1, text.encode() + b"\\n")

def say_printf(text):
    libc.printf(b"%s\\n", text.encode())
    libc.fflush(None)

def say_grandchild(text):
    pid = os.fork()
    if pid == 0:
        os.write(1, text.encode() + b"\\n")
        os._exit(0)
    os.waitpid(pid, 0)

def say_error(text):
    sys.stderr.write(text + "\\n")

def garble(value):
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "isolation-lane" in line:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                ctypes.memset(start, value, end - start)

count = 0

def start_counting():
    def run():
        global count
        while True:
            count += 1
    threading.Thread(target=run, daemon=True).start()

def counted():
    return count
"""


@pytest.fixture(params=["auto", "zmq"])
def transport(request):
    return request.param


@pytest.fixture
def library(transport, tmp_path):
    (tmp_path / "lane_library.py").write_text(LIBRARY)
    with IsolationContext(transport=transport) as made:
        yield made.load_module("lane_library", [str(tmp_path)])


def test_which_transport(monkeypatch):
    monkeypatch.delenv("IPYTHON_ISOLATION_TRANSPORT", raising=False)
    for option, says in ((None, "lane"), ("auto", "lane"), ("zmq", "zmq")):
        context = IsolationContext(transport=option)
        assert context.info()["transport"] == says
        context.load_module("zlib")
        assert context.info()["transport"] == says
        context.close()
    with pytest.raises(ValueError, match="transport"):
        IsolationContext(transport="pigeon")
    monkeypatch.setenv("IPYTHON_ISOLATION_TRANSPORT", "zmq")
    with IsolationContext() as context, IsolationContext(transport="auto") as other:
        assert (context.info()["transport"], other.info()["transport"]) == ("zmq", "lane")
    named = ipython_isolation.context.named_context("by-zmq", transport="zmq")
    assert named.info()["transport"] == "zmq"
    with pytest.raises(ValueError, match="transport"):
        ipython_isolation.context.named_context("by-zmq", transport="auto")


def test_the_next_life_has_a_lane_too():
    with IsolationContext(transport="auto") as context:
        context.load_module("zlib")
        context.restart()
        assert context.info()["transport"] == "lane"
        assert context.load_module("zlib").crc32(b"a") > 0


def test_big_and_small_frames_stay_in_order(library):
    """Those that do not fit into the lane go another way, in their turn."""
    for size in (0, 50, 65_000, 65_536, 70_000, 1_000_000, 3, 65_520, 65_480, 200_000, 1):
        value = bytes([size % 251]) * size
        assert library.echo(value) == value
        assert library.echo(value.decode("latin-1")) == value.decode("latin-1")
        assert library.through(value, lambda v: (len(v), library.echo(v), v)) == (size, value, value)


def test_the_frames_are_the_same(tmp_path):
    """ISOLATION_DEBUG shows the same requests and replies, byte for byte as long."""
    (tmp_path / "lane_library.py").write_text(LIBRARY)
    script = f"""
import ipython_isolation as ii
with ii.IsolationContext() as context:
    library = context.load_module("lane_library", [{str(tmp_path)!r}])
    ordered = library.OrderedDict(abc=1)
    ordered["x"] = library.echo([1, "two", b"3" * 100000])
    library.through(3, lambda v: v + len(ordered))
"""
    traces = []
    for transport in ("auto", "zmq"):
        environment = {**os.environ, "ISOLATION_DEBUG": "1", "IPYTHON_ISOLATION_TRANSPORT": transport}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if " s1 " in line and "host" not in line]
        traces.append([[re.sub(r"\[releases.*?\]", "", x) for x in lines if side in x] for side in ("kernel", "child ")])
    assert len(traces[0][0]) > 8
    without_sizes = [[[re.sub(r"\d+ bytes$", "", x) for x in side] for side in trace] for trace in traces]
    assert without_sizes[0] == without_sizes[1]


@pytest.mark.parametrize("say", ["say_print", "say_write", "say_printf", "say_grandchild", "say_error"])
def test_output_comes_before_the_call_returns(library, say):
    """Also where calls follow each other so quickly that nobody sleeps."""
    function, said = getattr(library, say), io.StringIO()
    redirect = contextlib.redirect_stderr if say == "say_error" else contextlib.redirect_stdout
    with redirect(said):
        for i in range(300):
            library.echo(i)
            function(f"line {i}")
            assert said.getvalue().endswith(f"line {i}\n")
    assert said.getvalue() == "".join(f"line {i}\n" for i in range(300))


def test_calls_do_not_starve_a_thread_of_the_child(library):
    """Calls that run no Python code there never let go of the interpreter's lock by themselves."""
    ordered = library.OrderedDict(abc=1)
    library.start_counting()
    before, end = library.counted(), time.monotonic() + 1
    while time.monotonic() < end:
        ordered["abc"]
    assert library.counted() - before > 10_000


def test_calls_do_not_starve_a_thread_of_the_session(library):
    ordered = library.OrderedDict(abc=1)
    counts, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before, end = counts[0], time.monotonic() + 1
        while time.monotonic() < end:
            # No bytecode of the session runs in between.
            collections.deque(map(ordered.__getitem__, itertools.repeat("abc", 200)), maxlen=0)
        assert counts[0] - before > 10_000
    finally:
        stop.set()
        thread.join()


def test_many_threads_over_their_lanes(library):
    wrong = []

    def run(n):
        for i in range(300):
            value = (n, i, b"x" * (i * 331 % 70_000))
            if library.echo(value) != value or library.through(value, lambda v: v[:2]) != (n, i):
                wrong.append(value[:2])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_killed_while_calls_follow_each_other_closely(transport):
    with IsolationContext(restart="auto", transport=transport) as context:
        collections_ = context.load_module("collections")
        for delay in (0.001, 0.003, 0.01, 0.02, 0.05):
            ordered = collections_.OrderedDict(abc=1)
            killer = threading.Timer(delay, os.kill, (context.remote_pid, signal.SIGKILL))
            killer.start()
            with contextlib.redirect_stderr(io.StringIO()):
                with pytest.raises(ProcessTerminationError):
                    end = time.monotonic() + 20
                    while time.monotonic() < end:
                        ordered["abc"]
                killer.join()
                collections_.OrderedDict()


@pytest.mark.parametrize("value", [0xFF, 0x01, 0x02, 0x03])
def test_garbage_in_the_shared_memory(value, tmp_path):
    """Is an error, and the end of that child; the session lives on."""
    (tmp_path / "lane_library.py").write_text(LIBRARY)
    with IsolationContext(restart="auto", transport="auto") as context:
        library = context.load_module("lane_library", [str(tmp_path)])
        pid = context.remote_pid
        with pytest.raises((ProtocolError, ProcessTerminationError)):
            library.garble(value)
            for i in range(1000):
                library.echo(i)
        assert wait_until(lambda: context.info()["state"] == "dead" or not os.path.exists(f"/proc/{pid}"))
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(ProcessTerminationError):
            library.echo(1)  # says how it ended, where that was not said yet
        with contextlib.redirect_stderr(io.StringIO()):
            assert library.echo(2) == 2


def test_a_copy_of_the_child_does_not_answer(transport, tmp_path):
    """The isolated code forks, and both return into the core: only the child itself goes on."""
    script = tmp_path / "forks_library.py"
    script.write_text("import os\ndef forks():\n    return os.fork()\n")
    with IsolationContext(transport=transport) as context:
        library = context.load_module("forks_library", [str(tmp_path)])
        pid = library.forks()
        try:
            assert pid > 0
            operating = context.load_module("os")
            for _ in range(100):
                assert operating.getpid() == context.remote_pid
        finally:
            os.kill(pid, signal.SIGKILL)


def test_a_loop_in_one_processor(tmp_path):
    """Where there is one processor, spinning would only keep the other end from running."""
    script = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import ipython_isolation as ii
with ii.IsolationContext(transport="auto") as context:
    ordered = context.load_module("collections").OrderedDict(abc=1)
    start = time.monotonic()
    cpu = time.process_time()
    for _ in range(2000):
        ordered["abc"]
    print((time.process_time() - cpu) / 2000)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100e-6


@pytest.mark.no_asan  # its allocator keeps what is freed
def test_memory_does_not_grow(transport):
    def resident(pid):
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with IsolationContext(transport=transport) as context:
        ordered = context.load_module("collections").OrderedDict(abc=1)
        number = 5_000 if transport == "zmq" else 100_000

        def calls():
            for _ in range(number):
                ordered["abc"]

        calls()
        before = [resident(os.getpid()), resident(context.remote_pid)]
        calls()
        after = [resident(os.getpid()), resident(context.remote_pid)]
        assert after[0] - before[0] < 1 << 20 and after[1] - before[1] < 1 << 20


def low_descriptors():
    """What has a low number, in this process, and the next number."""
    found = {}
    with open(os.devnull) as file:
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd < 200 and fd != file.fileno():
                with contextlib.suppress(OSError):  # that of the listing; another thread may close one, too
                    found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        return found, file.fileno()


def test_low_numbers_of_descriptors_are_free(transport):
    """As libzmq's threads open some late, the low ones are taken for a while, in either process."""
    before, _ = low_descriptors()
    with IsolationContext(transport=transport) as context:
        context.load_module("sys")
        called, end = threading.Barrier(2), threading.Event()

        def call():
            context.call(int)
            called.wait(60)
            end.wait(60)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
            called.wait(60)
            here, number = low_descriptors()
            there, number_there = context.call(low_descriptors)
            assert not [name for name in [*here.values(), *there.values()] if "filler" in name]
            assert number < 200 and number_there < 20
            assert not [name for fd, name in here.items() if name.startswith("socket:") and before.get(fd) != name]
        end.set()
        for thread in threads:
            thread.join()
        context.call(bytes, 3_000_000)
        there, number_there = context.call(low_descriptors)
        assert not [name for name in there.values() if "filler" in name] and number_there < 20
