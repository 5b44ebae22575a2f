"""Classes: real ones here, that a session can derive from."""

import typing
import abc

from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_isinstance_and_type(zoo):
    d = zoo.Dog("rex")
    return (
        type(d) is zoo.Dog, isinstance(d, zoo.Animal), issubclass(zoo.Dog, zoo.Animal), isinstance(d, zoo.Point),
        d.__class__ is zoo.Dog, [c.__name__ for c in zoo.Dog.__mro__], zoo.Dog.__bases__ == (zoo.Animal,),
        type(zoo.Dog) is type, isinstance(zoo.Dog, type),
        isinstance(zoo.call(isinstance, d, zoo.Dog), bool), zoo.call(isinstance, d, zoo.Dog),
    )  # fmt: skip


@both
def test_match(zoo):
    def kind(value):
        match value:
            case zoo.Point(0, y):
                return "axis", y
            case zoo.Point(x=x, y=0):
                return "other axis", x
            case zoo.Point():
                return "point"
            case zoo.NamedPoint(x, y):
                return "named", x, y
            case zoo.Dog(name=name):
                return "dog", name
            case [first, *rest]:
                return "list", first, len(rest)
            case {"k": k}:
                return "dict", k
            case zoo.Color.RED:
                return "red"

    things = [zoo.Point(0, 3), zoo.Point(2), zoo.Point(2, 2), zoo.NamedPoint(1, 2), zoo.Dog("rex"),
              zoo.get_held_list(), zoo.get_held_dict(), zoo.Color.RED, zoo.fresh_list()]  # fmt: skip
    return [kind(t) for t in things]


@both
def test_subclass_in_the_session(zoo):
    class Cat(zoo.Animal):
        purrs = True

        def __init__(self, name):
            super().__init__(name, legs=4)
            self.lives = 9

        def speak(self):
            return "meow, not " + super().speak()

        @property
        def shout(self):
            return super().shout + "!"

    cat = Cat("tom")
    return (
        cat.introduce(), cat.lives, cat.purrs, cat.shout, isinstance(cat, zoo.Animal), type(cat) is Cat,
        zoo.identity(cat) is cat, zoo.read_attribute(cat, "lives"), zoo.call(cat.speak), repr(cat),
        zoo.read_attribute(cat, "purrs"), zoo.read_attribute(cat, "shout"), sorted(vars(cat)),
    )  # fmt: skip


@both
def test_subclass_of_a_subclass(zoo):
    class A(zoo.Dog):
        def speak(self):
            return "A+" + super().speak()

    class B(A):
        def speak(self):
            return "B+" + super().speak()

    b = B("rex", breed="pug")
    return b.introduce(), b.breed, isinstance(b, A), B.named("x").introduce(), type(B.named("y")) is B


@both
def test_subclass_with_session_state(zoo):
    class Counting(zoo.Bag):
        def __init__(self, items):
            super().__init__(items)
            self.asked = 0

        def __getitem__(self, key):
            self.asked += 1
            return super().__getitem__(key)

    bag = Counting({"a": 1})
    return bag["a"], bag.asked, len(bag), zoo.read_attribute(bag, "asked"), zoo.call(lambda: bag["a"]), bag.asked


@both
def test_mixin_of_the_session(zoo):
    class Named:
        def label(self):
            return f"<{self.name}>"

    class Cat(Named, zoo.Animal):
        pass

    cat = Cat("tom")
    return cat.label(), cat.speak(), [c.__name__ for c in Cat.__mro__]


@both
def test_init_subclass(zoo):
    before = list(zoo.Plugin.subclasses)

    class Mine(zoo.Plugin):
        pass

    after = list(zoo.Plugin.subclasses)
    return [name for name in after if name not in before], Mine.__name__, isinstance(Mine(), zoo.Plugin)


@both
def test_abstract_classes(zoo):
    class Half(zoo.Shape):
        def scaled(self, factor):
            return self

    class Whole(Half):
        area = 7

    return (
        type(raises(zoo.Shape)), type(raises(Half)), Whole().describe(), zoo.Square(3).area,
        zoo.Square(3).scaled(2).describe(), issubclass(zoo.Registered, zoo.Shape),
        isinstance(zoo.Registered(), zoo.Shape), isinstance(3, zoo.Shape), isinstance(Whole(), zoo.Shape),
    )  # fmt: skip


