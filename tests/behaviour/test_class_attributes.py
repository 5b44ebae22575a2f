"""Attributes of classes that are set after the class has crossed, on either side; layouts."""

import unittest.mock
import weakref

from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_set_and_deleted_here(zoo):
    zoo.Animal.diet = "all"
    a = zoo.Animal("rex")
    seen = [a.diet, zoo.Animal.diet, zoo.Dog.diet, zoo.read_attribute(a, "diet")]
    zoo.Animal.diet = "less"
    seen += [a.diet, zoo.read_attribute(zoo.Dog, "diet")]
    del zoo.Animal.diet
    return seen, hasattr(a, "diet"), hasattr(zoo.Animal, "diet"), str(raises(delattr, zoo.Animal, "diet"))


@both
def test_set_there(zoo):
    a = zoo.Animal("rex")
    zoo.call(setattr, zoo.Animal, "home", "zoo")
    seen = [a.home, zoo.Animal.home, zoo.Dog.home]
    zoo.call(delattr, zoo.Animal, "home")
    return seen, hasattr(zoo.Animal, "home"), hasattr(a, "home")


@both
def test_a_method_of_the_session(zoo):
    def speak(self):
        return f"{self.name} sings"

    before = zoo.Dog.speak
    zoo.Dog.speak = speak
    try:
        d = zoo.Dog("rex")
        seen = [d.speak(), d.introduce(), zoo.Dog.speak is speak, zoo.call(zoo.Dog.speak, d)]
    finally:
        zoo.Dog.speak = before
    return seen, d.speak(), d.introduce(), zoo.call(zoo.Dog.speak, d)


@both
def test_descriptors_of_the_session(zoo):
    zoo.Dog.loudness = property(lambda self: len(self.name))
    zoo.Dog.make = classmethod(lambda cls, name: (cls.__name__, cls(name).name))
    zoo.Dog.count = staticmethod(lambda x: x + 1)
    try:
        d = zoo.Dog("rex")
        return (
            d.loudness, zoo.read_attribute(d, "loudness"), zoo.Dog.make("max"), d.make("tom"), zoo.Dog.count(1), d.count(2),
            zoo.call(d.count, 3), type(raises(setattr, d, "loudness", 1)).__name__,
        )  # fmt: skip
    finally:
        del zoo.Dog.loudness, zoo.Dog.make, zoo.Dog.count


@both
def test_mock_patch(zoo):
    d = zoo.Dog("rex")
    plain = d.introduce()
    with unittest.mock.patch.object(zoo.Dog, "speak", return_value="quack") as mock:
        during = d.introduce()
        called = mock.called
    return plain, during, called, d.introduce()


@both
def test_a_special_method(zoo):
    a = zoo.Animal("rex")
    before = bool(a)
    zoo.Animal.__bool__ = lambda self: False
    try:
        during = bool(a), zoo.call(bool, a)
    finally:
        del zoo.Animal.__bool__
    return before, during, bool(a), zoo.call(bool, a)


@both
def test_a_session_class_changes_after_it_was_sent(zoo):
    class Mine:
        color = "red"

    m = Mine()
    seen = [zoo.read_attribute(m, "color"), zoo.call(hasattr, m, "size"), zoo.call(callable, m)]
    Mine.size = 3
    Mine.__call__ = lambda self: "called"
    seen += [zoo.read_attribute(m, "size"), zoo.call(m), zoo.call(callable, m)]
    del Mine.color, Mine.__call__
    seen += [zoo.call(hasattr, m, "color"), zoo.call(callable, m)]
    return seen


@both
def test_a_session_subclass_changes(zoo):
    class Cat(zoo.Animal):
        pass

    cat = Cat("tom")
    seen = [cat.introduce()]
    Cat.speak = lambda self: "meow"
    seen.append(cat.introduce())
    del Cat.speak
    seen.append(cat.introduce())
    return seen


@both
def test_the_child_sets_on_a_session_class(zoo):
    class Mine:
        n = 0

    zoo.call(setattr, Mine, "n", 5)
    seen = [Mine.n, Mine().n, vars(Mine)["n"]]
    zoo.call(delattr, Mine, "n")
    return seen, hasattr(Mine, "n")


@both
def test_doc_and_name(zoo):
    before = zoo.Slotted.__doc__
    zoo.Slotted.__doc__ = "changed"
    try:
        return zoo.Slotted.__doc__, zoo.read_attribute(zoo.Slotted, "__doc__")
    finally:
        zoo.Slotted.__doc__ = before


@both
def test_descriptors_arrive_as_themselves(zoo):
    return (
        zoo.call(isinstance, zoo.Dog.speak, type(lambda: 0)),
        zoo.call(zoo.Dog.speak, zoo.Dog("rex")),
        zoo.call(zoo.Animal.mood.__get__, zoo.Dog("rex")),
        list(zoo.call(map, zoo.Dog.speak, (zoo.Dog("a"), zoo.Dog("b")))),
    )


@both
def test_immutable_types(load):
    struct, re, array = load("struct"), load("re"), load("array")
    errors = [
        raises(setattr, struct.Struct, "extra", 1),
        raises(setattr, re.Pattern, "extra", 1),
        raises(setattr, array.array, "append", None),
        raises(delattr, array.array, "append"),
    ]
    return [(type(e).__name__, str(e)) for e in errors], type(raises(type, "X", (re.Pattern,), {})).__name__


@both
def test_instances_without_a_dict(load):
    array, zoo = load("array"), load("zoo")
    a = array.array("b")
    return (
        hasattr(a, "__dict__"), str(raises(setattr, a, "x", 1)), hasattr(zoo.Slotted("q"), "__dict__"),
        str(raises(vars, a)), hasattr(zoo.Animal("rex"), "__dict__"), weakref.ref(a)() is a,
        type(raises(weakref.ref, zoo.Slotted("q"))).__name__,
    )  # fmt: skip


@both
def test_slots_of_a_session_subclass(load):
    deque, zoo = load("collections").deque, load("zoo")

    class D(deque):
        __slots__ = ("x", "y", "__dict__", "__private")

        def hide(self):
            self.__private = "hidden"
            return self.__private

    class Bare(deque):
        __slots__ = ()

    d = D("ab")
    d.x, d.z = 5, 6
    return (
        d.x, d.z, vars(d), list(d), str(raises(getattr, d, "y")), d.hide(), str(raises(setattr, Bare(), "q", 1)),
        D.__slots__, type(D.x).__name__, zoo.identity([d])[0].x,
    )  # fmt: skip


@both
def test_slots_live_as_long_as_the_target(load):
    deque = load("collections").deque

    class D(deque):
        __slots__ = ("x",)

    holder = deque()
    d = D()
    d.x = 7
    holder.append(d)
    del d
    return holder[0].x


@both
def test_init_of_a_class_that_has_none(load):
    fractions = load("fractions")
    f = fractions.Fraction(7, 3)
    f.__init__(2, 15)
    return f


@both
def test_attributes_that_a_type_looks_up_itself(load):
    calendar = load("calendar")
    return calendar.weekheader.__module__, calendar.weekheader.__name__, calendar.weekheader.__doc__


@both
def test_namespace_of_a_module_can_be_executed_in(load):
    namespace = load("difflib").__dict__.copy()
    exec("import keyword as _k; x = len(_k.kwlist) > 3", namespace)
    return namespace["x"], type(namespace), type(namespace["__builtins__"])
