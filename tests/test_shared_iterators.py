"""Iterators of ours that threads share, and that interrupts and signal handlers meet: each item comes once."""

import contextlib
import copy
import operator
import os
import signal
import threading
from pathlib import Path

import pytest
from conftest import wait_until
from test_threads import run_all

from ipython_isolation import ProtocolError

LIBRARY = """
import collections

kept = []
def keep(code):
    kept.append(eval(code))
    return kept[-1]

def touch():
    pass

def spoil():
    # Has the one cursor of this process answer with what is no iterator.
    import ctypes, gc
    (cursor,) = [o for o in gc.get_objects() if type(o).__name__ == "Cursor"]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    ctypes.c_void_p.from_address(id(cursor) + object.__basicsize__).value = id(kept)
"""


@pytest.fixture
def library(context, tmp_path):
    (tmp_path / "iterated_library.py").write_text(LIBRARY)
    return context.load_module("iterated_library", [str(tmp_path)])


# --- Threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "code",
    [
        "list(range(12000))",
        "dict.fromkeys(range(12000))",
        "dict.fromkeys(range(12000)).keys()",
        "set(range(12000))",
        "[[i] for i in range(3000)]",
        "[list(range(2000))]",
    ],
)
def test_one_iterator_that_threads_share(context, library, code, busy):
    """Each item goes to one of them, as in-process. `busy`: what was fetched ahead is of no use."""
    numbers = library.keep(code)
    if code == "[list(range(2000))]":
        (numbers,) = numbers  # what is in it came along
    shared = iter(numbers)
    start = threading.Barrier(4)

    def take():
        mine = []
        start.wait()
        for item in shared:
            mine.append(item if isinstance(item, int) else item[0])
            if busy and len(mine) % 3 == 0:
                library.touch()
        return mine

    outcomes = run_all([take] * 4)
    assert not [o for o in outcomes if isinstance(o, BaseException)], outcomes
    taken = [item for mine in outcomes for item in mine]
    assert len(taken) == len(numbers) and sorted(taken) == list(range(len(numbers)))


