"""Operators: CPython's own dispatch, with proxies on either side."""

import math
import operator

import _deaths
import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401

BINARY = "add sub mul truediv floordiv mod pow lshift rshift and_ or_ xor matmul".split()


@pytest.mark.parametrize("name", BINARY)
@both
def test_binary(zoo, name):
    function = getattr(operator, name)
    a, b = zoo.Recorder("a"), zoo.Recorder("b")
    return function(a, b), function(a, 1), function(1, a), function("s", a), function(function(a, b), a)


@pytest.mark.parametrize("name", BINARY)
@both
def test_in_place(zoo, name):
    function = getattr(operator, "i" + name.strip("_"))
    a = zoo.Recorder("a")
    result = function(a, 5)
    return result, result is a, a


@both
def test_divmod_and_three_operand_pow(zoo):
    a = zoo.Recorder("a")
    return divmod(a, 2), divmod(2, a), round(a), round(a, 3)


@pytest.mark.parametrize("name", ["neg", "pos", "abs", "invert"])
@both
def test_unary(zoo, name):
    return getattr(operator, name)(zoo.Recorder("a"))


@both
def test_conversions(zoo):
    n = zoo.Number(3)
    return (
        int(n), float(n), complex(n), operator.index(n), bool(n), bool(zoo.Number(0)), math.trunc(n), [0, 1, 2, 3][n],
        hex(n), f"{n:>5}", str(n), bytes(n), range(n), "ab" * n, n + 1, int(n + 2.5), type(raises(lambda: n + "x")),
        math.sqrt(zoo.Number(4)), [1, 2, 3, 4][: zoo.Number(2)], bool(zoo.Animal("x")),
    )  # fmt: skip


@both
def test_format_and_repr(zoo):
    a = zoo.Animal("rex")
    return f"{a}", f"{a!r}", "%s %r" % (a, a), repr([a]), str({"a": a}), "{:>5}".format(zoo.Number(4))


@both
def test_equality_hash_order(zoo):
    a, b, c = zoo.Version(1, 2), zoo.Version(1, 2), zoo.Version(2)
    return (
        a == b, a != b, a == c, a < c, a <= b, a > c, c >= a, a == 5, a is b, hash(a) == hash(b), {a: "x"}[b],
        len({a, b, c}), sorted([c, a])[0] is a, max(a, c) is c, [a, c].index(b), b in [c, a], type(raises(lambda: a < 5)),
    )  # fmt: skip


@both
def test_identity_semantics(zoo):
    a, b = zoo.Animal("x"), zoo.Animal("x")
    return a == a, a == b, a != b, len({a, b, a}), type(raises(lambda: a < b)), hash(a) == hash(a)


@both
def test_unhashable(zoo):
    u = zoo.Unhashable()
    return raises(hash, u), u == zoo.Unhashable(), u == 3, type(raises(lambda: {u}))


@both
def test_comparisons_that_give_no_bool(zoo):
    a, b = zoo.VectorLike(1, 2), zoo.VectorLike(1, 3)
    return a == b, a < b, a > b, raises(bool, a), a != b


@both
def test_container(zoo):
    bag = zoo.Bag({"a": 1, "b": 2})
    bag["c"] = 3
    del bag["a"]
    return (
        len(bag), bag["b"], "b" in bag, "zz" in bag, list(bag), list(reversed(bag)), type(raises(lambda: bag["zz"])),
        bag[1:2], bag[1, ...], bag[...], bag[::-1], raises(lambda: bag["zz"]).args,
    )  # fmt: skip


@both
def test_iteration_by_getitem(zoo):
    old = zoo.OldSequence()
    return list(old), 4 in old, 5 in old, [*old], max(old), dict(enumerate(old))


@both
def test_calling(zoo):
    f = zoo.Callable(10)
    seen = [f(1, 2), f(*[1], **{}), f(3, key="word")]
    return seen, [(tuple(a), dict(k)) for a, k in f.calls], callable(f), callable(zoo.Animal("x")), zoo.call(f, 5)


@both
def test_chained_and_mixed(zoo):
    a = zoo.Recorder("a")
    return a + 1 - 2 * a, -a ** 2, (a << 1) | a & 3, a @ a


