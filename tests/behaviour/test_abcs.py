"""Abstract base classes know the classes that were registered with them, on either side."""

import collections.abc
import numbers
import os

from behaviour.harness import both, worlds  # noqa: F401


@both
def test_class_of_the_module(reporter):
    length, height = reporter.Length(3), reporter.Height(4)
    return [
        (isinstance(o, cls), issubclass(type(o), cls))
        for o in (length, height)
        for cls in (numbers.Number, numbers.Complex, numbers.Real, numbers.Rational, collections.abc.Sized)
    ]


@both
def test_class_of_c_code(load):
    array = load("array")
    o = array.array("i", [1, 2])
    return [isinstance(o, getattr(collections.abc, name)) for name in collections.abc.__all__], isinstance(o, os.PathLike)


@both
def test_abc_of_the_module(reporter):
    class Session:
        pass

    return [
        (isinstance(o, reporter.Walker), issubclass(type(o), reporter.Walker))
        for o in (reporter.Wolf(), reporter.Fox(), 3, True, "no", 1.5, Session(), reporter.Length(1))
    ]


@both
def test_class_of_the_session(reporter):
    class Ratio:
        numerator = 1
        denominator = 2

    class Plain:
        pass

    class Derived(Ratio):
        pass

    numbers.Rational.register(Ratio)
    return [
        reporter.is_a(o, "numbers", name)
        for o in (Ratio(), Derived(), Plain())
        for name in ("Number", "Real", "Rational", "Integral")
    ]


@both
def test_class_of_the_session_with_abc_of_the_module(reporter):
    class Dog:
        pass

    class Puppy(Dog):
        pass

    class Cat:
        pass

    reporter.Walker.register(Dog)
    return [(reporter.is_walker(o), isinstance(o, reporter.Walker)) for o in (Dog(), Puppy(), Cat())]


@both
def test_session_class_that_derives_from_one_of_the_module(reporter):
    class Wide(reporter.Wolf):
        pass

    class Odd(reporter.Length):
        pass

    numbers.Integral.register(Odd)
    o = Odd(1)
    return isinstance(Wide(), reporter.Walker), reporter.is_walker(Wide()), isinstance(o, numbers.Integral), [
        reporter.is_a(o, "numbers", name) for name in ("Real", "Integral")
    ]
