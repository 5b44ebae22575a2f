"""What is asked inside of a wait (by a signal handler, a stream) has a scope of its own: whatever it mentions of the
calls around it, and wherever the child is with them, both come out right."""

import contextlib
import io
import os
import signal
import sys
import time
import weakref

import pytest
from conftest import alarm, wait_until

from ipython_isolation import (
    ClientStateError,
    IsolationContext,
    ProcessTerminationError,
    ProcessTimeoutError,
    StaleProxyError,
    register_value_type,
)

MODULE = """
import os, signal, sys, threading, time, weakref

def note(into, item, seconds=0):
    time.sleep(seconds)
    into.append(item)
    return list(into)

def note_around(into, call, seconds=0.4):
    "Changes before, between and after two calls of the session's."
    time.sleep(seconds)
    into.append(1)
    call()
    into.append(2)
    call()
    into.append(3)
    return list(into)

def call(f, *args, seconds=0.4):
    time.sleep(seconds)
    return f(*args)

def same(o):
    return o

def wait(seconds):
    time.sleep(seconds)
    return seconds

def fail(seconds):
    time.sleep(seconds)
    raise ValueError("mine")

def die(seconds=0, before=None):
    time.sleep(seconds)
    if before is not None:
        before()
    os.kill(os.getpid(), signal.SIGKILL)

def one(): pass
def other(): pass
f = one

def swap():
    global f
    f = other if f is one else one

class Key:
    def __init__(self, number):
        self.number = number
    def __hash__(self):
        return hash(self.number)
    def __eq__(self, other):
        return self.number == other.number

def with_key(key):
    return {key}

def around(into, call):
    into.append(1)
    call(into)
    into.append(2)
    return list(into)

def at_the_next_alarm(call, seconds):
    def handler(*_):
        outcomes.append(call())
    outcomes.clear()
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
outcomes = []

def when_it_goes(thing, into, call):
    weakref.finalize(thing, lambda: outcomes.append(call(into)))

def calls_with_a_set(call):
    into, thing = [1], {5}
    call(into, thing)
    return into + [2]

classes = [type(f"New{n}", (), {}) for n in range(10)]

def make(n):
    return classes[n]()

def print_and_call(n, call):
    print("text", flush=True)
    return call(classes[n]())

def print_later(seconds):
    threading.Thread(target=lambda: (time.sleep(seconds), os.write(1, b"later"))).start()
"""


@pytest.fixture
def module(context, tmp_path):
    (tmp_path / "scoped.py").write_text(MODULE)
    return with_functions(context.load_module("scoped", [str(tmp_path)]))


def with_functions(module):
    """They are here already: to ask for one sends a batch."""
    for name in ("call", "die", "fail", "note", "note_around", "same", "wait"):
        getattr(module, name)
    return module


# --- containers of the calls around -----------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
def test_what_the_child_changes_meanwhile_is_there_once(context, module, batched):
    """The handler's request is answered inside of the call's own callback."""
    items, asked, results, wait = [], [], [], module.wait
    with alarm(lambda: asked.append(wait(0)), context):
        if batched:
            with context.batch():
                results = [module.note_around(items, lambda: None), module.note(items, 4)]
        else:
            results = [module.note_around(items, lambda: None), module.note(items, 4)]
    results = [r.result() if batched else r for r in results]
    assert asked == [0] and results == [[1, 2, 3], [1, 2, 3, 4]] and items == [1, 2, 3, 4]


def _again(module, items):
    return module.note([], "other"), module.note(items, "handler")


def _first(module, items):
    return (module.note(items, "handler"),)


def _changed(module, items):
    before = module.wait(0)
    items.append("handler")
    return before, module.wait(0)


