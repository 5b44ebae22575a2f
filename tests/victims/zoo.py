"""Object shapes for behaviour tests: what Python code does with objects, one small specimen each.

The tests call a specimen here and isolated, and compare. So nothing here depends on time, on addresses or
on the order of a set, and everything that keeps state has a way to look at it.
"""

import abc
import copy
import collections
import collections.abc
import contextlib
import ctypes
import dataclasses
import enum
import functools
import logging
import sys
import types
import typing
import warnings

logger = logging.getLogger(__name__)

# --- Module globals --------------------------------------------------------------------------------------

CONSTANT = 42
counter = 0
settings = {"depth": 3, "name": "zoo"}
maybe = None


def set_counter(value):
    global counter
    counter = value


def get_counter():
    return counter


def increment_counter():
    global counter
    counter += 1
    return counter


# --- Attributes ------------------------------------------------------------------------------------------


class Animal:
    """An ordinary class."""

    kingdom = "animalia"
    population = 0

    def __init__(self, name, legs=4):
        self.name = name
        self.legs = legs
        self._mood = "calm"

    @property
    def mood(self):
        """A property with all three accessors."""
        return self._mood

    @mood.setter
    def mood(self, value):
        if not isinstance(value, str):
            raise TypeError("a mood is a str")
        self._mood = value

    @mood.deleter
    def mood(self):
        self._mood = "calm"

    @property
    def shout(self):
        """Read-only."""
        return self.name.upper()

    @property
    def broken(self):
        raise LookupError("this property always fails")

    @functools.cached_property
    def slow(self):
        return [self.name] * 2

    @classmethod
    def named(cls, name):
        return cls(name)

    @classmethod
    def born(cls):
        cls.population += 1
        return cls.population

    @staticmethod
    def add(a, b=1, *rest, c=10, **more):
        """Every kind of parameter."""
        return a + b + sum(rest) + c + sum(more.values())

    def rename(self, name):
        self.name = name
        return self

    def speak(self):
        return "..."

    def introduce(self):
        """Calls a method that a subclass overrides."""
        return f"{self.name} says {self.speak()}"

    def __repr__(self):
        return f"{type(self).__name__}({self.name!r})"


class Dog(Animal):
    def __init__(self, name, breed="mutt"):
        super().__init__(name)
        self.breed = breed

    def speak(self):
        return "woof"

    class Collar:
        """A nested class."""

        size = 7


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x=0):
        self.x = x  # y stays unset


class Loud:
    """Defines every attribute hook."""

    def __init__(self):
        object.__setattr__(self, "log", [])

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        self.log.append(("get", name))
        return f"<{name}>"

    def __setattr__(self, name, value):
        self.log.append(("set", name, value))
        object.__setattr__(self, name, value)

    def __delattr__(self, name):
        self.log.append(("del", name))
        object.__delattr__(self, name)

    def __dir__(self):
        return ["log", "anything"]


class Typed:
    """A data descriptor that checks."""

    def __init__(self, kind):
        self.kind = kind

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance, value):
        if not isinstance(value, self.kind):
            raise TypeError(f"{self.name} must be {self.kind.__name__}")
        instance.__dict__[self.name] = value

    def __delete__(self, instance):
        del instance.__dict__[self.name]


class WithDescriptors:
    width = Typed(int)

    def __init__(self, width):
        self.width = width


@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: int = 0
    tags: list = dataclasses.field(default_factory=list, compare=False)


class NamedPoint(typing.NamedTuple):
    x: int
    y: int = 0

    def norm1(self):
        return abs(self.x) + abs(self.y)


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Flags(enum.IntFlag):
    READ = 1
    WRITE = 2


Pair = collections.namedtuple("Pair", "left right")
namespace = types.SimpleNamespace(a=1, b=[2])


# --- Operators -------------------------------------------------------------------------------------------

BINARY = "add sub mul truediv floordiv mod divmod pow lshift rshift and or xor matmul".split()
UNARY = "neg pos abs invert".split()


class Recorder:
    """Every operator, also reflected and in place: the result says which method ran, on what.

    In-place operators change the object and return it, so identity shows too.
    """

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return f"Recorder({self.text!r})"

    def __round__(self, digits=None):
        return f"round({self.text}, {digits})"


def _operand(value):
    return value.text if isinstance(value, Recorder) else repr(value)


