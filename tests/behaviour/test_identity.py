"""An immutable value that was an argument and comes back is the original."""

import collections
import datetime
import decimal
import operator
import re

import numpy as np
import pytest
from behaviour.harness import both, worlds  # noqa: F401

VALUES = {
    "tuple": lambda: tuple([1, "two"]),
    "tuple of a list": lambda: ([],),
    "frozenset": lambda: frozenset([1, 2]),
    "big int": lambda: 2**100,
    "int": lambda: int("1000"),
    "small int": lambda: int("7"),
    "float": lambda: float("1.5"),
    "complex": lambda: complex("1j"),
    "str": lambda: "".join(["ab", "c"]),
    "not ASCII": lambda: "".join(["\u1234", "\U00012345"]),
    "surrogate": lambda: "".join(["\ud800", "x"]),
    "long str": lambda: "x" * 100_000,
    "long str that is not ASCII": lambda: "\xe4" * 100_000,
    "bytes": lambda: bytes([1, 2]),
    "large bytes": lambda: bytes(300_000),
    "range": lambda: range(10),
    "slice": lambda: slice(1, 2),
    "date": lambda: datetime.date(2020, 1, 2),
    "Decimal": lambda: decimal.Decimal("1.5"),
    "pattern": lambda: re.compile("a+"),
    "memoryview": lambda: memoryview(b"abc"),
    "read-only array": lambda: np.broadcast_to(np.arange(3), (2, 3)),
    "empty": lambda: (),
    "empty frozenset": lambda: frozenset([]),
}


@pytest.mark.parametrize("name", VALUES)
@both
def test_comes_back(zoo, name):
    value = VALUES[name]()
    return (
        zoo.identity(value) is value,
        zoo.identity(value=value) is value,
        zoo.call(operator.is_, value, value),
        zoo.are_same(value, value),
    )


@both
def test_copied(load):
    copy, value = load("copy"), (1, (2, "three"))
    return (
        copy.copy(value) is value,
        copy.deepcopy(value) is value,
        copy.deepcopy(([], 1)) is value,
        copy.copy([value])[0] is value,
        copy.deepcopy({"k": value})["k"] is value,
    )


@both
def test_inside_of_others(zoo):
    a, b, c = (1, 2), "".join(["x", "y"]), frozenset([b"abc"])
    items = [a, b, c]
    back = zoo.call(lambda x: tuple(reversed(x)), items)
    zoo.call(lambda x: x.reverse(), items)
    pair = zoo.call(lambda x: (x, [x]), a)
    return [x is y for x, y in zip(back, (c, b, a))], [x is y for x, y in zip(items, (c, b, a))], pair[1][0] is a


@both
def test_many(zoo):
    items = [(i, str(i)) for i in range(1000)]
    by_id = {id(item): i for i, item in enumerate(items)}
    out = zoo.call(sorted, items, reverse=True)
    zoo.call(list.reverse, items)
    return [by_id[id(item)] for item in out], [by_id[id(item)] for item in items], out[0][1] is items[0][1]


@both
def test_the_same_twice_is_one_object_there(zoo):
    value, number = (1, 2), float("2.5")
    other = tuple([1, 2])
    return (
        zoo.are_same(value, value),
        zoo.are_same(value, other),
        zoo.are_same(number, number),
        zoo.call(operator.is_, *[value, value]),
        [zoo.call(operator.countOf, [value, other, value, 3], value)],
    )


@both
def test_equal_texts_are_not_one_object_there(zoo):
    """Though a short text that comes again may well be the object that it was last time."""

    def text():
        return "".join(["ab", "c"])

    seen = [zoo.are_same(text(), text()) for _ in range(3)]
    for _ in range(3):
        zoo.identity(text())
        zoo.keep(text())
        seen.append(zoo.is_kept(text()))
    seen.append(zoo.call(lambda x: [zoo.is_kept(x), zoo.are_same(x, text())], text()))
    zoo.forget()
    return seen, [zoo.are_same(text(), text()) for _ in range(3)], {zoo.identity(text()): 1}[text()]


@both
def test_texts_that_come_again(zoo):
    texts = ["", "a", "ab", "ba", "a" * 32, "a" * 33, "\xe4b", "a\x00b", *(f"key {i}" for i in range(200))]
    back = [[zoo.identity(text) for text in texts] for _ in range(3)]
    lengths = [zoo.call(len, text[:end]) for text in map(str, range(10_000, 12_000)) for end in (5, 4)]
    zoo.call(setattr, zoo.Point(1, 2), "".join(["ke", "y"]), 1)  # which interns it
    return back, lengths, [zoo.call(dict, [(text, i)]) for _ in range(2) for i, text in enumerate(texts)], zoo.identity("key")


@both
def test_a_text_that_was_written_into(zoo):
    """By code that should not: it is not what comes for the next text that is the same."""
    seen = []
    for old, new in [("BLUE", "blue"), ("blue", "BLUE"), ("REdd", "redd"), ("RED ", "red ")]:
        zoo.write_into("".join([old[:1], old[1:]]), new.encode())
        seen += [zoo.number_of_colour("".join([text[:1], text[1:]])) for text in (old, new, old, new)]
    return seen


@both
def test_reflexive(load):
    copy, zoo = load("copy"), load("zoo")
    x = ([],)
    x[0].append(x)
    y = copy.deepcopy(x)
    return y is not x, y[0] is not x[0], copy.copy(x) is x, zoo.call(operator.is_, x, x[0][0])


@both
def test_through_callbacks(zoo):
    value = (1, "two")
    seen = []

    def callback(x):
        seen.append(x is value)
        return zoo.call(lambda y: (seen.append(y is value), y)[1], x)

    return zoo.call(callback, value) is value, seen


@both
def test_a_value_of_the_child_in_a_callback(zoo):
    """What the child passes to a callback comes back to it as its own."""
    return zoo.echoes(lambda x: x), zoo.echoes(lambda x: (x, x)[1]), zoo.echoes(lambda x: tuple([*x]))


@both
def test_raised_and_called_again(zoo):
    value = ("x", "y")
    try:
        zoo.call(lambda x: 1 / 0, value)
    except ZeroDivisionError:
        pass
    return zoo.identity(value) is value


@both
def test_nothing_is_kept_after_the_call(zoo):
    class Item:
        pass

    import gc
    import sys

    value = (Item(),)
    before = sys.getrefcount(value)
    zoo.identity(value)
    gc.collect()
    return sys.getrefcount(value) - before


@both
def test_not_an_argument(zoo):
    """An equal one is another."""
    value = (1, 2)
    other = zoo.call(lambda x: tuple([1, 2]), value)
    return other == value, collections.Counter([value, other])


def test_large_values_are_not_sent_back(zoo_frames):
    value = b"x" * 300_000
    sizes = zoo_frames(lambda zoo: zoo.identity(value))
    assert max(sizes) < 1000


@pytest.fixture
def zoo_frames(shared_context):
    zoo = shared_context.load_module("zoo")

    def run(call):
        frames = []
        zoo.identity(0)
        shared_context._peer._tap = frames.append
        try:
            call(zoo)
        finally:
            shared_context._peer._tap = None
        return [len(frame) for frame in frames]

    return run