@pytest.mark.parametrize("handler", [_again, _first, _changed], ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
def test_a_handler_uses_the_list_of_the_call(context, module, batched, handler):
    items, other, seen, futures = [], [], [], []
    with alarm(lambda: seen.append(handler(module, items)), context):
        if batched:
            with context.batch():
                futures = [module.note(items, "call", 0.4), module.note(other, "second")]
        else:
            futures = [module.note(items, "call", 0.4), module.note(other, "second")]
    results = [f.result() if batched else f for f in futures]
    assert results == [["call"], ["second"]] and other == ["second"]
    assert len(seen) == 1 and sorted(items) == ["call", "handler"]


@pytest.mark.parametrize("what", ["text", "list"])
def test_a_callback_of_the_call_uses_what_the_handler_has_used(context, module, what):
    """The child has answered the handler's request by then."""
    thing = "a text that is no name" * 3 if what == "text" else []
    seen, same, note = [], module.same, module.note

    def use():
        return same(thing) is thing if what == "text" else note(thing, 1)[-1] == 1

    with alarm(lambda: seen.append(use()), context):
        assert module.call(use)
    assert seen == [True] and len(thing) == (2 if what == "list" else 66)


def test_a_callback_of_the_handler_changes_its_list(context, module):
    """In turn, as seen from the handler: the child sees the change."""
    items, seen = [], []

    def handler():
        seen.append(module.note_around(items, lambda: items.append("session"), 0))

    with alarm(handler, context):
        module.wait(0.4)
    assert seen == [[1, "session", 2, "session", 3]] and items == seen[0]


def test_a_callback_of_the_call_changes_its_list_while_a_handler_waits(context, module):
    """As seen from the call, too."""
    items, seen = [], []

    def callback():
        items.append("session")

    note = module.note
    with alarm(lambda: seen.append(note([], "handler")), context):
        assert module.note_around(items, callback) == [1, "session", 2, "session", 3]
    assert items == [1, "session", 2, "session", 3] and seen == [["handler"]]


@pytest.mark.parametrize("depth", [1, 5, 40])
def test_streams_that_ask_inside_of_each_other(context, module, depth):
    items, left = [], [depth]

    class Stream(io.StringIO):
        def write(self, text):
            if (level := left[0]) > 0:
                left[0] -= 1
                context.call(os.write, 1, b"x")
                module.note(items, level)
            return super().write(text)

    with contextlib.redirect_stdout(Stream()):
        assert module.call(os.write, 1, b"x", seconds=0) == 1
        assert wait_until(lambda: left[0] == 0)
        context.call(int)
    assert sorted(items) == list(range(1, depth + 1))
    assert module.note(items, "end")[-1] == "end"


def test_what_reads_a_reply_asks_in_turn(module):
    """As the hash of a key in a result does: this side is in control again."""
    items, note, asked = [], module.note, []

    class Key(module.Key):
        def __hash__(self):
            if armed:
                asked.append(True)
                if len(asked) == 2:  # the first is the child's, as it makes the set
                    note(items, "hash")
            return 5

    armed, with_key = False, module.with_key
    key = Key(3)

    def callback(into):
        nonlocal armed
        assert into is items
        armed = True
        with_key(key)
        armed = False

    assert module.around(items, callback) == [1, "hash", 2] == items and len(asked) >= 2


def test_set_up_with_a_result_that_asks(tmp_path):
    """The hash of what a set-up call returns is no stranger."""
    with IsolationContext(restart="auto", rollback="off") as context:
        assert len(context.call(eval, "{type('K', (), {'__hash__': lambda self: 1})()}")) == 1
        context.restart()
        assert context.call(int) == 0


@pytest.mark.restarts
def test_an_idle_childs_signal_handler(module, tmp_path):
    """It is served inside of the next call, whose list its answer has, too."""
    items, note = [], module.note

    def callback():
        items.append("handler")
        return items

    module.at_the_next_alarm(callback, 0.05)
    time.sleep(0.2)  # the child has asked by then, or asks as it runs the call
    assert note(items, "call", 0.2)[-1] == "call"
    assert wait_until(lambda: len(module.outcomes) == 1) and sorted(items) == ["call", "handler"]


def test_a_finaliser_after_the_answer(module):
    """Of the child, and of the session: control has gone."""
    items, got, note = [1], [], module.note
    module.when_it_goes({1, 2}, items, lambda into: len(into))
    assert wait_until(lambda: list(module.outcomes) == [1])

    def callback(into, thing):
        weakref.finalize(thing, lambda: got.append(note(into, "finaliser")))

    assert module.calls_with_a_set(callback) == [1, 2]
    assert got == [[1, "finaliser"]] and items == [1]


@pytest.mark.restarts
def test_a_stream_asks_before_a_callback_is_served(module):
    """Whose frame is there already, and describes a class."""
    make, print_and_call = module.make, module.print_and_call

    class Stream(io.StringIO):
        number = None

        def write(self, text):
            number, self.number = self.number, None
            if number is not None:
                made.append(make(number))
            return super().write(text)

    for number in range(10):
        made, stream = [], Stream()
        stream.number = number
        with contextlib.redirect_stdout(stream):
            name = print_and_call(number, lambda new: type(new).__name__)
        assert wait_until(lambda: made)  # noqa: B023
        assert type(made[0]).__name__ == name == f"New{number}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_asks_during_a_restart(context, module):
    """It is refused, and the restart goes on."""
    wait = module.wait
    with IsolationContext(restart="auto", rollback="off") as other:
        other.call(eval, "print('set-up', flush=True)")
        other.load_module("math")
        unraisable, before = [], sys.unraisablehook
        sys.unraisablehook = lambda what: unraisable.append(what.exc_value)

        class Stream(io.StringIO):
            def write(self, text):
                other.call(int)
                return super().write(text)

        try:
            with contextlib.redirect_stdout(Stream()):
                other.restart()
        finally:
            sys.unraisablehook = before
        assert other.call(int) == 0 and wait(0) == 0
        assert all("is being started" in str(error) for error in unraisable)


# --- batches ----------------------------------------------------------------------------------------


def test_a_batch_inside_a_handler(context, module):
    items, seen = [], []

    def handler():
        module.wait(0)
        items.append("handler")
        with context.batch():
            seen.extend([module.note(items, "batch"), module.wait(0)])

    with alarm(handler, context):
        assert module.note(items, "call", 0.4) == ["call"]
    assert seen[1].result() == 0 and sorted(items) == ["batch", "call", "handler"]


def test_a_batch_inside_a_handler_sees_what_changes_between_its_calls(context, module):
    items, futures = [], []

    def handler():
        with context.batch():
            futures.append(module.note(items, 1))
            items.append("session")
            futures.append(module.note(items, 2))

    with alarm(handler, context):
        module.wait(0.4)
    assert [f.result() for f in futures] == [[1], [1, "session", 2]] and items == [1, "session", 2]


class Unreadable:
    """Cannot be made again over there."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_batch_that_the_child_cannot_read(context, module):
    """What came with it is at fault: all its calls fail of that, and none is waited for for ever."""
    register_value_type(Unreadable)
    items, futures, wait = [], [], module.wait

    def callback():
        items.append(Unreadable())
        with context.batch():
            futures.extend([wait(0), wait(0)])

    with pytest.raises(ValueError, match="no number"):
        module.note_around(items, callback, 0)
    with pytest.raises(ValueError, match="no number"):
        futures[0].result()
    assert futures[1].result() == 0  # made by a request of its own, as what is called inside of a call is
    assert wait(0) == 0


@pytest.mark.restarts
@pytest.mark.parametrize("seconds", [0, 0.4], ids=["next_life", "dead"])
def test_what_was_answered_before_a_death_inside_the_batch_stays(context, module, capsys, seconds):
    """A handler kills the child after it has answered; the answers were read meanwhile."""
    items, raised = [], []

    def handler():
        with pytest.raises(ProcessTerminationError) as caught:
            module.die(before=lambda: None)  # heard of after the answers: what libzmq has yet to send is lost
        raised.append(caught.value)
        if seconds == 0:
            module.wait(0)  # in the next life

    futures = []
    with pytest.raises(ValueError, match="mine"), alarm(handler, context):
        with context.batch():
            futures = [module.fail(0.4), module.note(items, 1), module.note(items, 2)]
    assert len(raised) == 1
    assert [f.result() for f in futures[1:]] == [[1], [1, 2]] and items == [1, 2]
    with pytest.raises(ValueError, match="mine"):
        futures[0].result()


@pytest.mark.restarts
def test_a_death_of_the_batch_inside_of_a_handler(context, module, tmp_path):
    """Calls before it keep their results; it is one error for the others, and one bundle that says the call."""
    context._bundles = str(tmp_path / "bundles")
    raised, wait = [], module.wait

    def handler():
        with pytest.raises(ProcessTerminationError) as caught:
            wait(0)
        raised.append(caught.value)

    futures = []
    with pytest.raises(ProcessTerminationError), alarm(handler, context):
        with context.batch():
            futures = [module.wait(0.4), module.die(), module.wait(0)]
    assert len(raised) == 1
    if context._transport == "auto":  # over ZeroMQ it may have been lost on the way
        assert futures[0].result() == 0.4
    errors = []
    for future in futures[1:]:
        with pytest.raises(ProcessTerminationError) as caught:
            future.result()
        errors.append(caught.value)
    assert errors[0] is errors[1] and "scoped.die" in str(errors[0])
    assert ["scoped.die" in name for name in os.listdir(tmp_path / "bundles")] == [True]


def test_a_handler_inside_a_batch_has_not_the_time_of_one_call(tmp_path):
    (tmp_path / "scoped.py").write_text(MODULE)
    with IsolationContext() as context:
        wait, seen = with_functions(context.load_module("scoped", [str(tmp_path)])).wait, []
        context.timeout = 2.5
        with alarm(lambda: seen.append(wait(0)), context):
            with context.batch():
                futures = [wait(0.9) for _ in range(4)]
        assert [f.result() for f in futures] == [0.9] * 4 and seen == [0]
        with pytest.raises(ProcessTimeoutError), alarm(lambda: seen.append(wait(0)), context):
            wait(60)


# --- what else was taken for granted ----------------------------------------------------------------


def test_a_module_attribute_that_a_stream_changes(module, monkeypatch):
    """An answer is not kept that is outdated when it has been read: a stream, which gets what was printed, has changed the
    attribute."""
    swap, print_later, asked = module.swap, module.print_later, []

    class Stream(io.StringIO):
        def write(self, text):
            if not asked:
                asked.append(swap())
            return super().write(text)

    before = sys.getswitchinterval()
    monkeypatch.setattr(sys, "stdout", Stream())
    for _ in range(20):
        asked.clear()
        swap()
        print_later(0.01)
        sys.setswitchinterval(10)  # so that no other thread comes first
        try:
            end = time.perf_counter() + 0.03
            while time.perf_counter() < end:
                pass
            module.f  # noqa: B018
        finally:
            sys.setswitchinterval(before)
        assert wait_until(lambda: asked)
        assert module.f.__name__ == module.call(eval, "f.__name__", module.__dict__, seconds=0)


def test_a_handler_while_a_context_is_set_up():
    """Nothing runs in a child before its jail is there."""
    seen = []

    def handler():
        seen.append(context._peer.state)
        with pytest.raises(ClientStateError, match="is being started"):
            context.call(int)

    def init():
        with alarm(handler, context):
            context.call(time.sleep, 0.4)

    context = IsolationContext(init=init)
    with context:
        assert context.call(int) == 0
    assert seen == ["running"]


@pytest.mark.parametrize("milliseconds", [2, 5, 10, 15, 20, 30, 50])
def test_a_handler_while_a_child_starts(milliseconds):
    """What it asks does not take the child's first frame away."""
    seen = []

    def handler():
        try:
            seen.append(context.call(int))
        except ClientStateError as error:
            seen.append(str(error))

    context = IsolationContext()
    with alarm(handler, seconds=milliseconds / 1000), context:
        assert context.call(int) == 0
        assert wait_until(lambda: seen)
    assert seen in ([0], [f"context {context.name!r} is being started"])


# --- checkpoints whose process dies -----------------------------------------------------------------


class Killing:
    """A peer whose copy dies as it takes over."""

    def __init__(self, peer, copy):
        self._peer, self._copy = peer, copy

    def take_over(self):
        os.kill(self._copy, signal.SIGKILL)
        return self._peer.take_over()

    def __getattr__(self, name):
        return getattr(self._peer, name)


def test_a_roll_back_to_a_copy_that_dies(context, module, monkeypatch, capsys):
    kept = context.load_module("collections").deque()
    context.checkpoint()
    copy = wait_until(lambda: context._peer.frozen_pid)
    with context._snapshots.hold(), monkeypatch.context() as patch:
        patch.setattr(context._snapshots, "_peer", Killing(context._peer, copy))
        with pytest.raises(ClientStateError, match="objects made in it before are lost"):
            context.rollback()
    with pytest.raises(StaleProxyError):
        kept.append(1)
    assert module.wait(0) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_transaction_whose_copy_dies(context, module, monkeypatch, when):
    with pytest.raises(KeyError) as caught, monkeypatch.context() as patch:
        with context.transaction():
            copy = wait_until(lambda: context._peer.frozen_pid)
            if when == "before":
                os.kill(copy, signal.SIGKILL)
                assert wait_until(lambda: not context._snapshots.ready)
            else:
                patch.setattr(context._snapshots, "_peer", Killing(context._peer, copy))
            raise KeyError("mine")
    assert [note.startswith("The transaction was not undone") for note in caught.value.__notes__] == [True]
    assert module.wait(0) == 0


def test_a_transaction_that_goes_on_after_a_death(context, module):
    kept = context.load_module("collections").deque()
    with pytest.raises(KeyError) as caught:
        with context.transaction():
            kept.append("undone")
            with pytest.raises(ProcessTerminationError):
                module.die()
            kept.append("later")
            raise KeyError("mine")
    assert list(kept) == ["later"] and "after its process had died was not undone" in caught.value.__notes__[0]