@both
def test_register_a_session_class(zoo):
    class Mine:
        pass

    zoo.Shape.register(Mine)
    return isinstance(Mine(), zoo.Shape), issubclass(Mine, zoo.Shape), zoo.identity(Mine) is Mine


@both
def test_abc_mapping(zoo):
    import collections.abc

    m = zoo.Mapping(a=1)
    m["b"] = 2
    m.update({"c": 3})
    seen = [dict(m), m.pop("a"), m.setdefault("d", 4), sorted(m.keys()), sorted(m.items()), "b" in m, m.get("zz")]
    return seen, m == {"b": 2, "c": 3, "d": 4}, isinstance(m, collections.abc.Mapping), len(m), type(raises(m.pop, "q"))


@both
def test_metaclass(zoo):
    return (
        type(zoo.WithMeta) is zoo.Meta, len(zoo.WithMeta), "WithMeta" in zoo.WithMeta, zoo.WithMeta.options,
        isinstance(zoo.WithMeta(), zoo.WithMeta), issubclass(zoo.Meta, type),
    )  # fmt: skip


@both
def test_named_tuple(zoo):
    p = zoo.NamedPoint(3, -4)
    x, y = p
    return (
        p, p.x, p[1], x, y, len(p), p.norm1(), p == (3, -4), isinstance(p, tuple), p._replace(x=0), p._asdict(),
        hash(p) == hash((3, -4)), type(p) is zoo.NamedPoint, zoo.NamedPoint._fields, zoo.identity(p), p[:1],
        zoo.Pair(1, right=2), sorted([zoo.Pair(2, 1), zoo.Pair(1, 2)]),
    )  # fmt: skip


@both
def test_subclass_of_float(zoo):
    m = zoo.Meters(2.5)
    return (
        m + 1, m == 2.5, str(m), m.unit, isinstance(m, float), float(m), type(m) is zoo.Meters, round(m), m * m,
        f"{m:.2f}", zoo.identity(m).unit, [m, 1.0].index(2.5), math_sqrt(m),
    )  # fmt: skip


def math_sqrt(x):
    import math

    return math.sqrt(x)


@both
def test_subclass_of_list(zoo):
    k = zoo.KeepingList([1, 2])
    k.append(3)
    k += [4]
    return (
        list(k), k.appended, len(k), k[0], k[-1], k[1:3], isinstance(k, list), 3 in k, k == [1, 2, 3, 4],
        sorted(k, reverse=True), [*k], k.index(2), type(k) is zoo.KeepingList,
    )  # fmt: skip


@both
def test_subclass_of_dict(zoo):
    d = zoo.DefaultingDict(a=1)
    d["b"] = 2
    return d["a"], d["zz"], d.get("zz"), dict(d), isinstance(d, dict), len(d), list(d.items()), {**d}, d == {"a": 1, "b": 2}


@both
def test_session_subclass_of_a_list_subclass(zoo):
    class Mine(zoo.KeepingList):
        def append(self, item):
            super().append(item * 2)

    k = Mine([1])
    k.append(5)
    zoo.append_to(k, 7)
    return list(k), k.appended, isinstance(k, zoo.KeepingList)


@both
def test_session_class_used_by_the_module(zoo):
    class Thing:
        def __init__(self, n=0):
            self.n = n

        def __len__(self):
            return 2

        def __iter__(self):
            return iter("ab")

        def __getitem__(self, i):
            return i

        def __str__(self):
            return "thing"

    t = Thing()
    zoo.write_attribute(t, "n", 5)
    made = zoo.call(Thing, 7)
    return zoo.use(t), t.n, type(made) is Thing, made.n, zoo.identity(t) is t, zoo.identity(Thing) is Thing


@both
def test_classes_as_arguments(zoo):
    return (
        zoo.call(zoo.Animal, "rex").name, zoo.identity(zoo.Dog) is zoo.Dog, zoo.call(issubclass, zoo.Dog, zoo.Animal),
        zoo.call(type, 3) is int, zoo.identity(int) is int, zoo.call(dict, a=1), zoo.call(lambda c: c("x").name, zoo.Dog),
    )  # fmt: skip


