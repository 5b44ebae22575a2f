"""What the standard library does with proxies: json, dataclasses, functools, inspect, pydoc, typing."""

import dataclasses
import functools
import inspect
import json
import pydoc
import typing

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401


def held_list(zoo):
    return zoo.keep_under("library", [1, "a", None, {"x": [1.5]}])


def held_dict(zoo):
    return zoo.keep_under("library", {"a": 1, "b": [1, 2]})


@both
def test_json(zoo):
    return (
        json.dumps(held_list(zoo)), json.dumps(held_dict(zoo)), json.dumps({"k": held_dict(zoo)}, indent=1),
        json.dumps([held_list(zoo)], sort_keys=True), json.dumps(zoo.DefaultingDict(a=1)),
        str(raises(json.dumps, zoo.Slotted("q"))), json.dumps(zoo.Slotted("q"), default=lambda o: o.x),
    )  # fmt: skip


@both
def test_concatenation(zoo):
    items = held_list(zoo)
    return [0] + items, items + [0], sum([items, items], []), str(raises(lambda: (1,) + items)), str(raises(lambda: "a" + items))


@both
def test_unpacking_and_formatting(zoo):
    def f(*args, **kwargs):
        return args, kwargs

    return (
        f(*held_list(zoo), **held_dict(zoo)), "%(a)s" % held_dict(zoo), "{a}".format_map(held_dict(zoo)), {**held_dict(zoo)},
        held_dict(zoo) | {"z": 1}, {"z": 1} | held_dict(zoo), ",".join(zoo.keep_under("library", ["x", "y"])),
        eval("a + 1", {}, held_dict(zoo)),
    )  # fmt: skip


@both
def test_dataclasses(zoo):
    p = zoo.Point(1, 2)
    return (
        dataclasses.asdict(p), dataclasses.astuple(p), dataclasses.replace(p, y=5), dataclasses.is_dataclass(p),
        [(f.name, f.type, f.default is dataclasses.MISSING) for f in dataclasses.fields(zoo.Point)],
    )  # fmt: skip


@both
def test_wraps(zoo):
    @functools.wraps(zoo.make_adder)
    def wrapper(n):
        return n

    @functools.wraps(zoo.cached)
    def other(n):
        return n

    return (
        wrapper.__name__, wrapper.__doc__, wrapper.__wrapped__ is zoo.make_adder, wrapper.__module__, type(wrapper.__annotations__),
        other.__name__, other.__doc__, other.__module__, str(inspect.signature(wrapper)),
    )  # fmt: skip


@both
def test_annotations(zoo):
    return (
        inspect.get_annotations(zoo.Point), zoo.Point.__annotations__, typing.get_type_hints(zoo.Point),
        zoo.call.__annotations__, zoo.default_list.__kwdefaults__, zoo.default_list.__defaults__,
    )  # fmt: skip


@both
def test_typing(zoo):
    box = zoo.Box[int]
    return (
        str(box), box.__origin__ is zoo.Box, box.__args__, [str(b) for b in zoo.IntBox.__orig_bases__],
        zoo.identity(typing.List[int]) == typing.List[int], zoo.identity(typing.Optional[int]) == typing.Optional[int],
        zoo.identity(int | str) == int | str, zoo.identity(list[int]) == list[int], zoo.identity(typing.Any) is typing.Any,
        zoo.identity(dataclasses.MISSING) is dataclasses.MISSING, type(zoo.T).__name__,
    )  # fmt: skip


@both
def test_namespaces(zoo):
    hidden = {"__new__"}  # the one name that a mirrored class has of its own: docs/libraries.md
    return (
        sorted(set(vars(zoo.Animal)) - hidden), zoo.Slotted.__slots__, "__slots__" in vars(zoo.Animal),
        vars(zoo.Animal)["kingdom"], dir(zoo.Animal("rex")), repr(zoo.Animal.introduce).partition(" at ")[0], zoo.__doc__,
    )  # fmt: skip


@both
def test_values_of_a_class(zoo):
    a = zoo.Animal("rex")
    seen = [a.kingdom, zoo.Animal.kingdom]
    a.kingdom = "own"  # an instance hides it
    seen += [a.kingdom, zoo.Animal.kingdom, zoo.read_attribute(a, "kingdom")]
    zoo.call(setattr, zoo.Animal, "kingdom", "changed there")
    b = zoo.Animal("max")
    try:
        return seen, a.kingdom, b.kingdom, zoo.Animal.kingdom, zoo.Dog.kingdom
    finally:
        zoo.Animal.kingdom = "animalia"


@pytest.mark.parametrize("name", ["Animal", "Slotted", "make_adder"])
def test_help(worlds, name):
    texts = []
    for world in worlds:
        with world.use():
            text = pydoc.plain(pydoc.render_doc(getattr(world.load("zoo"), name)))
            texts.append([line for line in text.splitlines() if "__new__" not in line])
    expected, got = texts
    # __new__ is shown with a line about itself and an empty one.
    missing = [line for line in expected if line not in got]
    extra = [line for line in got if line not in expected]
    assert not missing and len(extra) <= 4, (missing, extra)
