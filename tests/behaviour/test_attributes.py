"""Attributes: of instances, classes and modules, found in every way there is."""

import copy
import inspect
import pickle
import pydoc
import sys
import traceback
import typing

import pytest
from behaviour.harness import both, raises, worlds, zoo  # noqa: F401

import ipython_isolation


@both
def test_get_set_delete(zoo):
    a = zoo.Animal("rex")
    seen = [a.name, a.legs, a.kingdom]
    a.name = "max"
    a.new = [1, 2]
    seen += [a.name, list(a.new), zoo.read_attribute(a, "new")]
    del a.new
    return seen, raises(lambda: a.new), raises(delattr, a, "new"), hasattr(a, "new"), getattr(a, "new", 7)


@both
def test_class_attribute_hidden_by_the_instance(zoo):
    a = zoo.Animal("rex")
    a.kingdom = "plantae"
    seen = [a.kingdom, zoo.Animal.kingdom]
    del a.kingdom
    seen.append(a.kingdom)
    zoo.Animal.kingdom = "fungi"
    seen += [a.kingdom, zoo.Dog.kingdom]
    zoo.Animal.kingdom = "animalia"
    return seen


@both
def test_instance_attribute_hides_a_method(zoo):
    a = zoo.Animal("rex")
    a.speak = lambda: "from the session"
    seen = [a.speak(), a.introduce()]
    del a.speak
    return seen, a.speak(), a.introduce()


@both
def test_property(zoo):
    a = zoo.Animal("rex")
    seen = [a.mood]
    a.mood = "wild"
    seen.append(a.mood)
    errors = [raises(setattr, a, "mood", 3), raises(setattr, a, "shout", "x"), raises(lambda: a.broken)]
    del a.mood
    return seen, a.mood, a.shout, [type(e) for e in errors], str(errors[0]), zoo.Animal.mood.__doc__


@both
def test_property_object(zoo):
    p = zoo.Animal.mood
    a = zoo.Animal("rex")
    p.fset(a, "keen")
    return p.fget(a), isinstance(p, property), p.__class__, zoo.Animal.shout.fset


@both
def test_cached_property(zoo):
    a = zoo.Animal("rex")
    first = a.slow
    first.append("more")
    return list(a.slow), a.slow is first, "slow" in vars(a)


@both
def test_class_and_static_methods(zoo):
    a = zoo.Dog.named("rex")
    assert type(a) is zoo.Dog
    before = zoo.Animal.population
    born = zoo.Animal.born() - before
    return a, born, zoo.Animal.add(1), a.add(1, 2, 3, c=4, d=5), type(zoo.Dog("x").named("y"))


@both
def test_bound_method_as_a_value(zoo):
    a = zoo.Animal("rex")
    speak, same = a.introduce, a.introduce
    a.name = "max"
    return speak(), speak == same, speak.__name__, speak.__self__ is a, zoo.call(speak), hash(speak) == hash(same)


@both
def test_unbound_method(zoo):
    a = zoo.Dog("rex")
    return zoo.Animal.speak(a), zoo.Dog.speak(a), zoo.Animal.speak.__name__, zoo.Animal.speak.__qualname__


@both
def test_slots(zoo):
    s = zoo.Slotted(1)
    s.y = 5
    seen = [s.x, s.y]
    del s.y
    return seen, type(raises(lambda: s.y)), type(raises(setattr, s, "z", 1)), hasattr(s, "__dict__")


@both
def test_attribute_hooks(zoo):
    loud = zoo.Loud()
    loud.x = 1
    seen = [loud.x, loud.anything]
    del loud.x
    return seen, loud.x, [tuple(e) for e in loud.log], dir(loud), type(raises(lambda: loud._private))


@both
def test_checking_descriptor(zoo):
    w = zoo.WithDescriptors(3)
    w.width = 4
    error = raises(setattr, w, "width", "wide")
    del w.width
    return error, type(raises(lambda: w.width)), zoo.WithDescriptors.width.name


@both
def test_dir_and_vars(zoo):
    a = zoo.Dog("rex")
    a.extra = 1
    return (
        [n for n in dir(a) if not n.startswith("__")],
        [n for n in dir(zoo.Dog) if not n.startswith("__")],
        {k: v for k, v in vars(a).items()},
        sorted(n for n in vars(zoo.Dog) if not n.startswith("__")),
        [n for n in dir(zoo) if not n.startswith("_")],
    )


@both
def test_vars_is_live(zoo):
    a = zoo.Animal("rex")
    vars(a)["name"] = "max"
    a.__dict__["added"] = 5
    return a.name, a.added, sorted(a.__dict__), a.__dict__.get("no")


