"""One operation is one request."""

import array
import collections
import copy
import json
import pickle

import pytest
from behaviour.harness import count, worlds, zoo  # noqa: F401

import ipython_isolation


class Session:
    pass


CASES = {
    "attribute": lambda o: o.animal.name,
    "attribute of a slot": lambda o: o.slotted.x,
    "property": lambda o: o.animal.mood,
    "setting an attribute": lambda o: setattr(o.animal, "name", "max"),
    "setting a property": lambda o: setattr(o.animal, "mood", "wild"),
    "method": lambda o: o.animal.introduce(),
    "method with arguments": lambda o: o.animal.rename("x"),
    "class method": lambda o: o.zoo.Animal.born(),
    "static method": lambda o: o.animal.add(1, 2, c=3),
    "function": lambda o: o.zoo.identity(5),
    "function with a list": lambda o: o.zoo.append_to([1], 2),
    "item": lambda o: o.bag["a"],
    "setting an item": lambda o: o.bag.__setitem__("b", 2),
    "setting an item by syntax": lambda o: exec("bag['b'] = 3", {"bag": o.bag}),
    "length": lambda o: len(o.bag),
    "in": lambda o: "a" in o.bag,
    "add": lambda o: o.recorder + 1,
    "reflected add": lambda o: 1 + o.recorder,
    "in place": lambda o: exec("r += 1", {"r": o.recorder}),
    "negation": lambda o: -o.recorder,
    "equality": lambda o: o.version == o.other,
    "hash": lambda o: hash(o.version),
    "order": lambda o: o.version < o.other,
    "truth": lambda o: bool(o.number),
    "int": lambda o: int(o.number),
    "call": lambda o: o.callable(1, 2),
    "repr": lambda o: repr(o.animal),
    "str": lambda o: str(o.number),
    "format": lambda o: f"{o.number:>4}",
    "next": lambda o: next(o.iterator),
    "next of a generator": lambda o: next(o.generator),
    "send": lambda o: o.generator.send(None),
    "iter": lambda o: iter(o.bag),
    "new instance": lambda o: o.zoo.Animal("rex", legs=3),
    "new instance of an abstract class's subclass": lambda o: o.zoo.Square(2),
    "new instance with slots": lambda o: o.zoo.Slotted(),
    "closure": lambda o: o.adder(1),
    "held list item": lambda o: o.held[0],
    "held list append": lambda o: o.held.append(1),
    "held dict get": lambda o: o.zoo_dict.get("k"),
    "an error": lambda o: pytest.raises(KeyError, o.bag.__getitem__, "no"),
}


@pytest.fixture(scope="module")
def objects(shared_context):
    zoo = shared_context.load_module("zoo")  # noqa: F811
    o = Session()
    o.zoo = zoo
    o.animal, o.slotted, o.bag, o.recorder = zoo.Animal("rex"), zoo.Slotted(1), zoo.Bag({"a": 1}), zoo.Recorder("a")
    o.version, o.other, o.number, o.callable = zoo.Version(1), zoo.Version(2), zoo.Number(3), zoo.Callable(2)
    o.iterator, o.generator, o.adder = zoo.Countdown(99), zoo.endless(), zoo.make_adder(1)
    o.held, o.zoo_dict = zoo.get_held_list(), zoo.get_held_dict()
    return o


@pytest.mark.parametrize("name", CASES)
def test_one_request(shared_context, objects, name):
    case = CASES[name]
    kept = [case(objects)]  # after first use
    before = shared_context.info()["requests"]
    kept.append(case(objects))
    assert shared_context.info()["requests"] - before == 1


def test_what_needs_no_request(shared_context, objects):
    o = objects
    assert o.zoo.Animal and o.zoo.identity and o.animal.rename and isinstance(o.animal, o.zoo.Animal)  # after first use
    before = shared_context.info()["requests"]
    assert type(o.animal) is o.zoo.Animal and isinstance(o.animal, o.zoo.Animal) and not isinstance(o.animal, o.zoo.Bag)
    assert o.animal.__class__ is o.zoo.Animal and callable(o.callable) and o.zoo.identity and o.animal.__doc__
    assert o.animal.rename and hasattr(o.animal, "rename") and id(o.animal) and o.animal is not o.bag
    assert shared_context.info()["requests"] == before


