"""Classes of the session that an isolated metaclass makes."""

import abc
import typing

from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_enum(load):
    enum = load("enum")

    class Color(enum.Enum):
        RED = 1
        GREEN = 2

        def hello(self):
            return "hi " + self.name

        @property
        def twice(self):
            return self.value * 2

        @classmethod
        def first(cls):
            return next(iter(cls))

        def __str__(self):
            return super().__str__().lower()

    return (
        Color.RED.name, [m.name for m in Color], Color(2) is Color.GREEN, Color["RED"] is Color.RED, Color.RED.hello(),
        Color.GREEN.twice, Color.first() is Color.RED, isinstance(Color.RED, Color), len(Color), str(Color.RED),
        str(raises(Color, 3)), type(Color) is enum.EnumMeta, str(raises(setattr, Color, "RED", 2)), repr(Color.RED),
        Color.__members__["GREEN"].value, Color.RED == Color.RED, {Color.RED: 1}[Color(1)],
    )  # fmt: skip


@both
def test_enum_with_a_generated_value(load):
    enum = load("enum")

    class Lower(enum.Enum):
        def _generate_next_value_(name, start, count, last_values):
            return name.lower()

        X = enum.auto()
        Y = enum.auto()

    class Bits(enum.Flag):
        A = enum.auto()
        B = enum.auto()

    return [m.value for m in Lower], (Bits.A | Bits.B).value, Bits.A in (Bits.A | Bits.B)


@both
def test_ctypes_structure(load):
    ctypes = load("ctypes")

    class Point(ctypes.Structure):
        _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]

        def total(self):
            return self.x + self.y

    class Line(ctypes.Structure):
        _fields_ = [("a", Point), ("b", Point)]

    p = Point(1, 2.5)
    line = Line(p, Point(3, 4.0))
    line.b.x = 7
    pointer = ctypes.pointer(p)
    pointer.contents.y = 0.5
    return p.x, p.y, p.total(), ctypes.sizeof(Point), line.b.x, pointer.contents.total(), (Point * 2)(p, p)[1].x


@both
def test_ctypes_callback(load):
    ctypes = load("ctypes")
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 4)(3, 1, 2, 0)
    libc.qsort(numbers, 4, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
    libc.strlen.restype, libc.strlen.argtypes = ctypes.c_size_t, [ctypes.c_char_p]
    buffer = ctypes.create_string_buffer(20)
    libc.sprintf(buffer, b"%d-%s", 42, b"x")
    return list(numbers), libc.strlen(b"hello"), buffer.value, str(raises(libc.strlen, 5))


@both
def test_a_metaclass_with_behaviour(zoo):
    class Made(zoo.WithMeta, color="blue"):
        def who(self):
            return __class__.__name__, super().__repr__()[:1]

    return type(Made) is zoo.Meta, sorted(Made.options), Made().who(), isinstance(Made(), zoo.WithMeta), zoo.call(lambda: Made().who())


@both
def test_a_metaclass_of_the_session(zoo):
    class Mine(zoo.Meta):
        def __new__(mcs, name, bases, namespace, **kwargs):
            namespace["added"] = "here"
            return super().__new__(mcs, name, bases, namespace, **kwargs)

    class Made(metaclass=Mine, color="green"):
        pass

    return type(Made) is Mine, Made.added, sorted(Made.options), len(Made), "Made" in Made, zoo.read_attribute(Made, "added"), type(Made()) is Made


def test_a_metaclass_that_came_as_a_base_before(context):
    zoo = context.load_module("zoo")  # fresh: the order in which classes cross is the point
    assert type(zoo.HasName) is type(typing.Protocol)
    assert type(zoo.Later) is abc.ABCMeta
    assert len(zoo.Later()) == 3
