"""Kernel threads, threads of the child's libraries, and life ending in the middle of it all."""

import contextlib
import io
import os
import signal
import threading
import time

import pytest
from conftest import wait_until

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError

LIBRARY = """
import threading

class Account:
    def __init__(self):
        self.total = 0
    def add(self, n):
        self.total += n
        return self.total

def fresh_class(i):
    return type(f"Fresh{i % 7}", (), {"number": lambda self: i})()

def fold(depth, function):
    return depth if depth == 0 else function(depth)

def in_threads(n, function):
    results = [None] * n
    def run(i):
        results[i] = function(i)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return results

def thread_names():
    return sorted(t.name for t in threading.enumerate())
"""


@pytest.fixture
def library(context, tmp_path):
    (tmp_path / "threaded_library.py").write_text(LIBRARY)
    return context.load_module("threaded_library", [str(tmp_path)])


def run_all(functions, seconds=60):
    """Runs each in a thread of its own: what each returned or raised."""
    outcomes = [None] * len(functions)

    def run(i, function):
        try:
            outcomes[i] = function()
        except BaseException as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return outcomes


def test_eight_threads(context, library):
    zlib = context.load_module("zlib")
    import zlib as real

    def work(i):
        account, mine = library.Account(), []
        for n in range(100):
            data = bytes([i, n % 256]) * 50
            assert zlib.decompress(zlib.compress(data)) == data
            assert zlib.crc32(data) == real.crc32(data)
            assert account.add(n) == sum(range(n + 1))
            assert library.fold(n + 1, lambda depth: (i, depth)) == (i, n + 1)
            mine.append(library.fresh_class(n))
        return [o.number() for o in mine]

    assert run_all([lambda i=i: work(i) for i in range(8)]) == [list(range(100))] * 8


def test_a_class_that_all_threads_meet_at_once(context, library):
    """Whichever reply is read first, the class is described in it; and it is one class."""
    for _ in range(10):
        barrier = threading.Barrier(8)

        def meet():
            barrier.wait()
            return type(library.Account()), type(library.Account().add)

        outcomes = run_all([meet] * 8)
        assert len(set(outcomes)) == 1, outcomes
        context.restart()


def test_calls_that_wait_on_each_other(context):
    events = context.load_module("threading")
    first, second = events.Event(), events.Event()
    order = []

    def one():
        assert first.wait(30)
        order.append("one")
        second.set()

    def two():
        first.set()
        assert second.wait(30)
        order.append("two")

    assert run_all([one, two]) == [None, None]
    assert order == ["one", "two"]


def test_callbacks_nested_20_deep(library):
    def down(depth):
        return library.fold(depth - 1, down) + 1

    assert library.fold(40, down) == 40

    class Bottom(Exception):
        pass

    def fail(depth):
        if depth == 20:
            raise Bottom(depth)
        return library.fold(depth - 1, fail)

    with pytest.raises(Bottom) as caught:
        library.fold(40, fail)
    assert caught.value.args == (20,)
    assert library.fold(2, down) == 2


def test_callback_from_a_thread_of_a_c_library(context, library):
    deaths = context.load_module("_deaths")
    here = threading.get_ident()
    assert deaths.call_back_from_thread(lambda: 42) == 42
    assert deaths.call_back_from_thread(lambda: library.fold(3, lambda depth: depth * 2)) == 6
    with pytest.raises(LookupError, match="from the session"):
        deaths.call_back_from_thread(lambda: (_ for _ in ()).throw(LookupError("from the session")))
    called = threading.Event()
    where = []

    def late():
        where.append(threading.get_ident())
        called.set()

    assert deaths.call_back_from_thread(late, 0.01) is None
    assert called.wait(30)  # nobody makes a call meanwhile
    assert where != [here]


def test_callbacks_from_python_threads_of_the_child(library):
    def back(i):
        return library.fold(1, lambda depth: depth + i)

    for _ in range(3):
        assert library.in_threads(6, back) == [1, 2, 3, 4, 5, 6]


def test_the_strand_of_a_thread_ends_with_it(context, library):
    def counts():
        return context._peer.counts["strands"], context._peer.host_call("counts")["strands"], library.thread_names()

    library.Account()
    before = counts()
    for _ in range(3):
        run_all([lambda: library.Account().add(1)] * 5)
        assert wait_until(lambda: counts() == before), (counts(), before)


