"""One operation is one request."""

import pytest
from behaviour.harness import worlds, zoo  # noqa: F401


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
    assert o.zoo.Animal and isinstance(o.animal, o.zoo.Animal)
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