@both
def test_module_globals(zoo):
    zoo.set_counter(3)
    seen = [zoo.counter, zoo.get_counter()]
    zoo.counter = 10
    seen += [zoo.increment_counter(), zoo.counter]
    zoo.new_name = "here"
    seen.append(zoo.new_name)
    del zoo.new_name
    zoo.set_counter(0)
    return seen, hasattr(zoo, "new_name"), zoo.maybe, dict(zoo.settings), zoo.__name__, zoo.__doc__


@both
def test_a_function_of_the_module_replaced(zoo):
    assert zoo.identity(1) == 1
    original = zoo.identity
    zoo.identity = lambda value: ("replaced", value)
    try:
        return zoo.identity(1), zoo.get_counter()
    finally:
        zoo.identity = original


@both
def test_a_function_replaced_behind_our_back(zoo):
    before = zoo.fresh_list()
    original = zoo.fresh_list
    zoo.call(setattr, zoo, "fresh_list", zoo.fresh_dict)
    after = zoo.fresh_list()
    zoo.fresh_list = original
    return before, after, zoo.fresh_list()


@both
def test_missing_attribute_of_a_module(zoo):
    return raises(lambda: zoo.no_such_thing), getattr(zoo, "no_such_thing", None)


@both
def test_import_star(zoo):
    namespace = {}
    exec("from zoo import *", namespace)
    return sorted(n for n in namespace if not n.startswith("__")), namespace["identity"] is zoo.identity


@both
def test_import_names(zoo):
    from zoo import Animal, identity
    from zoo import Dog as D

    return Animal is zoo.Animal, D is zoo.Dog, identity(4), raises(exec, "from zoo import nothing", {}).__class__


@both
def test_help(zoo):
    strip = lambda text: [line.split(" at 0x")[0] for line in text.splitlines()]  # noqa: E731
    return strip(pydoc.plain(pydoc.render_doc(zoo.Animal.add))), strip(pydoc.plain(pydoc.render_doc(zoo.use)))


@both
def test_help_of_a_class(zoo):
    text = pydoc.plain(pydoc.render_doc(zoo.Animal))
    words = ["An ordinary class", "mood", "A property with all three", "introduce", "Calls a method"]
    return [word in text for word in words]


@both
def test_signature(zoo):
    names = ["use", "call", "identity", "make_adder"]
    found = [str(inspect.signature(getattr(zoo, name))) for name in names]
    classes = [str(inspect.signature(c)) for c in (zoo.Animal, zoo.Dog, zoo.Point, zoo.ZooError)]
    a = zoo.Animal("rex")
    methods = [str(inspect.signature(m)) for m in (zoo.Animal.rename, a.rename, a.add, zoo.Animal.named)]
    return found, classes, methods


@both
def test_documentation_and_names(zoo):
    a = zoo.Animal("rex")
    return (
        zoo.Animal.__doc__, a.__doc__, a.introduce.__doc__, zoo.Animal.add.__doc__, zoo.Animal.__module__,
        zoo.Dog.Collar.__qualname__, zoo.Dog.Collar.size, zoo.use.__doc__, zoo.use.__name__, zoo.use.__module__,
    )  # fmt: skip


@both
def test_inspect_predicates(zoo):
    a = zoo.Animal("rex")
    return (
        inspect.isclass(zoo.Animal), inspect.ismodule(zoo), callable(zoo.use), callable(a),
        inspect.isgenerator(zoo.count_up(1)), inspect.isabstract(zoo.Shape), inspect.isabstract(zoo.Square),
        isinstance(a, zoo.Animal),
    )  # fmt: skip


@both
def test_copy(zoo):
    p = zoo.Point(1, 2, ["a"])
    shallow, deep = copy.copy(p), copy.deepcopy(p)
    p.tags.append("b")
    p.x = 9
    return list(shallow.tags), list(deep.tags), shallow.x, deep.x, type(deep) is zoo.Point, shallow == deep


@both
def test_copy_of_containers_of_proxies(zoo):
    a = zoo.Animal("rex")
    both_sides = {"a": a, "b": [a]}
    deep = copy.deepcopy(both_sides)
    return deep["a"] is deep["b"][0], deep["a"] is a, deep["a"].name, type(deep["a"]) is zoo.Animal


@both
def test_pickle(zoo):
    p = zoo.Point(1, 2, ["a"])
    again = pickle.loads(pickle.dumps(p))
    return again, again is p, again == p, type(again) is zoo.Point, pickle.loads(pickle.dumps(zoo.Animal)) is zoo.Animal