def test_a_crash_ends_the_calls_of_all_threads(context, library):
    # Looking a function up is a request too.
    deaths, sleep_there, fold = context.load_module("_deaths"), context.load_module("time").sleep, library.fold
    events = context.load_module("threading")
    for _ in range(3):
        wait_there, arrived = events.Event().wait, threading.Barrier(7)

        def wait():
            arrived.wait()
            wait_there(60)

        def sleep():
            arrived.wait()
            sleep_there(60)

        def call_back():
            fold(1, lambda depth: (arrived.wait(), wait_there(60)))

        def crash():
            arrived.wait()
            assert wait_until(lambda: context._peer.active == 8)  # all are under way; in callbacks, two each
            deaths.segfault()

        pid, crashes = context.remote_pid, context.info()["crashes"]
        start = time.monotonic()
        outcomes = run_all([wait, wait, sleep, sleep, call_back, call_back, crash])
        assert time.monotonic() - start < 30
        for outcome in outcomes:
            assert isinstance(outcome, ProcessTerminationError), outcomes
            assert outcome.pid == pid and outcome.signal.name == "SIGSEGV"
        assert len({id(o) for o in outcomes}) == 7
        assert outcomes[-1].operation == "_deaths.segfault"
        assert context.info()["crashes"] == crashes + 1
        with contextlib.redirect_stderr(io.StringIO()):
            assert deaths.allocate(0) == 0


@pytest.mark.parametrize("how", ["close", "restart"])
@pytest.mark.parametrize("call", ["sleep", "callback", "deaf"])
def test_ended_from_another_thread(how, call, tmp_path):
    (tmp_path / "threaded_library.py").write_text(LIBRARY)
    with IsolationContext(restart="auto", name="ended") as context:
        library = context.load_module("threaded_library", [str(tmp_path)])
        # Looking a function up is a request too.
        sleep, fold = context.load_module("time").sleep, library.fold
        hold_gil = context.load_module("_deaths").hold_gil
        inside, over = threading.Event(), threading.Event()

        def under_way():
            if call == "sleep":
                inside.set()
                sleep(60)
            elif call == "deaf":
                inside.set()
                hold_gil(60.0)
            else:
                fold(1, lambda depth: (inside.set(), over.wait(60)))

        def end():
            assert inside.wait(30)
            assert wait_until(lambda: context._peer.active == 2)  # the requests are on their way
            getattr(context, how)()
            over.set()

        outcomes = run_all([under_way, under_way, end])
        for outcome in outcomes[:2]:
            # A request that comes while the child is being ended says so; one that begins later fails or works.
            assert isinstance(outcome, ClientStateError), outcomes
            assert "close" in str(outcome) if how == "close" else "restarted" in str(outcome)
        assert outcomes[2] is None
        if how == "restart":
            assert library.fold(0, None) == 0
            assert context.info()["crashes"] == 0
        else:
            with pytest.raises(ClientStateError, match="closed"):
                library.fold(0, None)


def test_closed_from_inside_a_callback(context, library):
    for how, word in ((context.restart, "restarted"), (context.close, "closed")):
        with pytest.raises(ClientStateError, match=word):
            library.fold(1, lambda depth: how())


def test_closed_while_it_starts():
    inside, go_on = threading.Event(), threading.Event()

    def init():
        inside.set()
        context.call(time.sleep, 60)

    context = IsolationContext(restart="auto", init=init)

    def close():
        assert inside.wait(30)
        time.sleep(0.05)  # into the call; being early only makes the test weaker
        context.close()
        go_on.set()

    outcomes = run_all([context.start, close])
    assert isinstance(outcomes[0], (ClientStateError, ProcessTerminationError)), outcomes
    assert outcomes[1] is None and go_on.is_set()
    assert context.info()["state"] == "closed"


def test_nobody_runs_anything_before_the_set_up_is_done():
    """Threads that come while a life is being set up wait for it: there may be no jail yet."""
    order, started = [], threading.Event()

    def init():
        started.set()
        context.call(time.sleep, 0.2)
        order.append("set up")

    context = IsolationContext(restart="auto", init=init)
    try:

        def other():
            assert started.wait(30)
            context.call(os.getpid)
            order.append("used")

        assert run_all([context.start, other, other]) == [None] * 3
        assert order == ["set up", "used", "used"]
    finally:
        context.close()


def test_many_restarts_beside_calls(context, library):
    """Threads that call without pause while another ends life after life: no hang, no wrong answer."""
    stop = threading.Event()
    answers = [0] * 4

    def call(i):
        while not stop.is_set():
            try:
                assert library.fold(1, lambda depth: (i, depth)) == (i, 1)
                answers[i] += 1
            except (ClientStateError, ProcessTerminationError):
                pass

    def end():
        try:
            for n in range(12):
                had = list(answers)
                wait_until(lambda: sum(answers) > sum(had) + 3, 5)
                if n % 3 == 2:
                    context._peer.kill(9)
                else:
                    context.restart()
            wait_until(lambda: all(answers), 20)
        finally:
            stop.set()

    with contextlib.redirect_stderr(io.StringIO()):
        assert run_all([end, *(lambda i=i: call(i) for i in range(4))]) == [None] * 5
    assert all(answers)
    with contextlib.suppress(ProcessTerminationError):  # the last death, if no thread has met it
        library.fold(0, None)
    assert library.fold(0, None) == 0
