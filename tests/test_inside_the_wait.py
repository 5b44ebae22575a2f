"""What runs in the session while a call waits (signal handlers, streams, finalisers) may use the same
context; and other things that went wrong once."""

import contextlib
import gc
import io
import re
import signal
import struct
import sys
from pathlib import Path

import numpy
import pytest
from conftest import alarm

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError, ProtocolError, byvalue

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def zoo(context):
    return context.load_module("zoo")


def test_a_signal_handler_asks_the_child(context, zoo):
    time = context.load_module("time")
    said = []
    with alarm(lambda: said.append(zoo.identity("inner")), context):
        time.sleep(0.4)
    assert said == ["inner"] and zoo.identity("after") == "after"


MAKER = """
import time

class New:
    pass

class Newer(New):
    pass

def note(into, item, seconds=0):
    time.sleep(seconds)
    into.append(item)
    return [item]

def make(seconds=0, newer=False):
    time.sleep(seconds)
    print("made", flush=True)
    return Newer() if newer else New()
"""


@pytest.mark.parametrize("where", ["handler", "stream"])
def test_what_is_asked_inside_meets_a_new_class(context, tmp_path, where):
    """The outer reply, which comes first, describes it."""
    (tmp_path / "maker.py").write_text(MAKER)
    maker, made = context.load_module("maker", [str(tmp_path)]), []
    make = maker.make

    class Stream(io.StringIO):
        asked = False

        def write(self, text):
            if not self.asked:
                self.asked = True
                made.append(make())
            return super().write(text)

    if where == "handler":
        with alarm(lambda: made.append(make()), context):
            outer = make(0.4)
    else:
        with contextlib.redirect_stdout(Stream()):
            outer = make()
    assert type(outer) is type(made[0]) and type(outer).__name__ == "New" and outer is not made[0]


@pytest.mark.parametrize("where", ["handler", "stream"])
def test_what_is_asked_inside_a_batch_meets_a_new_class(context, tmp_path, where):
    """The replies to the batch's later calls come first, and describe it."""
    (tmp_path / "maker.py").write_text(MAKER)
    maker, made = context.load_module("maker", [str(tmp_path)]), []
    make = maker.make

    class Stream(io.StringIO):
        asked = where != "stream"

        def write(self, text):
            if not self.asked:
                self.asked = True
                made.append(make(newer=True))
            return super().write(text)

    handler = (lambda: made.append(make(newer=True))) if where == "handler" else (lambda: None)
    with alarm(handler, context), contextlib.redirect_stdout(Stream()):
        with context.batch():
            futures = [make(0.4), make(), make(newer=True), make(0, True)]
    assert [type(f.result()).__name__ for f in futures] == ["New", "New", "Newer", "Newer"]
    assert [type(m).__name__ for m in made] == ["Newer"] and isinstance(made[0], type(futures[0].result()))
    assert type(made[0]) is type(futures[2].result())


def test_what_is_asked_inside_a_batch_changes_lists(context, tmp_path):
    """Each call changes its own argument, whoever reads the reply."""
    (tmp_path / "maker.py").write_text(MAKER)
    note = context.load_module("maker", [str(tmp_path)]).note
    lists, inner, results = [[] for _ in range(4)], [], []

    def handler():
        results.append(note(inner, "inner"))
        results.append(note(lists[3], "handler"))

    with alarm(handler, context), context.batch():
        futures = [note(lists[i], i, 0.4 if i == 0 else 0) for i in range(3)]
    assert [f.result() for f in futures] == [[0], [1], [2]] and results == [["inner"], ["handler"]]
    assert lists == [[0], [1], [2], ["handler"]] and inner == ["inner"]


def test_a_stream_that_asks_for_ever(context, zoo):
    """As in-process; and nothing of it is on the C stack that makes that too small."""

    class Stream(io.StringIO):
        def write(self, text):
            zoo.print_out("again")
            return super().write(text)

    with contextlib.redirect_stdout(Stream()), pytest.raises(RecursionError):
        zoo.print_out("once")
    assert zoo.identity(1) == 1


def test_a_stream_that_lives_in_the_child(context, zoo):
    stream = context.load_module("io").StringIO()
    with contextlib.redirect_stdout(stream):
        zoo.print_out("into the child")
    assert "into the child" in stream.getvalue()


