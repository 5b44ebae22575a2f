"""`with context.batch():` calls give futures, many travel in one request, and nothing of that is lost."""

import gc
import operator
import os
import statistics
import threading
import time

import pytest
from conftest import settled_counts, wait_until
from test_interrupt import Session

import ipython_isolation
from ipython_isolation import ClientStateError, Future, IsolationContext, ProcessTerminationError, ProcessTimeoutError


class Unreadable:
    """Crosses by value, and cannot be made again."""

    def __reduce_ex__(self, protocol):
        return operator.floordiv, (1, 0)


@pytest.fixture(params=["auto", "zmq"])
def context(request):
    with IsolationContext(restart="auto", rollback="off", transport=request.param) as context:
        yield context


@pytest.fixture
def zoo(context):
    return context.load_module("zoo")


@pytest.fixture
def math(context):
    module = context.load_module("math")
    module.sqrt, module.pow, module.factorial  # looked up once
    return module


def requests(context):
    return context.info()["requests"]


def settled(context):
    """How many requests there have been, when the child knows what pytest has changed in the environment."""
    context.find_module("math")
    return requests(context)


def test_many_calls_are_one_request(context, math):
    before = settled(context)
    with context.batch():
        roots = [math.sqrt(i * i) for i in range(300)]
        assert all(type(root) is Future and not root.done() for root in roots)
        assert requests(context) == before
    assert requests(context) - before == 1
    assert all(root.done() for root in roots)
    assert [root.result() for root in roots] == [float(i) for i in range(300)]
    assert [root.exception() for root in roots] == [None] * 300
    assert requests(context) - before == 1


def test_functions_methods_classes_in_order(context, zoo):
    with context.batch():
        animal = zoo.Animal("rex", legs=3)
    rex = animal.result()
    with context.batch():
        first = rex.introduce()
        rex.rename("max")
        second = rex.introduce()
        born = zoo.Animal.born()
        added = rex.add(1, 2, c=3)
    assert first.result() == "rex says ..." and second.result() == "max says ..."
    assert added.result() == zoo.Animal.add(1, 2, c=3)
    assert type(born) is Future and isinstance(rex, zoo.Animal) and rex.legs == 3


def test_a_future_as_argument_costs_nothing(context, math, zoo):
    zoo.identity, zoo.Animal
    before = settled(context)
    with context.batch():
        x = math.sqrt(16.0)
        y = math.sqrt(x)
        nested = zoo.identity([x, {"y": y}, (x, y)])
        animal = zoo.Animal("rex")
        same = zoo.identity(animal)
    assert requests(context) - before == 1
    assert y.result() == 2.0 and same.result() is animal.result()
    assert requests(context) - before == 1
    value = nested.result()
    assert value[0] is x or value[0] == 4.0
    assert math.sqrt(y) == math.sqrt(2.0)  # one that is known is its result, also outside of the block


def test_the_first_result_asked_for_sends(context, math):
    with context.batch():
        a, b = math.sqrt(4.0), math.sqrt(9.0)
        assert a.result() == 2.0 and b.done()
        c = math.sqrt(16.0)
        assert not c.done()
    assert c.result() == 4.0


def test_what_needs_an_answer_keeps_the_order(context, zoo):
    rex = zoo.Animal("rex")
    with context.batch():
        rename = rex.rename("max")
        assert rex.name == "max" and rename.done()
        held = zoo.identity(rex)
        rex.name = "tom"
        assert held.done()
        third = rex.introduce()
        assert isinstance(rex, zoo.Animal)
    assert third.result() == "tom says ..."


def test_mutable_arguments_are_written_back(context, zoo):
    items, other = [1], [0]
    with context.batch() as batch:
        zoo.append_to(items, 2)
        zoo.append_to(items, 3)  # sees what the first has done
        assert items == [1]
        batch.flush()
        assert items == [1, 2, 3]
        zoo.append_to(items, 4)
        items.append("here")  # what changed here is what a later call sees
        zoo.append_to(items, 5)
        for i in range(300):
            zoo.append_to(other, i)
    assert other == [0, *range(300)]
    assert items == [1, 2, 3, 4, "here", 5] or items == [1, 2, 3, "here", 4, 5]


def test_arguments_are_read_at_the_call(context, zoo):
    data = bytearray(b"before")
    with context.batch():
        kept = zoo.identity(bytes(data))
        data[:] = b"after!"
    assert kept.result() == b"before"


