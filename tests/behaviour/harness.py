"""Runs a case with a plain module and with the isolated one, and compares what it gave.

The in-process run is the oracle: a case is a function of the module (or of a loader of modules) that
uses it as any user would and returns what it saw. Its own assertions hold in both runs.
"""

import contextlib
import functools
import importlib
import inspect
import re
import sys
import types

import pytest

import ipython_isolation

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class World:
    """One of the two ways that modules are loaded."""

    def __init__(self, context=None):
        self.context = context
        self.isolated = context is not None
        self._modules = {}
        self._before = {}

    def load(self, name):
        """The module, and it alone, is what `import name` finds during the case."""
        module, before = self._modules.get(name), sys.modules.get(name)
        if module is None:
            if self.isolated:
                module = self.context.load_module(name)
                assert ipython_isolation.isproxy(module)
            else:
                if name in ("zoo", "victim_pkg"):
                    sys.modules.pop(name, None)  # as fresh as the child's
                module = importlib.import_module(name)
                assert not ipython_isolation.isproxy(module)
            self._modules[name] = module
        self._before.setdefault(name, before)
        sys.modules[name] = module
        return module

    @contextlib.contextmanager
    def use(self):
        try:
            yield self
        finally:
            for name, module in self._before.items():
                if module is None:
                    sys.modules.pop(name, None)
                else:
                    sys.modules[name] = module
            self._before.clear()


def normal(value, seen=()):
    """What can be compared: structure, class names and values, without identity or addresses."""
    cls = value.__class__
    name = getattr(cls, "__qualname__", repr(cls))
    if id(value) in seen:
        return ("seen", len(seen) - seen.index(id(value)))
    inner = (*seen, id(value))
    if value is None or cls in (bool, int, str, bytes, range, slice, type(...), type(NotImplemented)):
        return (name, value)
    if cls in (float, complex):
        return (name, repr(value))
    if isinstance(value, BaseException):
        return (
            "exception",
            name,
            normal(value.args, inner),
            str(value),
            normal(getattr(value, "__notes__", None), inner),
            normal(value.__cause__, inner),
            normal(value.__context__, inner) if not value.__suppress_context__ else None,
        )
    if isinstance(value, type):
        return ("class", value.__module__, value.__qualname__)
    if isinstance(value, dict):
        return (name, [(normal(k, inner), normal(v, inner)) for k, v in value.items()])
    if isinstance(value, (set, frozenset)):
        return (name, sorted((normal(v, inner) for v in value), key=repr))
    if isinstance(value, bytearray):
        return (name, bytes(value))
    if isinstance(value, (list, tuple)) or name == "deque":
        return (name, [normal(v, inner) for v in value])
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return ("callable", value.__name__)
    return (name, _ADDRESS.sub("", repr(value)))


def outcome(case, world, fixtures):
    argument = world.load if next(iter(inspect.signature(case).parameters)) == "load" else None
    with world.use():
        if argument is None:
            argument = world.load(next(iter(inspect.signature(case).parameters)))
        try:
            return "returned", normal(case(argument, **fixtures))
        except AssertionError:
            raise
        except BaseException as error:
            # What the case let through: the class and the text.
            return "raised", normal(error)


def both(case):
    """Makes a test of a case. Its first parameter is called as the module that it wants (`zoo`), or
    `load`: a function from a module's name to the module."""
    first, *others = inspect.signature(case).parameters.values()

    @functools.wraps(case)
    def test(worlds, **fixtures):
        plain, isolated = worlds
        expected = outcome(case, plain, fixtures)
        requests = isolated.context.info()["requests"]
        got = outcome(case, isolated, fixtures)
        assert isolated.context.info()["requests"] > requests, "nothing was asked of the child"
        assert got == expected, f"\nisolated: {got}\nplain:    {expected}"

    worlds = inspect.Parameter("worlds", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([worlds, *others])
    return test


def raises(function, *args, **kwargs):
    """What a call raises: the exception."""
    try:
        function(*args, **kwargs)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.fixture(scope="module")
def worlds(shared_context):
    """The plain world and the isolated one."""
    return World(), World(shared_context)


def count(context, function, tries=5):
    """The fewest requests that it took: a machine that is busy makes pauses, whereupon things are asked again."""
    counts = []
    for _ in range(tries):
        context.call(len, ())  # what was known is not, any more
        before = context._peer.requests
        function()
        counts.append(context._peer.requests - before)
    return min(counts)


@pytest.fixture
def zoo(shared_context):
    """The isolated zoo alone."""
    return shared_context.load_module("zoo")


@pytest.fixture(autouse=True, scope="module")
def lent_strand(shared_context):
    """A thread of the child has called already: the thread that served it lives on. For the files that
    import this.
    """
    shared_context.call(exec, CALL_IN_THREAD, {})


CALL_IN_THREAD = """
import logging, threading
thread = threading.Thread(target=logging.getLogger("nobody").error, args=("a strand is lent",))
thread.start()
thread.join()
"""
