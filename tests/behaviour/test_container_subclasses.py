"""Subclasses of the mutable built-in containers as arguments: C code finds the real type, changes are written back, and
what the class defines itself runs here, on the original."""

import collections
import json
import operator

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401


class Dict(dict):
    color = "red"

    def __missing__(self, key):
        self[key] = f"made of {key}"
        return self[key]

    def hello(self, *names):
        return "hello", *names, sorted(self)


class Upper(dict):
    def __getitem__(self, key):
        return super().__getitem__(key.upper())

    def keys(self):
        return [key.lower() for key in super().keys()]


class List(list):
    def append(self, item):
        super().append(("appended", item))


class Set(set):
    pass


class Bytes(bytearray):
    pass


class Deque(collections.deque):
    def append(self, item):
        super().append(item * 2)


class Ordered(collections.OrderedDict):
    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.last = key


class Grouped(collections.defaultdict):
    pass


class Slotted(dict):
    __slots__ = ("x",)


def fresh():
    return {
        "Dict": Dict(a=1, b=[2]), "Upper": Upper(A=1), "List": List([1, [2]]), "Set": Set([3]), "Bytes": Bytes(b"abc"),
        "Deque": Deque([1, 2], 3), "Ordered": Ordered(b=1, a=2), "Grouped": Grouped(list, a=[1]), "Slotted": Slotted(s=1),
        "OrderedDict": collections.OrderedDict(b=1, a=2), "defaultdict": collections.defaultdict(list, a=[1]),
        "Counter": collections.Counter("abca"),
    }  # fmt: skip


NAMES = list(fresh())


@pytest.mark.parametrize("name", NAMES)
@both
def test_what_arrives(zoo, name):
    value = fresh()[name]
    return zoo.look_at(value), zoo.identity(value) is value, zoo.are_same(value, value), zoo.identity([value])[0] is value


@pytest.mark.parametrize("name", NAMES)
@both
def test_empty(zoo, name):
    value = fresh()[name]
    value.clear()
    return zoo.look_at(value), value


@pytest.mark.parametrize("name", ["Dict", "Ordered", "Grouped", "OrderedDict", "defaultdict", "Slotted"])
@both
def test_a_dict_changed(zoo, name):
    value = fresh()[name]
    value["old"], value["list"] = 1, []
    inner = value["list"]
    zoo.call(dict.pop, value, "old") if "Ordered" not in name else zoo.call(operator.delitem, value, "old")
    zoo.call(operator.setitem, value, "new", (1, 2))
    zoo.call(lambda d: d["list"].append(3), value)
    zoo.change_nested({"a": inner, "b": {"c": set()}})
    return dict(value), list(value), value["list"] is inner, type(value) is type(fresh()[name]), vars(value) if name == "Ordered" else None


class Key:
    """Counts how often it is hashed, which the other process asks for."""

    hashed = 0

    def __hash__(self):
        Key.hashed += 1
        return 1


@pytest.mark.parametrize("make", [collections.Counter, lambda d: collections.defaultdict(list, d)], ids=["Counter", "defaultdict"])
def test_keys_are_hashed_as_often_as_those_of_a_dict(shared_context, make):
    """Once, when they arrive; what has changed is found without."""
    zoo, counts = shared_context.load_module("zoo"), []
    for value in ({Key(): 1}, make({Key(): 1})):
        Key.hashed = 0
        zoo.call(len, value)
        counts.append(Key.hashed)
    assert counts[0] == counts[1] > 0


class Odd(dict):
    """Says something else than what is in it."""

    def __iter__(self):
        return iter(["x"])

    def keys(self):
        return ["x"]

    def __getitem__(self, key):
        return self.zoo.identity(7)


@both
def test_a_dict_with_methods_of_its_own(zoo):
    """Its contents cross without asking for them by its methods, which would ask back, and again."""
    value = Odd(a=1, b=[2])
    value.zoo = zoo
    inner = dict.__getitem__(value, "b")
    zoo.call(lambda d: dict.__getitem__(d, "b").append(3), value)
    zoo.call(operator.setitem, value, "new", 4)
    return dict.items(value), inner, zoo.call(operator.getitem, value, "a"), zoo.call(list, value), zoo.identity(value) is value


@both
def test_a_container_of_the_session_whose_module_is_isolated(load):
    """Its class is another one over there."""
    there, zoo = load("collections"), load("zoo")
    od, theirs = collections.OrderedDict(a=1, b=[2]), there.OrderedDict(a=1, b=[2])
    zoo.call(lambda d: d["b"].append(3), od)
    return theirs == od, od == theirs, theirs != collections.OrderedDict(a=1, b=[2]), od, copy.copy(theirs) == theirs, list(theirs | od)


@both
def test_changed_by_what_is_written_in_c(load):
    """random.shuffle and heapq push and pop through the C-API, or through the methods of the list."""
    heapq, bisect = load("heapq"), load("bisect")
    items = List([5, 1, 3])
    heapq.heapify(items)
    first = heapq.heappop(items)
    bisect.insort(items, 4)
    data = Bytes(8)
    load("struct").pack_into("<I", data, 2, 77)
    return first, list(items), type(items) is List, data, type(data) is Bytes