def test_big_arguments_are_sent_at_once(context, zoo):
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(100_000)
    with context.batch():
        first = zoo.identity(array)
        assert first.done()
        small = [zoo.identity(f"{i:1000}") for i in range(200)]
        assert small[0].done() and not small[-1].done()
    assert [f.result() for f in small] == [f"{i:1000}" for i in range(200)]


def test_big_results_do_not_fill_the_way_back(context, zoo):
    text = context.load_module("operator")
    with context.batch():
        values = [text.mul("y" * 10, 200) for _ in range(900)]  # 1.8 MB while nobody reads
    assert [v.result() for v in values] == ["y" * 2000] * 900
    if context.info()["transport"] == "lane":
        before = settled(context)
        assert text.mul(2, 3) == 6 and requests(context) - before == 1


def test_a_call_that_raises_stops_no_other(context, math):
    with context.batch():
        bad, good = math.sqrt(-1.0), math.sqrt(9.0)
        assert isinstance(bad.exception(), ValueError)
    assert good.result() == 3.0
    with pytest.raises(ValueError, match="math domain"):
        bad.result()


def test_what_nobody_asked_for_is_raised_at_the_end(context, math):
    with pytest.raises(ValueError, match="math domain"):
        with context.batch():
            math.sqrt(-1.0)
            good = math.sqrt(9.0)
    assert good.result() == 3.0
    with pytest.raises(ExceptionGroup, match="2 calls of a batch failed") as caught:
        with context.batch():
            math.sqrt(-1.0)
            math.factorial(-1)
            math.sqrt(1.0)
    notes = [error.__notes__[0] for error in caught.value.exceptions]
    assert "call 1" in notes[0] and "math.sqrt" in notes[0] and "call 2" in notes[1] and "math.factorial" in notes[1]


def test_what_depends_on_a_failure_fails_of_it(context, math):
    with pytest.raises(ValueError) as caught:
        with context.batch():
            bad = math.sqrt(-1.0)
            worse = math.sqrt(bad)
            worst = math.pow(2.0, worse)
            good = math.sqrt(4.0)
    assert bad.exception() is worse.exception() is worst.exception() is caught.value
    assert good.result() == 2.0


def test_left_by_an_exception(context, math, zoo):
    items = []
    with pytest.raises(KeyError) as caught:
        with context.batch():
            zoo.append_to(items, 1)
            math.sqrt(-1.0)
            raise KeyError("mine")
    assert items == [1] and "call 2 of the batch, math.sqrt, failed too: ValueError" in caught.value.__notes__[0]


def test_left_by_an_interrupt_drops_what_is_pending(context, zoo):
    items = []
    with pytest.raises(KeyboardInterrupt):
        with context.batch():
            future = zoo.append_to(items, 1)
            raise KeyboardInterrupt
    assert items == []
    with pytest.raises(ClientStateError, match="not made"):
        future.result()
    assert zoo.identity(1) == 1


def test_an_argument_that_cannot_be_passed(context, zoo):
    deep = ()
    for _ in range(100_000):
        deep = (deep,)
    items = [1]
    with context.batch():
        first = zoo.append_to(items, 2)
        with pytest.raises(RecursionError):
            zoo.append_to([items, lambda: None], deep)
        last = zoo.append_to(items, 3)
    assert first.exception() is last.exception() is None and items == [1, 2, 3]
    with context.batch():
        with pytest.raises(RecursionError):
            zoo.identity(deep)
    while deep:
        (deep,) = deep  # by and by, and not all at once


def test_arguments_that_cannot_be_read_over_there(context, zoo):
    ipython_isolation.register_value_type(Unreadable)
    with pytest.raises(ExceptionGroup):
        with context.batch():
            first = zoo.identity(1)
            bad = zoo.identity((2, Unreadable()))
            rest = zoo.identity(3)
    assert first.result() == 1 and isinstance(bad.exception(), ZeroDivisionError)
    assert isinstance(rest.exception(), ClientStateError) and "arguments of an earlier one" in str(rest.exception())
    with context.batch():
        again = zoo.identity(4)
    assert again.result() == 4


def test_a_death(context, math):
    deaths = context.load_module("buggy")
    with pytest.raises(ProcessTerminationError, match=r"died in buggy\.dragons_here \(call 3 of the batch\)") as caught:
        with context.batch():
            before = [math.sqrt(4.0), math.sqrt(9.0)]
            dead = deaths.dragons_here()
            after = [math.sqrt(16.0), math.sqrt(before[0])]
    assert dead.exception() is caught.value
    assert all(future.exception() is caught.value for future in after)
    if context._transport == "auto":  # over ZeroMQ they may have been lost on the way
        assert [future.result() for future in before] == [2.0, 3.0]
    with context.batch():
        again = math.sqrt(25.0)  # in another life
    assert again.result() == 5.0 and context.info()["crashes"] == 1


