"""What is lost with the child says so at once; what has a name lives on."""

import copy
import os
import pickle
import signal

import pytest
from behaviour.harness import raises

import ipython_isolation
from ipython_isolation import ClientStateError, StaleProxyError

pytestmark = pytest.mark.restarts  # a frozen copy would keep what is to be lost


def crash(context):
    zoo = context.load_module("zoo")
    error = raises(zoo.call, os.kill, context.remote_pid, signal.SIGKILL)
    assert isinstance(error, ipython_isolation.ProcessTerminationError)


@pytest.fixture
def lost(context):
    """The zoo after a crash, and proxies from before."""
    zoo = context.load_module("zoo")
    things = {
        "instance": zoo.Animal("rex"), "list": zoo.get_held_list(), "dict": zoo.get_held_dict(), "bag": zoo.Bag(),
        "generator": zoo.count_up(3), "closure": zoo.make_adder(1), "number": zoo.Meters(2.5), "pair": zoo.Pair(1, 2),
    }  # fmt: skip
    things["method"] = things["instance"].introduce
    crash(context)
    return context, zoo, things


USES = {
    "attribute": lambda t: t["instance"].name,
    "setting": lambda t: setattr(t["instance"], "name", 1),
    "method": lambda t: t["instance"].introduce(),
    "bound method": lambda t: t["method"](),
    "item": lambda t: t["list"][0],
    "length": lambda t: len(t["dict"]),
    "in": lambda t: "a" in t["bag"],
    "next": lambda t: next(t["generator"]),
    "call": lambda t: t["closure"](1),
    "iteration": lambda t: list(t["list"]),
    "equality": lambda t: t["dict"] == {},
    "copy": lambda t: copy.copy(t["instance"]),
    "pickle": lambda t: pickle.dumps(t["instance"]),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_lost_object(lost, use):
    context, zoo, things = lost
    for _ in range(2):
        error = raises(USES[use], things)
        assert isinstance(error, StaleProxyError) and isinstance(error, ClientStateError), repr(error)
        assert "lost" in str(error)


def test_a_lost_object_as_argument(lost):
    context, zoo, things = lost
    assert isinstance(raises(zoo.identity, things["instance"]), StaleProxyError)
    assert isinstance(raises(zoo.identity, [things["list"]]), StaleProxyError)
    assert zoo.identity(5) == 5


def test_repr_and_type_of_lost_objects(lost):
    context, zoo, things = lost
    assert "lost" in repr(things["instance"]) and "Animal" in repr(things["instance"])
    assert "Bag" in str(things["bag"]) and "lost" in repr(things["dict"])
    assert type(things["instance"]) is zoo.Animal and isinstance(things["instance"], zoo.Animal)
    assert things["instance"] is things["instance"] and {id(things["list"])}


def test_values_of_lost_objects_stay(lost):
    context, zoo, things = lost
    assert float(things["number"]) == 2.5 and tuple(things["pair"]) == (1, 2)


def test_names_are_bound_again(lost):
    context, zoo, things = lost
    assert zoo.Animal("max").introduce() == "max says ..."
    assert zoo.Dog.Collar.size == 7 and zoo.CONSTANT == 42 and zoo.use is zoo.use


def test_classes_and_functions_held_from_before(context):
    zoo = context.load_module("zoo")
    Animal, identity, error = zoo.Animal, zoo.identity, zoo.CageError
    named = zoo.Animal.named

    class Cat(Animal):
        def speak(self):
            return "meow"

    assert Cat("a").introduce() == "a says meow"
    crash(context)
    assert identity(3) == 3 and Animal("x").name == "x" and Animal is zoo.Animal
    assert Cat("tom").introduce() == "tom says meow" and isinstance(Cat("b"), Animal)
    assert named("n").name == "n"
    with pytest.raises(error):
        zoo.fail_with_attributes()
    assert type(raises(zoo.fail_with_attributes)) is error


def test_a_bare_context_stays_dead(bare_context):
    zoo = bare_context.load_module("zoo")
    a = zoo.Animal("rex")
    crash(bare_context)
    for use in (lambda: zoo.identity(1), lambda: a.name, lambda: zoo.Animal("x"), lambda: bare_context.load_module("zoo")):
        assert isinstance(raises(use), ClientStateError)
    bare_context.restart()
    assert zoo.identity(1) == 1 and zoo.Animal("x").name == "x"
    assert isinstance(raises(lambda: a.name), StaleProxyError)


def test_after_close(context):
    zoo = context.load_module("zoo")
    a = zoo.Animal("rex")
    context.close()
    for use in (lambda: a.name, lambda: zoo.identity(1), lambda: zoo.Animal("x")):
        assert isinstance(raises(use), ClientStateError)
    assert "lost" in repr(a) or "Animal" in repr(a)
    del a


def test_two_contexts_do_not_mix(context, bare_context):
    one, other = context.load_module("zoo"), bare_context.load_module("zoo")
    a = one.Animal("rex")
    assert one.Animal is not other.Animal and not isinstance(a, other.Animal)
    assert other.read_attribute(a, "name") == "rex"
    with pytest.raises(TypeError):

        class Both(one.Animal, other.Point):
            pass

        Both("x")


def test_types_of_isolated_modules_stay_isolated(context):
    collections = context.load_module("collections")
    assert ipython_isolation.isproxy(collections.OrderedDict(a=1)) and ipython_isolation.isproxy(collections.deque("ab"))
    context.restart()
    assert ipython_isolation.isproxy(collections.OrderedDict(a=1)) and ipython_isolation.isproxy(collections.deque("ab"))