def _add_operators():
    def binary(name):
        return lambda self, other: Recorder(f"({self.text} {name} {_operand(other)})")

    def reflected(name):
        return lambda self, other: Recorder(f"({_operand(other)} r{name} {self.text})")

    def in_place(name):
        def method(self, other):
            self.text = f"({self.text} i{name} {_operand(other)})"
            return self

        return method

    def unary(name):
        return lambda self: Recorder(f"({name} {self.text})")

    for name in BINARY:
        setattr(Recorder, f"__{name}__", binary(name))
        setattr(Recorder, f"__r{name}__", reflected(name))
        if name != "divmod":
            setattr(Recorder, f"__i{name}__", in_place(name))
    for name in UNARY:
        setattr(Recorder, f"__{name}__", unary(name))


_add_operators()


class Number:
    """Converts to every number; refuses to add anything but numbers, by NotImplemented."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return int(self.value)

    def __float__(self):
        return float(self.value)

    def __complex__(self):
        return complex(self.value)

    def __index__(self):
        return int(self.value)

    def __bool__(self):
        return bool(self.value)

    def __trunc__(self):
        return int(self.value)

    def __add__(self, other):
        return Number(self.value + other) if isinstance(other, (int, float)) else NotImplemented

    def __format__(self, spec):
        return f"<{self.value:{spec}}>"

    def __str__(self):
        return f"number {self.value}"

    def __bytes__(self):
        return bytes(str(self.value), "ascii")


@functools.total_ordering
class Version:
    """Equality, hash and order by value."""

    def __init__(self, *parts):
        self.parts = parts

    def __eq__(self, other):
        return self.parts == other.parts if isinstance(other, Version) else NotImplemented

    def __lt__(self, other):
        return self.parts < other.parts if isinstance(other, Version) else NotImplemented

    def __hash__(self):
        return hash(self.parts)


class Unhashable:
    """__eq__ without __hash__."""

    def __eq__(self, other):
        return isinstance(other, Unhashable)


class VectorLike:
    """Comparisons give no bool, as those of arrays."""

    def __init__(self, *values):
        self.values = list(values)

    def __eq__(self, other):
        return [a == b for a, b in zip(self.values, other.values)]

    def __lt__(self, other):
        return [a < b for a, b in zip(self.values, other.values)]

    def __bool__(self):
        raise ValueError("the truth value of a vector is ambiguous")

    __hash__ = None


class Bag:
    """A container with every container method."""

    def __init__(self, items=()):
        self.items = dict(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, key):
        if isinstance(key, (slice, tuple)) or key is Ellipsis:
            return ("special", key)
        return self.items[key]

    def __setitem__(self, key, value):
        self.items[key] = value

    def __delitem__(self, key):
        del self.items[key]

    def __contains__(self, key):
        return key in self.items

    def __iter__(self):
        return iter(self.items)

    def __reversed__(self):
        return reversed(self.items)


class DefaultingDict(dict):
    def __missing__(self, key):
        return f"no {key}"


class KeepingList(list):
    """A subclass of a mutable built-in with state of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.appended = 0

    def append(self, item):
        self.appended += 1
        super().append(item)


class Meters(float):
    """A subclass of an immutable built-in."""

    unit = "m"

    def __str__(self):
        return f"{float(self)} {self.unit}"


class Callable:
    def __init__(self, factor):
        self.factor = factor
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.factor * sum(args)


# --- Iterators, generators, context managers --------------------------------------------------------------


class Countdown:
    """An iterator."""

    def __init__(self, start):
        self.left = start

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise StopIteration("finished")
        self.left -= 1
        return self.left + 1

    def __length_hint__(self):
        return self.left


class OldSequence:
    """Iterable by __getitem__ only."""

    def __getitem__(self, index):
        if index >= 3:
            raise IndexError(index)
        return index * index


def count_up(limit):
    for i in range(limit):
        yield i
    return "done"


def endless():
    i = 0
    while True:
        yield i
        i += 1


def averager(log=None):
    """A coroutine of the old kind: send() numbers, get means; throw(ValueError) resets; close() logs."""
    total, count, mean = 0, 0, None
    try:
        while True:
            try:
                total += yield mean
                count += 1
                mean = total / count
            except ValueError:
                total, count, mean = 0, 0, "reset"
    finally:
        if log is not None:
            log.append("closed")


def delegating(limit):
    result = yield from count_up(limit)
    yield result


def failing_generator():
    yield 1
    raise KeyError("in the generator")


def consume(iterable):
    """Iterates over what it is given."""
    return [item for item in iterable]


async def coroutine(value):
    return value * 2


async def async_count(limit):
    for i in range(limit):
        yield i