def test_what_was_made_before_a_death_lives_on():
    with IsolationContext(restart="auto", rollback="auto") as context:
        zoo, buggy = context.load_module("zoo"), context.load_module("buggy")
        rex = zoo.Animal("rex")
        context.checkpoint()
        with pytest.raises(ProcessTerminationError):
            with context.batch():
                rex.rename("max")
                buggy.dragons_here()
        with context.batch():
            name = rex.introduce()
        assert name.result() in ("rex says ...", "max says ...")  # as it was when it was copied


def test_a_restart_in_the_block(context, math):
    with context.batch():
        a = math.sqrt(4.0)
        context.restart()
        assert a.result() == 2.0  # before it
        b = math.sqrt(9.0)
    assert b.result() == 3.0


def test_closed_in_the_block(context, math):
    with pytest.raises(ClientStateError, match="not made"):
        with context.batch():
            math.sqrt(4.0)
            context.close()


def test_nested(context, math):
    with context.batch() as outer:
        a = math.sqrt(4.0)
        with pytest.raises(ValueError):
            with context.batch():
                assert a.done()
                b = math.sqrt(a)
                math.sqrt(-1.0)
        c = math.sqrt(b)
        outer.flush()
        assert c.done()
    assert c.result() == 2.0**0.25


def test_other_threads_and_contexts(context, math):
    seen = []
    with IsolationContext() as other, context.batch():
        pending = math.sqrt(4.0)

        def work():
            seen.append(math.sqrt(9.0))
            with pytest.raises(ClientStateError, match="thread"):
                pending.result()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        theirs = other.load_module("math")
        assert theirs.sqrt(25.0) == 5.0
        with pytest.raises(ClientStateError, match="no result yet"):
            theirs.sqrt(pending)
        assert not pending.done()
    assert seen == [3.0] and pending.result() == 2.0


def test_in_threads_of_their_own(context, math):
    results = {}

    def work(n):
        for _ in range(20):
            with context.batch():
                futures = [math.sqrt(float(i + n)) for i in range(50)]
            results[n] = [f.result() for f in futures]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == {n: [(i + n) ** 0.5 for i in range(50)] for n in range(4)}


def test_callbacks(context, zoo, math):
    """What the session is called back for gets real results, and can have batches of its own."""
    functools = context.load_module("functools")
    seen = []

    def call_back(total, x):
        root = math.sqrt(x)
        with context.batch():
            inner = [math.sqrt(root), math.sqrt(16.0)]
        seen.append((root, inner[0].result(), inner[1].result()))
        return total + root

    with context.batch():
        total = functools.reduce(call_back, [16.0, 81.0], 0.0)
        more = functools.reduce(call_back, [1.0], total)
    assert (total.result(), more.result()) == (13.0, 14.0)
    assert seen == [(4.0, 2.0, 4.0), (9.0, 3.0, 4.0), (1.0, 1.0, 4.0)]


def test_a_time_limit_is_each_call_s(context):
    """Only the sum of the short ones is more than the limit."""
    sleep = context.load_module("time").sleep
    context.configure(timeout=3)
    with pytest.raises(ProcessTimeoutError):
        with context.batch():
            short = [sleep(0.1) for _ in range(32)]
            sleep(30)
            last = sleep(0.01)
    assert [f.result() for f in short] == [None] * 32 and last.result() is None


def test_changes_of_the_session_are_seen_in_order(context, tmp_path, monkeypatch):
    posix = context.load_module("posix")
    before = os.getcwd()
    with context.batch():
        first = posix.getcwd()
        monkeypatch.chdir(tmp_path)
        second = posix.getcwd()
    assert (first.result(), second.result()) == (before, str(tmp_path))


def test_bad_use(context, math):
    batch = context.batch()
    with pytest.raises(ClientStateError, match="inside"):
        batch.flush()
    with batch:
        future = math.sqrt(4.0)
        with pytest.raises(TypeError, match="neither true nor false"):
            bool(future)
        with pytest.raises(AttributeError, match=r"use result\(\)\.real"):
            future.real
        with pytest.raises(TypeError):
            future + 1
        assert repr(future) == "<Future of call 1 of a batch, pending>"
    assert repr(future) == "<Future of call 1 of a batch, done>"
    with pytest.raises(ClientStateError, match="once"):
        batch.__enter__()
    with pytest.raises(TypeError):
        Future()
    context.close()
    with pytest.raises(ClientStateError):
        context.batch()