@both
def test_other_kinds_changed(zoo):
    values = fresh()
    zoo.change_set(values["Set"])
    zoo.change_bytearray(values["Bytes"])
    zoo.call(operator.methodcaller("append", 9), values["List"])
    zoo.call(operator.methodcaller("append", 9), values["Deque"])
    zoo.call(operator.methodcaller("appendleft", 8), values["Deque"])
    return {name: (list(values[name]), type(values[name]).__name__) for name in ("Set", "Bytes", "List", "Deque")}, values["Deque"].maxlen


@both
def test_overridden_methods_run_here(zoo):
    d, u = Dict(a=1), Upper(A=1)
    seen = [
        zoo.call(operator.getitem, d, "x"), d, zoo.call(operator.methodcaller("hello", 1), d), zoo.call(operator.getitem, u, "a"),
        zoo.call(lambda m: m["a"], u), zoo.call(operator.attrgetter("color"), d),
    ]  # fmt: skip
    return seen, type(raises(zoo.call, operator.getitem, u, "b"))


@both
def test_attributes(zoo):
    d = Dict()
    d.own = [1]
    zoo.call(setattr, d, "other", 2)
    zoo.call(operator.methodcaller("append", 2), d.own)
    return zoo.call(getattr, d, "own") is d.own, d.own, d.other, zoo.call(hasattr, d, "none"), vars(d)


@both
def test_json(load):
    dumps = load("json").dumps
    return dumps(Dict(a=[1, List([2])])), dumps([collections.OrderedDict(b=1, a=2), collections.Counter("a")]), dumps(List([1]))


@both
def test_sqlite(load):
    connection = load("sqlite3").connect(":memory:")
    cursor = connection.cursor()
    cursor.execute("create table t(name)")

    class Name(dict):
        def __missing__(self, key):
            return "foo"

    cursor.execute("insert into t values (:name)", Name())
    cursor.execute("insert into t values (:name)", collections.OrderedDict(name="bar"))
    cursor.execute("insert into t values (?)", List(["baz"]))
    rows = cursor.execute("select name from t").fetchall()
    connection.close()
    return rows


@both
def test_as_keywords(zoo):
    d = Dict(x=1)
    return zoo.call(dict, **d), zoo.call(dict, **collections.OrderedDict(b=1, a=2)), zoo.call(dict, d)


@both
def test_order(zoo):
    od = collections.OrderedDict(a=1, b=2, c=3)
    zoo.call(operator.methodcaller("move_to_end", "a"), od)
    mine = Ordered(a=1, b=2, c=3)
    zoo.call(operator.methodcaller("move_to_end", "c", last=False), mine)
    od.move_to_end("b")
    return list(od), zoo.call(list, od), list(mine), zoo.call(operator.methodcaller("popitem"), od), list(od)


@both
def test_a_factory(zoo):
    made = []
    d = collections.defaultdict(lambda: made.append(1) or [])
    inner = zoo.call(operator.getitem, d, "x")
    zoo.call(operator.getitem, d, "y")
    return d["x"] == inner, len(d), len(made), zoo.call(operator.attrgetter("default_factory"), collections.defaultdict(int))


@both
def test_nested_and_cyclic(zoo):
    d = Dict()
    d["self"], d["list"] = d, List([d])
    zoo.call(operator.setitem, d, "new", 1)
    return d["self"] is d, d["list"][0] is d, d["new"], zoo.call(lambda x: x["self"] is x, d)


@both
def test_in_a_callback(zoo):
    d, seen = Dict(a=1), []

    def callback(x):
        seen.append((x is d, dict(d)))
        d["from here"] = 2

    zoo.call(callback, d)
    zoo.change_around_callback(items := List([1]), lambda: (seen.append(list(items)), items.insert(0, "here")))
    return seen, d, list(items)


@both
def test_kept_over_there(zoo):
    """What is kept is a copy from then on; passed again, it is as the original."""
    d = Dict(a=1)
    zoo.call(setattr, zoo, "kept", d)
    same = zoo.kept is d
    d["b"] = 2
    return same, zoo.call(operator.is_, d, zoo.kept), zoo.call(operator.contains, d, "b"), zoo.call(len, d)


@both
def test_classes(zoo):
    class Base(dict):
        pass

    class Local(Base):
        pass

    d = Local(a=1)
    return (
        [zoo.call(isinstance, d, cls) for cls in (Local, Base, dict, list)], zoo.call(type, d) is Local,
        zoo.call(getattr, d, "__class__") is Local, zoo.call(repr, d), zoo.call(operator.eq, d, {"a": 1}), zoo.call(len, d),
    )  # fmt: skip


@both
def test_fresh_results(zoo):
    for make in (collections.OrderedDict, collections.Counter):
        value = zoo.call(make, [("a", 1)] if make is collections.OrderedDict else "ab")
        assert type(value) is make
        json.dumps(value)
    value = zoo.call(collections.defaultdict, list, a=[1])
    value["b"].append(2)
    return type(value), value, value.default_factory