@both
def test_pickle_of_functions_and_members(zoo):
    return (
        pickle.loads(pickle.dumps(zoo.use)) is zoo.use,
        pickle.loads(pickle.dumps(zoo.Color.RED)) is zoo.Color.RED,
        pickle.loads(pickle.dumps(zoo.Pair(1, 2))),
    )


@both
def test_replace_of_a_dataclass(zoo):
    import dataclasses

    p = dataclasses.replace(zoo.Point(1, 2), x=5)
    return p, dataclasses.is_dataclass(p), sorted(p.__dataclass_fields__)


@both
def test_class_assignment(zoo):
    a = zoo.Animal("rex")
    a.__class__ = zoo.Dog
    return zoo.call(lambda: a.speak()), a.speak(), isinstance(a, zoo.Dog)


@both
def test_enum_members(zoo):
    red = zoo.Color.RED
    return (
        red.name, red.value, red is zoo.Color(1), zoo.Color["GREEN"] is zoo.Color.GREEN, isinstance(red, zoo.Color),
        [m.name for m in zoo.Color], zoo.identity(red) is red, {red: 1}[zoo.Color.RED], repr(red), len(zoo.Color),
        raises(zoo.Color, 9),
    )  # fmt: skip


@both
def test_flags(zoo):
    both_flags = zoo.Flags.READ | zoo.Flags.WRITE
    return int(both_flags), zoo.Flags.READ in both_flags, both_flags & 1 == zoo.Flags.READ, zoo.Flags.WRITE + 1


@both
def test_annotations_of_a_module(zoo):
    before = dict(zoo.__annotations__)
    zoo.__annotations__ = {"text": str, "number": int}
    return before, dict(zoo.__annotations__), typing.get_type_hints(zoo), sorted(vars(zoo)["__annotations__"])


@both
def test_namespace(zoo):
    zoo.namespace.c = 3
    seen = zoo.namespace.a, list(zoo.namespace.b), zoo.namespace.c
    del zoo.namespace.c
    return seen, repr(zoo.namespace)


def test_isproxy(zoo):  # noqa: F811
    a = zoo.Animal("rex")
    for proxy in (zoo, a, zoo.Animal, zoo.use, a.__dict__, zoo.held_list):
        assert ipython_isolation.isproxy(proxy)
    for plain in (a.name, a.legs, zoo.fresh_list(), 1, [], object(), ipython_isolation):
        assert not ipython_isolation.isproxy(plain)


def test_byvalue(zoo):  # noqa: F811
    held = ipython_isolation.byvalue(zoo.held_dict)
    assert type(held) is dict and held == {"k": "v"}
    with pytest.raises(AssertionError):
        ipython_isolation.byvalue(held)


@both
def test_sizes(load):
    zoo, array, struct = load("zoo"), load("array"), load("struct")
    objects = [array.array("i", range(9)), struct.Struct("2i"), zoo.Animal("rex"), zoo.settings, zoo.Slotted(1)]
    return [(sys.getsizeof(o), o.__sizeof__()) for o in objects]


@both
def test_what_a_built_in_object_does_not_have(zoo):
    seen = []
    for value in ([1], {"a": 1}, {1, 2}, bytearray(b"x"), zoo.DefaultingDict(a=1), zoo.KeepingList([1]), {"a": 1}.items()):
        o = zoo.keep_under("built-in", value)
        for name in ("__array__", "__deepcopy__", "appendd", "_repr_html_", "__getattr__", "__wrapped__", "\udc80"):
            error = raises(getattr, o, name)
            seen += [type(error), str(error), error.name, error.obj is o, hasattr(o, name), getattr(o, name, 7)]
            seen += ["".join(traceback.format_exception_only(error))]
        seen += [hasattr(o, "__dict__"), hasattr(o, "__weakref__"), hasattr(o, "__slotnames__"), o.__doc__, o.__init__ is None]
    return seen


def test_what_is_not_there_is_not_asked_for(worlds, zoo):
    context = worlds[1].context
    for value in ([1], {"a": 1}, {1, 2}, bytearray(b"x")):
        o = zoo.keep_under("built-in", value)
        before = context.info()["requests"]
        assert not any(hasattr(o, name) for name in ("__array__", "__array_interface__", "__deepcopy__", "_repr_html_", "foo"))
        assert context.info()["requests"] == before
    # Instances of classes that can get attributes are asked, in whatever way they get them.
    o, cls = zoo.KeepingList([1]), zoo.KeepingList
    assert not hasattr(o, "foo")
    cls.foo = 1
    assert o.foo == 1
    del cls.foo
    o.foo = 2
    assert o.foo == 2
