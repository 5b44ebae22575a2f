"""Nothing grows: the quick version of tests/soak/run.py, and leaks that have a cause of their own."""

import gc
import importlib.util
import os
import sys
import weakref
from pathlib import Path

import pytest
from conftest import settled_counts, wait_until

from ipython_isolation import ProcessTerminationError

_spec = importlib.util.spec_from_file_location("isolation_soak", Path(__file__).parent / "soak" / "run.py")
soak = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(soak)


@pytest.mark.parametrize("rollback", ["auto", "off"])
def test_crash_cycles(rollback):
    cycles, allowed = 30, 2_000_000
    if rollback == "auto" and os.environ.get("IPYTHON_ISOLATION_TRANSPORT") == "zmq":
        allowed += cycles * 80_000  # objects of libzmq that a fork cannot free (docs/rollback.md)
    before, after, _ = soak.crash_cycles(cycles, rollback=rollback)
    assert soak.grown(before, after, allowed) == {}


def test_operations():
    before, after, _ = soak.operations(20_000, 4000)
    assert soak.grown(before, after, 2_000_000) == {}


def counts(context):
    both = {}
    for _ in range(2):
        gc.collect()
        theirs = context._peer.host_call("counts")
        both = {**{f"child {k}": theirs[k] for k in ("exports", "imports")}}
        both.update({k: context._peer.counts[k] for k in ("exports", "imports")})
    return both


def steady(context, action, times=20):
    """Runs the action until what it makes once is made; then it may leave nothing more."""
    for _ in range(3):
        action()
    before = settled_counts(lambda: counts(context))
    for _ in range(times):
        action()
    wait_until(lambda: counts(context) == before)
    return before, counts(context)


class Unpassable:
    def __reduce__(self):
        raise TypeError("not this one")


class Failing(list):
    def __iter__(self):
        raise RuntimeError("in the middle of encoding")


class Mine(Exception):
    pass


def raising(error):
    raise error


def actions(context):
    """Not here: classes made anew each time. A mirrored class is kept for the life of its context."""
    collections, functools = context.load_module("collections"), context.load_module("functools")
    ordered = collections.OrderedDict(a=1)

    def attempt(function, *args):
        try:
            function(*args)
        except ProcessTerminationError:
            raise
        except Exception:
            pass

    return {
        "an attribute that is not there": lambda: attempt(lambda: ordered.nothing),
        "an exception of the child": lambda: attempt(lambda: ordered[object()]),
        "an exception of the session": lambda: attempt(
            functools.reduce, lambda a, b: raising(LookupError(object(), ordered)), [1, 2]
        ),
        "an exception of a class of the session": lambda: attempt(
            functools.reduce, lambda a, b: raising(Mine(ordered)), [1, 2]
        ),
        "arguments that cannot be encoded": lambda: attempt(
            functools.partial, object(), [object(), ordered], Failing([1]), Unpassable()
        ),
        "a result that cannot be encoded": lambda: attempt(
            functools.reduce, lambda a, b: [object(), ordered, Unpassable()], [1, 2]
        ),
        "functions": lambda: functools.partial(lambda: 3)(),
        "iterators": lambda: [next(iter(ordered)), list(ordered.items())],
        "a deep callback": lambda: functools.reduce(
            lambda a, b: functools.reduce(lambda c, d: [ordered, c, object()], [a, b]), [1, 2, 3]
        ),
        "containers both ways": lambda: context.call(eval, "[x.append({1: [object()]}) for x in y]", {"y": [[], []]}),
    }


NAMES = [
    "an attribute that is not there", "an exception of the child", "an exception of the session",
    "an exception of a class of the session", "arguments that cannot be encoded", "a result that cannot be encoded",
    "functions", "iterators", "a deep callback", "containers both ways",
]  # fmt: skip


@pytest.mark.restarts  # what a frozen copy knows of is kept for it
@pytest.mark.parametrize("name", NAMES)
def test_handles(context, name):
    before, after = steady(context, actions(context)[name])
    assert after == before


def test_all_of_them_are_run(context):
    assert list(actions(context)) == NAMES


def test_releases_travel_by_themselves(context, tmp_path):
    """Within a moment after the last use, without another request."""
    mark = tmp_path / "released"
    source = f"class Marks:\n    def __del__(self, open=open):\n        open({str(mark)!r}, 'w').close()\n"
    (tmp_path / "marking.py").write_text(source)
    marking = context.load_module("marking", [str(tmp_path)])
    for _ in range(3):
        made = marking.Marks()
        assert not mark.exists()
        wait_until(lambda: False, 0.3)  # the service threads are asleep
        del made
        assert wait_until(mark.exists)
        mark.unlink()


@pytest.mark.restarts  # what a frozen copy knows of is kept for it
def test_the_childs_releases_travel_by_themselves(context):
    class Mine:
        pass

    mine = Mine()
    gone = weakref.ref(mine)
    held = context.load_module("collections").deque([mine])
    del mine
    gc.collect()
    assert gone() is not None
    held.clear()
    requests = context._peer.requests
    assert wait_until(lambda: (gc.collect(), gone() is None)[1])
    assert context._peer.requests == requests