class Manager:
    """A context manager; with swallow, exceptions end here."""

    def __init__(self, swallow=False):
        self.swallow = swallow
        self.events = []

    def __enter__(self):
        self.events.append("enter")
        return self

    def __exit__(self, kind, error, traceback):
        self.events.append(("exit", kind.__name__ if kind else None, str(error) if error else None))
        return self.swallow


class FailsOnEnter(Manager):
    def __enter__(self):
        raise OSError(2, "no such thing", "path")


class FailsOnExit(Manager):
    def __exit__(self, kind, error, traceback):
        raise RuntimeError("in __exit__")


@contextlib.contextmanager
def managed(log):
    log.append("before")
    try:
        yield "value"
    except LookupError:
        log.append("swallowed")
    finally:
        log.append("after")


# --- Exceptions -------------------------------------------------------------------------------------------


class ZooError(Exception):
    """With attributes, and more arguments to __init__ than in args."""

    def __init__(self, message, code=0, *, detail=None):
        super().__init__(message)
        self.code = code
        self.detail = detail


class CageError(ZooError, LookupError):
    def __str__(self):
        return f"cage {self.code}: {self.args[0]}"


class NoArguments(Exception):
    def __init__(self):
        super().__init__("built without arguments")


class StrictError(Exception):
    """Cannot be rebuilt from its args: pickle fails on it."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def fail(kind=ValueError, *args):
    raise kind(*args)


def fail_with_attributes():
    raise CageError("open", 17, detail={"since": [1, 2]})


def fail_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise ZooError("translated") from error


def fail_with_context():
    try:
        1 / 0
    except ZeroDivisionError:
        raise ZooError("while handling")


def fail_from_none():
    try:
        1 / 0
    except ZeroDivisionError:
        raise ZooError("alone") from None


def fail_with_notes():
    error = ZooError("with notes")
    error.add_note("first note")
    error.add_note("second note")
    raise error


def fail_with_group():
    raise ExceptionGroup("several", [ValueError(1), ZooError("two", 2)])


def fail_deep(depth):
    if depth == 0:
        raise ZooError("deep")
    fail_deep(depth - 1)


def fail_with_os_error():
    open("/nonexistent/zoo")


def fail_with_unicode():
    b"\xff".decode("utf-8")


def fail_with_stop():
    raise StopIteration("value")


def fail_with_syntax():
    compile("a +", "<zoo>", "exec")


raised_once = ZooError("the same object each time")


def raise_held():
    """The traceback grows, the object is one."""
    raise raised_once


def return_error():
    """An exception as a value."""
    return CageError("returned", 5)


def catch(function, *args):
    """Calls; gives back what it raised, its class, or None."""
    try:
        function(*args)
    except BaseException as error:
        return type(error).__name__, str(error)
    return None


# --- Abstract classes and protocols -----------------------------------------------------------------------


class Shape(abc.ABC):
    @property
    @abc.abstractmethod
    def area(self): ...

    @abc.abstractmethod
    def scaled(self, factor): ...

    def describe(self):
        return f"{type(self).__name__} of area {self.area}"


class Square(Shape):
    def __init__(self, side):
        self.side = side

    @property
    def area(self):
        return self.side**2

    def scaled(self, factor):
        return Square(self.side * factor)


@Shape.register
class Registered:
    """A Shape by declaration only."""


class Mapping(collections.abc.MutableMapping):
    """Five methods; the rest comes from the ABC."""

    def __init__(self, *args, **kwargs):
        self.data = dict(*args, **kwargs)

    def __getitem__(self, key):
        return self.data[key]

    def __setitem__(self, key, value):
        self.data[key] = value

    def __delitem__(self, key):
        del self.data[key]

    def __iter__(self):
        return iter(self.data)

    def __len__(self):
        return len(self.data)


class Meta(type):
    """A metaclass with behaviour."""

    registry = []

    def __new__(mcls, name, bases, namespace, **options):
        cls = super().__new__(mcls, name, bases, namespace)
        cls.options = options
        mcls.registry.append(name)
        return cls

    def __init__(cls, name, bases, namespace, **options):
        super().__init__(name, bases, namespace)

    def __len__(cls):
        return 1000

    def __contains__(cls, item):
        return item == cls.__name__


class WithMeta(metaclass=Meta, color="red"):
    pass


class Plugin:
    """Notes its subclasses."""

    subclasses = []

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.subclasses.append(cls.__name__)


# --- Arguments that functions change ------------------------------------------------------------------------


def default_list(item, items=[]):
    """The famous mutable default."""
    items.append(item)
    return items


def append_to(items, item):
    items.append(item)


def change_list(items):
    """Every kind of change: append, insert, delete, replace, sort, reverse."""
    items.append(9)
    items.insert(0, 8)
    del items[1]
    items[0] = 7
    items.sort()
    items.reverse()
    return len(items)


def change_dict(mapping):
    mapping["new"] = 1
    mapping.pop("old", None)
    mapping["count"] = mapping.get("count", 0) + 1
    return sorted(mapping)


def change_set(items):
    items.add("new")
    items.discard("old")
    return len(items)


def change_bytearray(data):
    data[0:1] = b"\xff\xfe"
    data += b"end"
    return bytes(data)


def change_deque(items):
    items.appendleft(0)
    items.rotate(1)
    return items.maxlen


def change_nested(tree):
    """{'a': [..], 'b': {'c': set()}}: changes the inner ones, not the outer."""
    tree["a"].append("changed")
    tree["b"]["c"].add("changed")


def replace_all(items, replacement):
    items[:] = replacement


def clear(container):
    container.clear()


def are_same(a, b):
    """Whether shared parts are still shared on this side."""
    return a is b


def change_shared(pair):
    """pair = [x, x]: a change through one shows in the other."""
    pair[0].append("shared")
    return pair[0] is pair[1]


def make_cyclic(items):
    items.append(items)


def is_cyclic(items):
    return any(item is items for item in items)


def change_then_raise(items):
    items.append("before the error")
    raise ZooError("after the change")


def change_around_callback(items, callback):
    """The callback sees the first change and may make one, which the second then sees."""
    items.append("before")
    callback()
    items.append(len(items))
    return list(items)


def swap_elements(a, b):
    """Two containers exchange their contents."""
    a[:], b[:] = b[:], a[:]


def insert_into_each_other(a, b):
    a.append(b)
    b.append(a)


def identity(value):
    return value


def look_at(container):
    """What a container is and has, in ways that C code and Python code have of finding out."""
    kinds = [cls.__name__ for cls in (list, dict, set, bytearray, collections.deque) if isinstance(container, cls)]
    as_dict = dict(container) if isinstance(container, dict) else None
    return kinds, [*container], len(container), bool(container), as_dict, type(container).__name__


def echoes(function):
    """Whether a value that the function is given and returns is the same object."""
    values = (tuple([1, 2]), "".join(["ab", "c"]), bytes([1, 2]), frozenset(["x"]))
    return [function(value) is value for value in values]


def first(items):
    return items[0]


# --- Functions that keep, and what they return ----------------------------------------------------------------

kept = []


def keep(value):
    """Keeps the argument after the call; returns how many are kept."""
    kept.append(value)
    return len(kept)


def give_back(index=-1):
    return kept[index]


def number_of_colour(name):
    return {"red": 1, "blue": 2}.get(name)


def write_into(text, new):
    """What careless C code does to a str that it was given, once somebody has hashed it."""
    hash(text)
    ctypes.memmove(id(text) + sys.getsizeof("") - 1, new, len(new))


def is_kept(value):
    return any(value is other for other in kept)


def forget():
    kept.clear()


def change_kept():
    kept[-1].append("changed later")


def repeat(items, times):
    """Something new of what came, which nobody else has."""
    return items * times + items[:0]


def fresh_list():
    return [1, "two", [3.0, None]]


def fresh_dict():
    return {"a": [1], "b": {"c": (2, 3)}}


def fresh_mixed():
    """A fresh list around a held one: the outer may move, the inner may not."""
    return [held_list, [1]]


held_list = [1, 2, 3]
held_dict = {"k": "v"}


def get_held_list():
    return held_list


def get_held_dict():
    return held_dict


def keep_under(name, value):
    """A copy of the value that the module keeps: it never moves."""
    _kept_under[name] = value = copy.copy(value)
    return value


_kept_under = {}


def set_item(container, key, value):
    container[key] = value


def count_through(holder):
    """Iterates a list of the caller's."""
    for item in holder.numbers:
        yield item