def test_exceptions_and_classes_are_made_at_once(context, zoo):
    json = context.load_module("json")
    with context.batch():
        with pytest.raises(json.JSONDecodeError):
            raise json.JSONDecodeError("bad", "doc", 0)
        collections = context.load_module("collections")
        ordered = collections.OrderedDict(a=1).result()
        assert dict(ordered) == {"a": 1} and {**ordered} == {"a": 1}


def test_nothing_is_left(context, zoo):
    """Handles of what was passed and returned are given back."""
    def exports():
        gc.collect()
        return context._peer.host_call("counts")["exports"], context._peer.counts["exports"]

    def work():
        with context.batch():
            animals = [zoo.Animal(str(i)) for i in range(50)]
            [zoo.identity(animal) for animal in animals]
            [zoo.identity(print) for _ in range(50)]
            zoo.identity(lambda: None)

    work()
    before = settled_counts(exports)
    for _ in range(5):
        work()
    assert wait_until(lambda: exports() == before), (before, exports())


def test_it_is_worth_it():
    """Where each call alone waits for libzmq, one in a batch takes a fraction of the time; medians of both in turn."""
    context = IsolationContext(transport="zmq")
    math = context.load_module("math")
    batched, single, n = [], [], 300
    for _ in range(15):
        start = time.perf_counter()
        with context.batch():
            for _ in range(n):
                math.sqrt(4.0)
        batched.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(n):
            math.sqrt(4.0)
        single.append(time.perf_counter() - start)
    assert statistics.median(batched) < statistics.median(single) / 1.5


def test_an_interrupt():
    session = Session("""
        futures = []
        def tell():
            while not (futures and futures[0].done()):
                time.sleep(0.01)
            say("the first is done")
        def work():
            global futures
            with context.batch():
                futures = [clock.sleep(0), clock.sleep(100), clock.sleep(100)]
        threading.Thread(target=tell).start()
        attempt(work)
        say("then", [type(f.exception()).__name__ for f in futures], clock.sleep(0))
        with context.batch():
            f = clock.sleep(0)
        say("after", f.result())
    """)
    session.expect("ready")
    session.expect("the", "first", "is", "done")
    session.interrupt()
    assert session.expect("done", "KeyboardInterrupt")
    first, second, third, slept = session.expect("then")
    assert (first, second, slept) == ("['NoneType',", "'KeyboardInterrupt',", "None")
    assert third in ("'ClientStateError']", "'KeyboardInterrupt']")  # not made; or just begun
    session.expect("after", "None")
    session.process.stdout.close()
    assert session.process.wait(20) == 0, session.process.stderr.read()
    session.process.stderr.close()


def test_what_is_printed_meanwhile_is_of_no_module(capfd):
    """One module of the child is muted: the output of a batch, whose calls run ahead of what is read, is shown."""
    with IsolationContext(restart="auto", rollback="off") as context:
        talker, zoo = context.load_module("talker"), context.load_module("zoo")
        context.mute_module("zoo")
        for _ in range(20):
            with context.batch():
                animal = zoo.Animal("rex")
                said = talker.say("heard")
                animal = zoo.Animal("max")
            said.result()
            del animal, said
        talker.say("last")
    assert capfd.readouterr().out.count("heard") == 20


def test_a_batch_of_an_earlier_life(capfd):
    """What it would have sent is not taken back from the life that a frozen copy has begun meanwhile."""
    with IsolationContext(restart="auto") as context:
        deaths = context.load_module("_deaths")
        kept = context.load_module("collections").deque()

        def call():
            return 5

        kept.append(call)
        context.checkpoint()
        with context._snapshots.hold():
            begun, go = threading.Event(), threading.Event()
            raised = []

            def other():
                try:
                    with context.batch():
                        kept.append(call)
                        begun.set()
                        go.wait(30)
                except ClientStateError as error:
                    raised.append(str(error))

            thread = threading.Thread(target=other)
            thread.start()
            begun.wait(30)
            with pytest.raises(ProcessTerminationError):
                deaths.segfault()
            len(kept)
            go.set()
            thread.join()
            assert "the process it was for has ended" in raised[0]
            assert context.call(lambda kept: [one() for one in kept], kept) == [5]
