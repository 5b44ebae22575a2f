"""copy and pickle of what stands here for objects over there, and the other way round."""

import collections
import copy
import copyreg
import pickle
import threading
import weakref

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@both
def test_containers_are_pickled_as_real_ones(zoo, protocol):
    kept = {"list": [1, [2]], "dict": {"a": {}}, "set": {1}, "bytearray": bytearray(b"abc"), "empty": {}}
    kept["again"] = kept["list"]
    zoo.call(setattr, zoo, "kept", kept)
    back = [pickle.loads(pickle.dumps(zoo.kept, protocol)), pickle.loads(pickle.dumps(vars(zoo.Animal("rex")), protocol))]
    return back, [type(x) for x in back[0].values()], back[0]["again"] is back[0]["list"]


@both
def test_containers_are_copied(zoo):
    zoo.call(setattr, zoo, "kept", [{"a": [1]}, {2}, bytearray(b"x")])
    flat, deep = copy.copy(zoo.kept), copy.deepcopy(zoo.kept)
    deep[0]["a"].append(2)
    flat.append(3)
    return flat, deep, zoo.kept, [type(x) for x in (flat, *deep)]


@both
def test_a_cyclic_container(zoo):
    zoo.call(setattr, zoo, "kept", [1])
    zoo.kept.append(zoo.kept)
    back = [pickle.loads(pickle.dumps(zoo.kept)), copy.deepcopy(zoo.kept)]
    return [(x[0], x[1] is x, len(x)) for x in back]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@both
def test_a_subclass_with_attributes(load, protocol):
    module = load("array")
    cls = type("Derived", (module.array,), {"__module__": __name__})
    globals()["Derived"] = cls
    a = cls("i", [1, 2])
    a.x = [10]
    empty = cls("i")
    empty.y = 1
    back, other = pickle.loads(pickle.dumps(a, protocol)), pickle.loads(pickle.dumps(empty, protocol))
    return back.tolist(), back.x, type(back) is cls, other.y, len(other), copy.copy(a).x is a.x, copy.deepcopy(a).x


@pytest.mark.parametrize("protocol", PROTOCOLS)
@both
def test_patterns(load, protocol):
    pattern = load("re").compile("(a+)b", 2)
    back = pickle.loads(pickle.dumps(pattern, protocol))
    return back == pattern, back.findall("xAab"), copy.copy(pattern) is pattern, copy.deepcopy(pattern) is pattern


@both
def test_what_copy_need_not_copy(load):
    module = load("copy")

    class Own:
        pass

    own = Own()
    atoms = [
        raises, Own, weakref.ref(own), raises.__code__, property(), max, threading.Lock, None, 2**100, 1.5, range(3), len, ...
    ]  # fmt: skip
    return [(module.copy(x) is x, module.deepcopy(x) is x) for x in atoms]


@both
def test_a_registered_reducer(load):
    module = load("copy")

    class Own:
        def __new__(cls, x):
            o = object.__new__(cls)
            o.x = x
            return o

    copyreg.pickle(Own, lambda o: (Own, (o.x,)))
    own, error = Own([1]), raises(module.copy, threading.Lock())
    flat, deep = module.copy(own), module.deepcopy(own)
    return type(flat) is Own, flat.x is own.x, deep.x, deep.x is own.x, type(error), str(error)


@both
def test_instances_of_the_session(load):
    module = load("copy")

    class Own:
        pass

    class Copied(Own):
        def __copy__(self):
            return "copied"

        def __deepcopy__(self, memo):
            return [type(memo), module.deepcopy([1], memo)]

    own = Own()
    own.a = [own, 1]
    deep = module.deepcopy(own)
    return type(deep) is Own, deep is not own, deep.a[0] is deep, deep.a[1], module.copy(Copied()), module.deepcopy(Copied())


@both
def test_named_tuples(load):
    module, Point = load("copy"), collections.namedtuple("Point", "x y")
    p = Point(1, [2])
    flat, deep = module.copy(p), module.deepcopy(p)
    return type(flat) is Point, flat, deep, deep[1] is p[1]
@both
def test_library_containers_of_the_session(load):
    module = load("copy")
    values = [collections.OrderedDict(a=[1]), collections.defaultdict(list, a=[2]), collections.Counter("ab")]
    copies = [(module.copy(x), module.deepcopy(x)) for x in values]
    return copies, [type(x) is type(y) for x, pair in zip(values, copies) for y in pair], copies[1][1].default_factory