@both
def test_not_supported(zoo):
    a = zoo.Animal("x")
    return [
        raises(f)
        for f in (lambda: a + 1, lambda: 1 + a, lambda: a[0], lambda: len(a), lambda: a(), lambda: -a, lambda: iter(a),
                  lambda: int(a), lambda: 3 in a, lambda: a @ a)
    ]  # fmt: skip


@both
def test_sorted_min_max(zoo):
    vs = [zoo.Version(3), zoo.Version(1), zoo.Version(2)]
    return [v.parts for v in sorted(vs)], min(vs).parts, max(vs).parts


@both
def test_operators_of_stdlib_objects(load):
    decimal = load("decimal")
    d = decimal.Decimal("1.5")
    return str(d + 1), str(3 - d), d > 1, d == 1.5, hash(d) == hash(1.5), str(d.quantize(decimal.Decimal("1"))), round(d)


@both
def test_ordered_dict(load):
    collections = load("collections")
    od = collections.OrderedDict(a=1)
    od["b"] = 2
    od.move_to_end("a")
    c = collections.Counter("abca")
    c.update("zz")
    d = collections.deque([1, 2, 3], maxlen=3)
    d.append(4)
    return list(od.items()), dict(od), sorted(c.items()), c.most_common(1), list(d), d[0], d.maxlen, len(d), 4 in d


@both
def test_slots_called_by_name(load):
    """As `dict.__setitem__(d, k, v)`: what a class in C has for an operator, and what it says of wrong arguments."""
    cls = load("collections").OrderedDict
    od = cls(a=1)
    cls.__setitem__(od, "b", 2)
    cls.__init__(od, {"c": 3}, d=4)
    cls.__delitem__(od, "a")
    wrong = [
        lambda: cls.__setitem__(od, "b"), lambda: cls.__setitem__(od, 1, 2, 3), lambda: cls.__setitem__(),
        lambda: cls.__setitem__({}, 1, 2), lambda: cls.__setitem__(od, 1, value=2), lambda: cls.__delitem__(od, "x"),
        lambda: cls.__setitem__(od, [], 2), lambda: cls.__repr__(od, 1), lambda: cls.__repr__(3), lambda: cls.__iter__(od, 1),
        lambda: cls.__delitem__(od, "c", 5), lambda: cls.__delitem__(od, "new", 5), lambda: cls.__delitem__(od),
        lambda: cls.__getitem__(od), lambda: cls.__getitem__(od, "c", 5),
    ]  # fmt: skip
    results = cls.__eq__(od, cls(b=2)), cls.__lt__(od, od), cls.__or__(od, {"e": 5}), cls.__repr__(od), list(cls.__iter__(od))
    return list(od.items()), results, [(type(error), str(error)) for error in map(raises, wrong)]


@both
def test_slots_that_break_the_rules(load):
    """The call that did it raises, and no other."""
    cls, join = load("_deaths").Liar, load("posixpath").join
    liar, found = cls(), []
    for call in (
        lambda: cls.__repr__(liar), lambda: cls.__getitem__(liar, 1), lambda: cls.__setitem__(liar, 1, 2),
        lambda: cls.__delitem__(liar, 1),
    ):  # fmt: skip
        error = raises(call)
        found += [type(error), str(error), type(error.__cause__), str(error.__cause__), join("a", "b")]
    return found


def test_a_slot_of_the_session_that_breaks_the_rules(shared_context):
    def lies(liar):
        return type(liar).__repr__(liar)

    error = raises(shared_context.call, lies, _deaths.Liar())
    assert type(error) is SystemError and "returned a result with an exception set" in str(error)
    assert shared_context.load_module("posixpath").join("a", "b") == "a/b"


@both
def test_calls_of_any_size(load):
    """Of arguments, keywords, letters in a name: what a request says in one byte, and what it does not."""
    join, make = load("posixpath").join, load("collections").OrderedDict
    partial = load("functools").partial(dict)
    found = []
    for n in 0, 1, 2, 252, 253, 254, 255, 256, 1000:
        name = "n" * n
        setattr(partial, name, n)
        found += [join("/", *["a"] * n), list(make(**{f"k{i}": i for i in range(n)})), list(make(**{name: n}))]
        found += [getattr(partial, name), partial.__dict__[name]]
    return found