def test_a_finaliser_asks_the_child(zoo, monkeypatch):
    class Held:
        def __init__(self):
            self.animal, self.me = zoo.Animal("rex"), self

        def __del__(self):
            asked.append(self.animal.name)

    class Stream(io.StringIO):
        def write(self, text):
            gc.collect()
            return super().write(text)

    asked = []
    Held()
    monkeypatch.setattr(sys, "stdout", Stream())
    zoo.print_out("text")
    assert asked == ["rex"] and zoo.identity(1) == 1


@pytest.mark.parametrize("seconds", [0.01, 0.03, 0.06])
def test_a_signal_handler_closes_a_context_that_starts(seconds):
    context = IsolationContext()
    closed = []
    with alarm(lambda: (context.close(), closed.append(True)), seconds=seconds):
        with pytest.raises(ClientStateError):
            while True:
                context.call(len, ())
    assert closed == [True]


def test_a_session_subclass_after_a_restart(context, zoo):
    class Mine(zoo.Animal):
        def __init__(self, name):
            super().__init__(name)
            self.loud = name.upper()

    assert Mine("a").loud == "A"
    context.restart()
    mine = Mine("b")
    assert (mine.name, mine.loud, isinstance(mine, zoo.Animal)) == ("b", "B", True)


def test_super_as_an_argument(zoo):
    class Mine(zoo.Dog):
        def speak(self):
            return "mine and " + zoo.call(super().speak)

    assert Mine("rex").speak() == "mine and " + zoo.Dog("rex").speak()


def test_byvalue_of_a_module_that_looks_itself_up(context, tmp_path, monkeypatch):
    (tmp_path / "with_dataclass.py").write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from ipython_isolation import import_isolated

    module = import_isolated("with_dataclass", context=context)
    copy = byvalue(module.Point(3))
    assert copy.x == 3 and type(copy) is not module.Point and sys.modules["with_dataclass"] is module


def test_overlapping_arrays_both_write(context):
    a = numpy.zeros(2000)
    context.call(_write_both, a[500:], a[:600])
    assert a[500] == 9 and a[0] == 1


def _write_both(x, y):
    x[0] = 9
    y[0] = 1


def test_a_class_as_self_of_reduce(zoo):
    with pytest.raises((TypeError, AttributeError)):
        zoo.Animal.__reduce__()
    with pytest.raises((TypeError, AttributeError)):
        zoo.Point.__reduce_ex__(zoo.Point)


def reply_header(context):
    """Of a reply of this life that nobody waits for."""
    version = int(re.search(r"define WIRE_VERSION (\d+)", (ROOT / "ext" / "wire.h").read_text())[1])
    return struct.pack("<BBHIIIQ", version, 0, 1, context.info()["epoch"], 1, 0, 99)


def tag(name):
    enum = re.search(r"enum tag \{(.*?)\n\};", (ROOT / "ext" / "codec.h").read_text(), re.S)[1]
    return re.findall(r"\bTAG_[A-Z_]+\b(?= = |,)", enum).index(name)


def test_bytes_never_become_pointers(context):
    context.start()
    header, ndarray = reply_header(context), tag("TAG_NDARRAY")
    dtype = struct.pack("<BB", tag("TAG_ASCII"), 1) + b"O"
    body = struct.pack("<BQB", ndarray, 0, 3) + dtype + struct.pack("<QQBBQ", 1, 1, 0, 8, 0x41414141)
    with pytest.raises(ProtocolError):
        context._peer._feed(header + body)
    good = struct.pack("<BQB", ndarray, 0, 3) + dtype.replace(b"O", b"l") + struct.pack("<QQBBQ", 1, 1, 0, 8, 7)
    assert context._peer._feed(header + good).tolist() == [7]


def test_a_module_without_a_handle(context):
    """A garbled one: its number ends before its name begins."""
    context.start()
    modules = set(context._peer.modules)
    header, module = reply_header(context), tag("TAG_MODULE")
    for body in (bytes((module, 254, 3, 254, 3)), struct.pack("<BQBBB", module, 0, 1, 254, 3)):
        with pytest.raises(ProtocolError):
            context._peer._feed(header + body)
    assert set(context._peer.modules) == modules


def test_the_next_call_after_a_death_inside_a_handler(context, zoo):
    deaths = context.load_module("_deaths")
    time = context.load_module("time")
    seen = []

    def handler():
        try:
            deaths.segfault()
        except ProcessTerminationError as error:
            seen.append(error.signal)

    with alarm(handler, context):
        time.sleep(0.3)
    assert seen == [signal.SIGSEGV] and zoo.identity(2) == 2