@both
def test_singledispatch(zoo):
    class Mine:
        pass

    zoo.kind.register(Mine, lambda value: "mine")
    return zoo.kind(1), zoo.kind([]), zoo.kind("s"), zoo.kind(Mine())


@both
def test_session_abc_implemented_by_the_module(zoo):
    class Speaks(abc.ABC):
        @classmethod
        def __subclasshook__(cls, other):
            return hasattr(other, "speak")

    return isinstance(zoo.Dog("rex"), Speaks), issubclass(zoo.Point, Speaks)


@both
def test_two_imports_of_a_class_are_one(zoo):
    return zoo.Dog is zoo.Dog, {zoo.Dog: 1}[zoo.Dog], zoo.Dog == zoo.Dog, zoo.Dog.Collar is zoo.Dog.Collar


@both
def test_class_attributes_that_are_objects(zoo):
    zoo.Dog.toys = ["ball"]
    zoo.Dog.toys.append("bone")
    d = zoo.Dog("rex")
    seen = list(d.toys), list(zoo.Dog.toys)
    del zoo.Dog.toys
    return seen, hasattr(d, "toys")


@both
def test_method_added_to_a_class(zoo):
    zoo.Dog.fetch = lambda self, what: (self.name, what)
    seen = zoo.Dog("rex").fetch("stick")
    del zoo.Dog.fetch
    return seen, hasattr(zoo.Dog("rex"), "fetch")


@both
def test_special_method_added_to_a_class(zoo):
    d = zoo.Dog("rex")
    before = type(raises(len, d))
    zoo.Dog.__len__ = lambda self: 5
    after = len(d)
    del zoo.Dog.__len__
    return before, after, type(raises(len, d))


@both
def test_wrong_arguments(zoo):
    return (
        raises(zoo.Animal), raises(zoo.Animal, 1, 2, 3), raises(zoo.identity), raises(zoo.Animal.speak),
        raises(zoo.Animal("x").speak, 1), raises(zoo.call),
    )  # fmt: skip


@both
def test_exactly_the_special_methods_of_the_target(zoo):
    a, bag, number = zoo.Animal("a"), zoo.Bag(), zoo.Number(1)
    specials = ["__len__", "__iter__", "__call__", "__getitem__", "__add__", "__int__", "__enter__", "__next__",
                "__contains__", "__bool__", "__hash__", "__index__", "__await__"]  # fmt: skip
    return [[hasattr(x, name) for name in specials] for x in (a, bag, number, zoo.count_up(1), zoo.Callable(1))]


@both
def test_functions_inside_class_and_static_methods(zoo):
    parts = vars(zoo.Animal)
    return (
        isinstance(parts["add"], staticmethod), isinstance(parts["named"], classmethod), parts["add"].__func__(1, 2),
        parts["named"].__func__(zoo.Dog, "x").name,
    )  # fmt: skip


@both
def test_an_own_init_subclass_in_the_hierarchy(load):
    random = load("random")
    return isinstance(random.SystemRandom(), random.Random), random.SystemRandom.__mro__[1] is random.Random


@both
def test_generic_classes(zoo):
    class Mine(zoo.Box):
        def get(self):
            return ["mine", super().get()]

    box = zoo.Box(1)
    return (
        box.get(),
        isinstance(box, typing.Generic),
        zoo.IntBox(2).get(),
        Mine(3).get(),
        isinstance(Mine(3), zoo.Box),
        repr(zoo.Box[int]),
    )


@both
def test_new_of_a_session_class(zoo):
    class Cat(zoo.Animal):
        def __new__(cls, *args):
            self = super().__new__(cls, *args)
            self.tag = "made here"
            return self

        def twin(self):
            return type(self)(self.name)

    cat = Cat("tom")
    made_there = zoo.call(Cat, "tim")
    return cat.tag, cat.name, cat.twin().tag, made_there.tag, made_there.name, type(made_there) is Cat, zoo.call(type, cat) is Cat


@both
def test_in_of_what_is_no_sequence(load):
    re, zoo = load("re"), load("zoo")
    return [str(raises(lambda: "a" in x)) for x in (re.match("a", "a"), zoo.Animal("rex"), zoo.endless)]