def test_a_callback_costs_nothing_here(shared_context, objects):
    objects.zoo.call_many(lambda i: i, 1)
    before = shared_context.info()["requests"]
    assert objects.zoo.call_many(lambda i: i, 5) == [0, 1, 2, 3, 4]
    assert shared_context.info()["requests"] - before == 1


FLAT, NESTED = list(range(1000, 2000)), [[i, str(i)] for i in range(1000)]
HELD = {
    "list": FLAT,
    "nested": NESTED,
    "dict": {str(i): i for i in FLAT},
    "nested dict": {str(i): [i] for i in FLAT},
    "set": set(FLAT),
    "ordered": collections.OrderedDict((str(i), i) for i in FLAT),
    "default": collections.defaultdict(list, ((str(i), i) for i in FLAT)),
    "counter": collections.Counter({str(i): i for i in FLAT}),
    "deque": collections.deque(FLAT),
    "array": array.array("q", FLAT),
}


def pickled(p):
    return pickle.loads(pickle.dumps(p))


# Whole conversions: of 1,000 items, and how many requests they may take. Where nested containers have to be what they
# are, objects of the child, their references come several dozens at a time.
CONVERSIONS = {
    **{
        f"{convert.__name__}({name})": (name, convert, 1)
        for convert in (list, tuple, set, sorted, sum, max, min, len)
        for name in ("list", "set", "deque", "array")
    },
    **{f"json.dumps({name})": (name, json.dumps, 1) for name in ("list", "nested", "dict", "nested dict", "ordered", "default", "counter")},
    **{f"pickle.dumps({name})": (name, pickled, 1) for name in ("list", "dict", "set", "ordered", "default", "counter", "deque")},
    "pickle.dumps(array)": ("array", pickled, 3),
    **{f"deepcopy({name})": (name, copy.deepcopy, 2) for name in ("list", "dict", "set", "ordered", "default", "counter", "deque", "array")},
    **{f"dict({name})": (name, dict, 2) for name in ("dict", "ordered", "default", "counter")},
    **{f"{{**{name}}}": (name, lambda p: {**p}, 2) for name in ("dict", "ordered", "default", "counter")},
    **{f"list(reversed({name}))": (name, lambda p: list(reversed(p)), 1) for name in ("list", "dict", "ordered", "default")},
    **{f"list({name}.items())": (name, lambda p: list(p.items()), 3) for name in ("dict", "ordered", "default", "counter")},
    **{f"a loop over {name}": (name, lambda p: [x for x in p], 1) for name in ("list", "dict", "set", "deque", "array", "ordered")},
    "list(nested)": ("nested", list, 5),
    "list(reversed(nested))": ("nested", lambda p: list(reversed(p)), 5),
    "list(nested dict.items())": ("nested dict", lambda p: list(p.items()), 6),
    "repr": ("nested", repr, 1),
    "join": ("dict", "".join, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions(shared_context, name):
    held, convert, most = CONVERSIONS[name]
    proxy = shared_context.load_module("zoo").keep_under("converted", HELD[held])
    assert ipython_isolation.isproxy(proxy)
    here = copy.copy(HELD[held])
    assert convert(proxy) == convert(here)  # classes become known
    assert count(shared_context, lambda: convert(proxy)) <= most


def test_conversions_by_numpy(shared_context):
    numpy = pytest.importorskip("numpy")
    zoo = shared_context.load_module("zoo")  # noqa: F811
    for value in (numpy.arange(1000.0), array.array("d", FLAT), bytearray(1000)):
        proxy = zoo.keep_under("converted", value)
        assert (numpy.asarray(proxy) == numpy.asarray(value)).all()
        before = shared_context.info()["requests"]
        numpy.asarray(proxy)
        assert shared_context.info()["requests"] - before <= 1


def test_json_of_what_is_no_tree(shared_context):
    zoo = shared_context.load_module("zoo")  # noqa: F811
    shared = [1]
    twice = zoo.keep_under("converted", [shared, shared, {"a": (1, 2)}])
    assert json.dumps(twice) == '[[1], [1], {"a": [1, 2]}]'
    endless = zoo.keep_under("converted", [])
    endless.append(endless)
    with pytest.raises((ValueError, RecursionError)):
        json.dumps(endless)
    with pytest.raises(TypeError, match="Animal"):
        json.dumps(zoo.keep_under("converted", [zoo.Animal("rex")]))
