"""Values cross exactly: type, value, sign, surrogates."""

import datetime
import decimal
import enum
import fractions
import math
import pathlib
import sys
import uuid

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401

INTS = [0, 1, -1, 127, 128, -128, -129, 255, 2**31, -(2**31), 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, -(2**64), 10**40, -(10**400), 2**10000]
FLOATS = [0.0, -0.0, 1.5, 5e-324, sys.float_info.max, math.inf, -math.inf]
STRINGS = ["", "a", "\0", "é", "\u20ac", "\U0001f40d", "\ud800", "a\udfffb", "x" * 100_000, "\xff" * 300,
           "y" * 253, "y" * 254, "y" * 255, "y" * 256]
VALUES = [
    None, True, False, ..., NotImplemented, 1 + 2j, complex("nan"), complex(-0.0, math.inf), b"", b"\0\xff", b"x" * 70_000,
    range(0), range(10), range(3, -9, -2), range(10**30), slice(None), slice(1, "a", 2.5), (), ((),), (1, (2, (3,))),
    frozenset(), frozenset({1, "a", (2,)}), *INTS, *FLOATS, *STRINGS,
]  # fmt: skip


def name(value):
    """For a test: the same in every process, where sets differ in order."""
    return f"frozenset of {len(value)}" if isinstance(value, frozenset) else ascii(repr(value)[:20])[1:-1]


@pytest.mark.parametrize("value", VALUES, ids=name)
@both
def test_there_and_back(zoo, value):
    back = zoo.identity(value)
    assert type(back) is type(value)
    # Equal sets may be in different order; for the rest repr also tells -0.0 from 0.0, nan from nan.
    assert back == value if isinstance(value, frozenset) else repr(back) == repr(value)
    return back, zoo.identity([value])[0] is value or zoo.first((value,)) == value or value != value


@both
def test_nan(zoo):
    back = zoo.identity(math.nan)
    return type(back), back != back, math.copysign(1, zoo.identity(-0.0))


@both
def test_singletons(zoo):
    return [zoo.identity(v) is v for v in (None, True, False, ..., NotImplemented, int, str, ValueError, object)]


class Suit(enum.Enum):
    HEARTS = 1


LIBRARY = [
    datetime.date(2020, 2, 29), datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.time(1, 2),
    datetime.timedelta(days=-1, microseconds=3), datetime.timezone.utc,
    datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2), "x")),
    decimal.Decimal("1.50"), decimal.Decimal("NaN"), decimal.Decimal("-Infinity"), fractions.Fraction(-3, 7),
    uuid.UUID(int=5), pathlib.PurePosixPath("/a/b"), pathlib.Path("x"), pathlib.PureWindowsPath("c:\\x"),
]  # fmt: skip


@pytest.mark.parametrize("value", LIBRARY, ids=repr)
@both
def test_library_values(zoo, value):
    back = zoo.identity(value)
    return type(back) is type(value), repr(back) == repr(value), zoo.call(str, value), zoo.first([value]) == value or back != back


@both
def test_enum_members_of_the_session_and_the_library(zoo):
    import signal

    return zoo.identity(Suit.HEARTS) is Suit.HEARTS, zoo.identity(signal.SIGTERM) is signal.SIGTERM


@both
def test_subclasses_of_immutable_builtins(zoo):
    class MyInt(int):
        extra = 1

    class MyStr(str):
        pass

    class MyTuple(tuple):
        pass

    values = [MyInt(5), MyStr("s"), MyTuple((1, [2]))]
    return (
        [zoo.identity(v) is v for v in values], zoo.call(lambda v: v + 1, values[0]), zoo.call(len, values[1]),
        zoo.call(isinstance, values[0], int), zoo.read_attribute(values[0], "extra"), zoo.call(str.upper, values[1]),
        zoo.call(lambda v: type(v) is MyInt, values[0]),
    )  # fmt: skip


@both
def test_bool_is_not_int(zoo):
    return zoo.identity((True, 1, 1.0)), zoo.consume([True, 0])


@both
def test_very_deep(zoo):
    value = ()
    for _ in range(100):
        value = (value,)
    deeper = value
    for _ in range(100_000):
        deeper = (deeper,)
    return zoo.identity(value) == value, type(raises(zoo.call, lambda: 0, *[1])), _too_deep(zoo, deeper)


def _too_deep(zoo, value):
    if type(zoo).__name__ == "module" and getattr(zoo, "__loader__", None) is not None and not _is_proxy(zoo):
        return "RecursionError"
    return type(raises(zoo.identity, value)).__name__


def _is_proxy(module):
    import ipython_isolation

    return ipython_isolation.isproxy(module)


@both
def test_types_as_values(zoo):

    return [zoo.identity(t) is t for t in (int, type, dict, type(None), datetime.date, ValueError)], zoo.identity(list[int]) == list[int]


@both
def test_stdlib_modules(load):
    zlib, struct, decimal_, json, re = load("zlib"), load("struct"), load("decimal"), load("json"), load("re")
    compressed = zlib.compress(b"a" * 1000)
    s = struct.Struct("<ih")
    buffer = bytearray(8)
    s.pack_into(buffer, 1, 5, 6)
    with decimal_.localcontext() as context:
        context.prec = 5
        third = str(decimal_.Decimal(1) / 3)
    m = re.compile(r"(?P<year>\d+)-(\d+)").match("2020-10 rest")
    return (
        zlib.decompress(compressed), zlib.crc32(b"x"), raises(zlib.decompress, b"bad").__class__.__name__,
        s.unpack_from(buffer, 1), buffer, s.size, struct.calcsize("q"), type(raises(struct.unpack, "i", b"")).__name__,
        third, json.loads('{"a": [1, null]}'), json.dumps({"b": (1, 2.5)}), json.dumps([1], indent=1),
        m["year"], m.groups(), m.span(), m.groupdict(), re.sub("a", lambda x: x.group().upper(), "banana"),
    )  # fmt: skip