def states(pid):
    """Of all threads of a process: "T" is stopped."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ends meanwhile
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.restarts  # without a copy of the child, which a stopped one would be waited for to make
def test_who_waits_for_its_turn_at_an_iterator_can_be_interrupted(context, library):
    shared = iter(library.keep("list(range(5000))"))
    items = [next(shared)]
    connected, stopped = threading.Event(), threading.Event()

    def ask():
        context.call(len, "")  # what came ahead is out of date: the next one has to be asked for
        connected.set()
        stopped.wait()
        items.extend(shared)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert connected.wait(60)
        os.kill(context.remote_pid, signal.SIGSTOP)
        assert wait_until(lambda: set(states(context.remote_pid)) == {"T"})
        before = context.info()["requests"]
        stopped.set()
        assert wait_until(lambda: context.info()["requests"] > before)
        interrupt = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            interrupt.start()  # being early only makes the test weaker
            next(shared)
        assert len(items) == 1
    finally:
        os.kill(context.remote_pid, signal.SIGCONT)
    asking.join(60)
    assert items == list(range(5000)) and next(shared, "end") == "end"


# --- Interrupts and signal handlers ----------------------------------------------------------------------

KINDS = {
    "list": "list(range(5000))",
    "list of lists": "[[i] for i in range(5000)]",
    "reversed list": "list(range(5000))",
    "dict": "dict.fromkeys(range(5000))",
    "dict with gaps": "(lambda d: [d.pop(i) for i in range(-9, 0)] and d)(dict.fromkeys(range(-9, 5000)))",
    "set": "set(range(5000))",
    "deque": "collections.deque(range(5000))",
    "ordered dict": "collections.OrderedDict.fromkeys(range(5000))",
    "a list that came along": "[list(range(5000))]",
}


def begun(library, kind):
    """An iterator, and what it has to give."""
    o = library.keep(KINDS[kind])
    if kind == "a list that came along":
        (o,) = o
    expected = list(range(5000))
    return (reversed(o), expected[::-1]) if kind.startswith("reversed") else (iter(o), expected)


def number(item):
    return item if isinstance(item, int) else item[0]


def until_asked(context, library, kind, iterator):
    """Takes what one request has fetched of 5,000 items, so that the next one has to be asked for."""
    twin, _ = begun(library, kind)
    fetched, before = 0, context.info()["requests"]
    for _ in twin:
        if context.info()["requests"] > before:
            break
        fetched += 1
    assert 0 < fetched < 5000
    return [number(next(iterator)) for _ in range(fetched)]


@contextlib.contextmanager
def meets(context, handler):
    """A signal comes while the first request in this block is waited for, and the child is stopped; its handler lets
    the child go on, and then calls `handler`."""
    pid, here = context.remote_pid, threading.get_ident()
    came = []

    def handle(*_):
        came.append(True)
        os.kill(pid, signal.SIGCONT)
        handler()

    def send():
        wait_until(lambda: context.info()["requests"] > before)
        signal.pthread_kill(here, signal.SIGUSR1)

    before_handler = signal.signal(signal.SIGUSR1, handle)
    os.kill(pid, signal.SIGSTOP)
    sender = threading.Thread(target=send)
    try:
        assert wait_until(lambda: set(states(pid)) == {"T"})
        before = context.info()["requests"]
        sender.start()
        yield
        assert came
    finally:
        os.kill(pid, signal.SIGCONT)
        if sender.ident:
            sender.join()
        signal.signal(signal.SIGUSR1, before_handler)


class Enough(Exception):
    pass


MOMENTS = {
    "before the answer": lambda library: None,
    "after the answer": lambda library: list(library.kept[0]),
    "after a change": lambda library: library.touch(),
}


@pytest.mark.restarts  # without a copy of the child, which a stopped one would be waited for to make
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("single", [False, True], ids=["chunks", "single"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_handler_raises_loses_no_item(context, library, kind, single, moment):
    library.keep("[[1]]")
    iterator, expected = begun(library, kind)
    if single or kind == "a list that came along":
        items = [number(next(iterator)) for _ in range(3)]
        library.touch()
        if single:
            items.append(number(next(iterator)))
            library.touch()
    else:
        items = until_asked(context, library, kind, iterator)

    def handler():
        moment(library)
        raise Enough

    with meets(context, handler), pytest.raises(Enough):
        next(iterator)
    items += map(number, iterator)
    assert items == expected and next(iterator, "end") == "end"


@pytest.mark.restarts
@pytest.mark.parametrize("single", [False, True], ids=["chunks", "single"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_takes_the_next_items(context, library, kind, single):
    iterator, expected = begun(library, kind)
    if single or kind == "a list that came along":
        items = [number(next(iterator)) for _ in range(3)]
        library.touch()
    else:
        items = until_asked(context, library, kind, iterator)
    taken = []
    with meets(context, lambda: taken.extend(number(next(iterator)) for _ in range(2))):
        items.append(number(next(iterator)))
    assert taken == expected[len(items) - 1 :][:2]
    items += map(number, iterator)
    assert sorted(items + taken) == sorted(expected)


@pytest.mark.restarts
@pytest.mark.parametrize("asks", [repr, operator.length_hint, list], ids=["repr", "length", "list"])
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_real_iterator_after_a_handler(context, library, kind, raises, asks):
    """What it has given already comes first."""
    iterator, expected = begun(library, kind)
    items = [number(next(iterator)) for _ in range(3)]
    library.touch()
    answers = []

    def handler():
        if raises:
            raise Enough
        answers.append(asks(iterator))

    with meets(context, handler), pytest.raises(Enough) if raises else contextlib.nullcontext():
        first = next(iterator, None)
    if raises:
        answers.append(asks(iterator))
    if asks is list:
        items += map(number, answers[0])
        assert raises or first is None
    elif not raises:
        items.append(number(first))
    if asks is operator.length_hint:
        assert answers[0] == (0 if kind.startswith("ordered") else 4997)
    assert items + [number(item) for item in iterator] == expected


@pytest.mark.restarts
@pytest.mark.parametrize("kind", KINDS)
def test_interrupts_one_after_the_other(context, library, kind):
    """The item of the first answer that was lost is not lost with the second one."""
    iterator, expected = begun(library, kind)
    items = [number(next(iterator)) for _ in range(3)]
    library.touch()

    def handler():
        list(library.kept[0])
        raise Enough

    library.keep("[1]")
    for ask in (next, repr, operator.length_hint, next, repr):
        with meets(context, handler), pytest.raises(Enough):
            ask(iterator)
    assert items + list(map(number, iterator)) == expected


@pytest.mark.restarts
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_in_the_request_for_the_real_iterator(context, library, kind):
    iterator, expected = begun(library, kind)
    items = [number(next(iterator)) for _ in range(3)]
    library.touch()

    def fail():
        raise Enough

    with meets(context, fail), pytest.raises(Enough):
        next(iterator)
    with meets(context, lambda: items.append(number(next(iterator)))):
        assert operator.length_hint(iterator) in (0, 4996)
    assert items + list(map(number, iterator)) == expected


@pytest.mark.restarts
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_takes_all_in_the_request_for_the_real_iterator(context, library, kind):
    iterator, expected = begun(library, kind)
    items = [number(next(iterator)) for _ in range(3)]
    library.touch()
    with meets(context, lambda: items.extend(map(number, iterator))):
        assert operator.length_hint(iterator) == 0
    assert items == expected and next(iterator, "end") == "end"


@pytest.mark.restarts
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_takes_all(context, library, kind):
    iterator, expected = begun(library, kind)
    items = [number(next(iterator)) for _ in range(3)]
    library.touch()
    taken = []
    with meets(context, lambda: taken.extend(map(number, iterator))):
        assert next(iterator, "end") == "end"
    assert items + taken == expected


# --- A child that does not keep to the protocol ----------------------------------------------------------


@pytest.mark.parametrize("ask", [repr, copy.copy, operator.length_hint])
def test_an_answer_that_is_no_iterator(library, ask):
    numbers = library.keep("list(range(5000))")
    iterator = iter(numbers)
    library.spoil()
    with pytest.raises(ProtocolError):
        ask(iterator)
    assert list(numbers) == list(range(5000))