def reset_held():
    held_list[:] = [1, 2, 3]
    held_dict.clear()
    held_dict["k"] = "v"


def fresh_cycle():
    items = []
    items.append(items)
    return items


def fresh_shared():
    inner = [1]
    return [inner, inner]


def many_values():
    """Every built-in immutable value at once."""
    return (
        None, True, False, 0, -1, 2**64, -(2**200), 1.5, float("inf"), -0.0, 1 + 2j, "text", "\udc80",
        "\U0001f40d", "nul\0inside", b"bytes\0", range(3, 9, 2), slice(1, None, -1), ..., NotImplemented,
        (1, (2, ())), frozenset({1, "a"}),
    )  # fmt: skip


def fresh_animals(count):
    return [Animal(f"animal {i}") for i in range(count)]


def make_adder(n):
    """A closure."""
    return lambda x: x + n


def make_counter():
    """A closure with state."""
    count = 0

    def increment():
        nonlocal count
        count += 1
        return count

    return increment


partial = functools.partial(int, base=2)


@functools.lru_cache(maxsize=None)
def cached(n):
    return n * n


@functools.singledispatch
def kind(value):
    return "something"


@kind.register
def _(value: int):
    return "an int"


@kind.register
def _(value: list):
    return "a list"


# --- Callbacks ------------------------------------------------------------------------------------------------


def call(function, *args, **kwargs):
    return function(*args, **kwargs)


def call_many(function, count):
    return [function(i) for i in range(count)]


def ping_pong(function, depth):
    """Calls function(ping_pong, depth - 1), which calls back here: nested from both sides."""
    return 0 if depth == 0 else 1 + function(ping_pong, depth - 1)


def call_and_catch(function):
    """The callback raises; the exception ends here, and is described."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error), isinstance(error, LookupError)
    return None


def call_and_translate(function):
    try:
        function()
    except Exception as error:
        raise ZooError("the callback failed") from error


def sort_by(items, key):
    items.sort(key=key)


def read_attribute(thing, name):
    return getattr(thing, name)


def write_attribute(thing, name, value):
    setattr(thing, name, value)


def use(thing):
    """Uses an object of the session as Python code would."""
    return len(thing), list(thing), thing[0], str(thing)


class Button:
    """Keeps a callback for later."""

    def __init__(self):
        self.handlers = []

    def on_click(self, handler):
        self.handlers.append(handler)
        return handler  # so that it serves as a decorator

    def click(self, *args):
        return [handler(*args) for handler in self.handlers]


# --- Output -----------------------------------------------------------------------------------------------------


def print_out(*args, **kwargs):
    print(*args, **kwargs)


def print_err(text):
    print(text, file=sys.stderr)


def print_in_turns(count):
    """One line to each, alternating: the order must be kept."""
    for i in range(count):
        print("out", i)
        print("err", i, file=sys.stderr)


def print_then_raise(text):
    print(text)
    raise ZooError(text)


def log(level, message, *args):
    """Logs through the logger "zoo"; the level is a name."""
    logger.log(getattr(logging, level.upper()), message, *args)


def log_error():
    try:
        1 / 0
    except ZeroDivisionError:
        logger.exception("it failed")


def warn(message, category=UserWarning):
    warnings.warn(message, category, stacklevel=2)


T = typing.TypeVar("T")


class Box(typing.Generic[T]):
    """A generic class: its base has an __init_subclass__ that refuses to run twice."""

    def __init__(self, content):
        self.content = content

    def get(self):
        return self.content


class IntBox(Box[int]):
    pass


# --- What is for code in C that looks at types, addresses or frames --------------------------------------------


class Table:
    """Gives arrays that it keeps, as pandas' and xarray's classes do."""

    def __init__(self, *columns):
        import numpy

        self.numbers = numpy.array(columns[0])
        self.texts = numpy.array(columns[1], dtype=object)
        self.wanted = self.numbers

    def __array__(self, dtype=None, copy=None):
        return self.wanted

    def total(self):
        return self.numbers.sum()


class Interface:
    """An array by the older protocol: a dict that C code wants to be one."""

    def __init__(self):
        self.memory = bytearray(b"\1\2\3")
        self.__array_interface__ = {"shape": (3,), "typestr": "|u1", "data": self.memory, "version": 3}


class ClassProperty(property):
    """A property of the class, as pybind11's static ones."""

    def __get__(self, o, owner=None):
        return self.fget(owner)


class Counted:
    kinds = ["a", "b"]
    plenty = ClassProperty(lambda cls: (cls.__name__, len(cls.kinds)))


class Virtual:
    """Dispatches as bindings of C++ classes do: by the name and first argument of the frame that calls."""

    def whose(self, mark=None):
        caller = sys._getframe(1)
        if caller.f_code.co_name == "whose" and caller.f_locals[caller.f_code.co_varnames[0]] is self:
            return f"Virtual's {mark}"
        return self.whose(mark=mark)


class RawBytes(bytes):
    """Derives from what has a buffer."""


UNION = Table | int | None


class HasName(typing.Protocol):
    """Its metaclass derives from that of the next class: which one crosses first must not matter."""

    name: str


class Later(collections.abc.Sized, metaclass=abc.ABCMeta):
    def __len__(self):
        return 3
