"""Contents of nested containers come ahead of the questions; nothing may show it but the number of requests."""

import collections
import copy
import itertools
import json
import operator
import pickle
import time

import pytest
from behaviour.harness import both, count, raises, worlds, zoo  # noqa: F401
from conftest import wait_until

import ipython_isolation

ROWS = [[float(i), i * 0.5] for i in range(300)]
RECORDS = [{"name": str(i), "at": [i, -i], "more": {"deep": [[i], (i, [i])]}} for i in range(60)]
BY_NAME = {str(i): [i, i + 1] for i in range(300)}
MANY = {str(i): [i] * (i % 7 + 1) for i in range(3000)}
FLAT = {str(i): i for i in range(300)}
CUBE = [[[i, j] for j in range(10)] for i in range(30)]


def held(zoo, value):
    """The value as an object of the module's side that it keeps, at all depths."""
    return zoo.keep_under("nested", value)


def loops(p):
    return [x[0] for x in p], [a + b for a, b in p], [len(x) for x in p], [x[-1] for x in p if x], [[*x] for x in p], [x[:1] for x in p]


def questions(p):
    return [0.5 in x for x in p], [repr(x) for x in p], [x == [0.0, 0.0] for x in p], [str(x) for x in p]


def records(p):
    return (
        [r["name"] for r in p], [r["at"][1] for r in p], [r["more"]["deep"][1] for r in p], [sorted(r) for r in p], [len(r) for r in p],
        [list(r.items())[0] for r in p], [list(r.keys()) for r in p], [r.get("name") for r in p], [r.get("no", 7) for r in p],
        ["at" in r for r in p], ["no" in r for r in p], [k for r in p for k, v in r.items()], [dict(r)["name"] for r in p],
        [{**r}["name"] for r in p], [str(r) for r in p],
    )  # fmt: skip


USES = {
    "loops": (ROWS, loops),
    "questions": (ROWS, questions),
    "sorted": (ROWS, lambda p: [list(x) for x in sorted(p, reverse=True)]),
    "sorted by key": (ROWS, lambda p: [list(x) for x in sorted(p, key=lambda r: (-r[1], r[0]))]),
    "max": (ROWS, lambda p: (list(max(p)), list(min(p)), list(max(p, key=operator.itemgetter(1))))),
    "zip": (ROWS, lambda p: list(zip(*p))),
    "chain": (ROWS, lambda p: list(itertools.chain.from_iterable(p))),
    "sums": (ROWS, lambda p: sum(sum(x) for x in p)),
    "tuples": (ROWS, lambda p: tuple(map(tuple, p))),
    "dict of pairs": (ROWS, lambda p: dict(p)),
    "dict(nested)": (BY_NAME, lambda p: {k: list(v) for k, v in dict(p).items()}),
    "a loop over items": (BY_NAME, lambda p: [v[0] for k, v in p.items()]),
    "a loop over values": (BY_NAME, lambda p: [a for a, b in p.values()]),
    "a loop over keys": (BY_NAME, lambda p: [p[k][0] for k in p.keys()]),
    "a loop over the dict": (BY_NAME, lambda p: [p[k][0] + p[k][1] for k in p]),
    "half of it": (BY_NAME, lambda p: [p[k][0] for k in p if k > "2"]),
    "of several chunks": (MANY, lambda p: [p[k][-1] for k in p]),
    "records": (RECORDS, records),
    "flat dict": (FLAT, lambda p: (dict(p), {**p}, list(p.items()), list(p.values()), [k for k in p.keys()], len(p.items()))),
    **{
        f"{convert.__name__} of {name}": (value, convert)
        for name, value in (("rows", ROWS), ("records", RECORDS), ("by name", BY_NAME), ("cube", CUBE))
        for convert in (copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), lambda p: json.dumps(p, indent=1), lambda p: pickle.loads(pickle.dumps(p, 2)))
    },
}  # fmt: skip


# How many requests each may take: they grow with the amount of data, in chunks, not with the number of containers.
MOST = {"loops": 20, "questions": 25, "records": 60, "max": 12, "flat dict": 6, "a loop over the dict": 7, "half of it": 7, "of several chunks": 16}


@pytest.mark.parametrize("name", USES)
def test_uses(shared_context, zoo, name):
    value, use = USES[name]
    p = held(zoo, copy.deepcopy(value))
    assert ipython_isolation.isproxy(p)
    assert use(p) == use(value)  # classes become known
    assert count(shared_context, lambda: use(p)) <= MOST.get(name, 5)


@pytest.mark.parametrize("name", ["deepcopy of by name", "dict(nested)", "a loop over the dict", "a loop over items", "loops", "records"])
def test_at_first_use(name):
    """Classes become known by the way."""
    value, use = USES[name]
    counts = []
    for _ in range(3):  # see count()
        with ipython_isolation.IsolationContext() as context:
            p = context.load_module("zoo").keep_under("nested", copy.deepcopy(value))
            before = context._peer.requests
            assert use(p) == use(value)
            counts.append(context._peer.requests - before)
        if counts[-1] <= MOST.get(name, 5) + 4:
            return
    raise AssertionError(counts)


def test_arrays(shared_context, zoo):
    numpy = pytest.importorskip("numpy")
    for value, most in ((list(range(1000)), 1), (ROWS, 4), (CUBE, 4), ([[1, 2], [3]], None), ([(1, 2), (3, 4)], 3)):
        p = held(zoo, value)
        if most is None:
            assert str(raises(numpy.array, p)) == str(raises(numpy.array, value))
            continue
        got, want = numpy.array(p), numpy.array(value)
        assert got.dtype == want.dtype and (got == want).all()
        assert count(shared_context, lambda p=p: numpy.asarray(p)) <= most


@both
def test_length_after_a_probe(zoo):
    p, q = held(zoo, [[1], 2]), zoo.keep_under("other", [3])
    seen = [hasattr(p, "__array__"), len(p), len(q), list(p)[1], list(q)]
    seen += [hasattr(p, "__array__"), len(p), p.append(4), len(p), list(p)[2], hasattr(q, "__array__"), list(q), len(q)]
    seen += [hasattr(p, "__array__"), len(p), zoo.set_item(p, 1, "new"), list(p)[1], hasattr(p, "__array__"), p.clear(), len(p), list(p)]
    return seen


# -- the same objects ----------------------------------------------------------------------------


@both
def test_identity(zoo):
    inner, table = [1, 2], {"x": [3]}
    p = held(zoo, [inner, inner, table, [inner], (inner, table)])
    rows = list(p)
    seen = [rows[0] is rows[1], rows[3][0] is rows[0], rows[4][0] is rows[0], rows[4][1] is rows[2], rows[2]["x"] is rows[2]["x"]]
    seen += [p[0] is rows[0], rows[0] == rows[1], rows[0] is next(iter(p)), [r is s for r, s in zip(p, rows)][:4]]
    again = pickle.loads(pickle.dumps(p))
    seen += [again[0] is again[1], again[3][0] is again[0], again[4][0] is again[0], again[4][1] is again[2]]
    deep = copy.deepcopy(p)
    seen += [deep[0] is deep[1], deep[3][0] is deep[0], deep[4][1] is deep[2], type(deep) is list]
    shallow = copy.copy(p)
    return seen, [a is b for a, b in zip(shallow, rows)][:4], [zoo.call(operator.is_, a, b) for a, b in zip(rows, rows[1:])]


@both
def test_one_that_is_in_itself(zoo):
    p = held(zoo, [1, {}])
    p.append(p)
    p[1]["all"] = p
    rows = list(p)
    seen = [rows[2] is p, rows[1]["all"] is p, repr(p), str(rows[1]), [len(r) for r in rows[1:]], rows[2][2][2][0]]
    again = copy.deepcopy(p)
    seen += [again[2] is again, again[1]["all"] is again, pickle.loads(pickle.dumps(p))[1].keys() == {"all"}]
    seen.append(type(raises(lambda: p == held(zoo, copy.deepcopy(p)))))
    p.clear()
    return seen


@both
def test_not_a_number(zoo):
    made = "(lambda nan: [[nan, 1], [nan, 1], [2, nan], [float('nan')], {'k': nan}, {'k': nan}])(float('nan'))"
    p = zoo.call(eval, f"__import__('zoo').keep_under('nested', {made})")
    a, b, c, d, x, y = p
    return a == b, a != b, a == c, a == a, a < b, d == a, a in p, max(p[:3]) is a, sorted(p[:3])[0] is a, x == y, a[0] == a[0]


@both
def test_comparisons(zoo):
    lists = [[1, 2], [1, 3], [1], [], [1, 2, 0], [1.0, 2], [True, 2], ["a"], [(1, [2])], [(1, [3])], [[1], {"a": 1}], [None]]
    dicts = [{"a": 1}, {"a": 1.0}, {"a": 2}, {}, {"b": [1]}, {"b": [1]}, {1: "x"}, {True: "x"}]
    p, q = held(zoo, lists), held(zoo, dicts)
    found = []
    for group, plain in ((list(p), lists), (list(q), dicts)):
        for compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
            for a, b in itertools.product(range(len(group)), repeat=2):
                for other in (group[b], copy.deepcopy(plain[b])):
                    try:
                        found.append(compare(group[a], other))
                        found.append(compare(other, group[a]))
                    except TypeError as error:
                        found.append(str(error))
    return found, list(p)[0] == (1, 2), list(p)[0] == None, list(q)[0] == [("a", 1)]  # noqa: E711


# -- what changes is seen -------------------------------------------------------------------------


@both
def test_changes(zoo):
    p = held(zoo, [[1, 2], [3, 4], {"a": 1}, [5]])
    rows, seen = list(p), []
    rows[0].append(9)
    seen += [list(rows[0]), len(rows[0]), rows[0][-1]]
    rows = list(p)
    zoo.set_item(rows[1], 0, "new")
    seen += [rows[1][0], rows[1] == ["new", 4], list(rows[1]), repr(rows[1])]
    rows = list(p)
    rows[2]["b"] = 2
    seen += [len(rows[2]), dict(rows[2]), list(rows[2].items()), "b" in rows[2], rows[2].get("b")]
    for row in p:
        seen.append(len(row))
        zoo.call(lambda: p[3].append(len(seen)))
    return seen, list(p[3]), rows[3] is p[3]


@both
def test_changes_while_it_is_iterated(zoo):
    seen = []

    def run(value, change):
        p = held(zoo, [value, [0]])
        inner = list(p)[0]
        try:
            for i, x in enumerate(inner):
                seen.append(x)
                if i == 1:
                    change(inner)
        except RuntimeError as error:
            seen.append(str(error))

    run([1, 2, 3], lambda o: o.append(4))
    run([1, 2, 3], lambda o: o.clear())
    run([1, 2, 3], lambda o: o.insert(0, 0))
    run([1, 2], lambda o: o.append(4))
    run(dict.fromkeys("abc", 0), lambda o: o.update(z=1))
    run(dict.fromkeys("abc", 0), lambda o: o.update(c=1))
    run(dict.fromkeys("ab", 0), lambda o: o.update(z=1))
    run(dict.fromkeys("abc", 0), lambda o: (o.pop("a"), o.update(z=1)))
    run(dict.fromkeys("abcd", 0), lambda o: (o.pop("d"), o.pop("a"), o.update(x=1, y=2)))
    return seen


@both
def test_iterators_of_what_is_known(zoo):
    p = held(zoo, [[1, 2, 3], {"a": 1, "b": 2}])
    row, table = p
    it = iter(row)
    seen = [next(it), operator.length_hint(it), zoo.call(next, it), next(it), next(it, "end"), next(it, "end")]
    row, table = p
    it, items = iter(row), iter(table.items())
    seen += [next(it), next(copy.copy(it)), next(items), zoo.call(list, items), list(it), list(row), repr(type(it) is type(iter([])))[:0]]
    row, table = p
    it = iter(table)
    seen += [next(it), table.pop("b"), str(raises(list, it)), list(reversed(row)), list(table)]
    return seen


@both
def test_values_of_a_loop_over_keys(zoo):
    d = held(zoo, {str(i): [i] for i in range(100)} | {"x": zoo.call, "y": {1}})
    seen = []
    for i, key in enumerate(d):
        if key in "xy":
            continue
        seen += [d[key][0] if key != "80" else len(d[key]), key == "40" or d.get(key) is d[key]]
        if i == 30:
            d["40"] = "new"
        if i == 60:
            d["70"].append(i)
            zoo.set_item(d, "80", {"z": 1})
    keys = list(d)
    del d["10"], d["50"]
    d["10"] = [7]
    return seen, [d[k][0] for k in d if k not in "xy" and k != "80"], str(raises(lambda: [d[k] for k in keys])), d[keys[-1]] == {1}


@both
def test_views(zoo):
    d = held(zoo, {"a": 1, "b": [2]})
    keys, values, items = d.keys(), d.values(), d.items()
    seen = [list(keys), len(values), list(items), "a" in keys, keys & {"a"}, keys == {"a", "b"}, sorted(keys | {"z"}), repr(keys)]
    d["c"] = 3
    seen += [list(keys), len(values), len(items), ("c", 3) in items, list(reversed(keys)), keys.isdisjoint("xyz"), keys.mapping == d]
    seen += [isinstance(keys, collections.abc.KeysView), isinstance(items, collections.abc.ItemsView), str(raises(hash, keys))]
    seen += [values == values, d.values() == values, d.keys() == d.keys(), type(keys) is type(d.keys())]
    seen += [zoo.call(len, d.keys()), zoo.call(list, d.values())[0], zoo.call(lambda v: list(v), d.items())[0], str(raises(pickle.dumps, keys))]
    seen += [zoo.call(lambda: d.keys()) == {"a", "b", "c"}, str(raises(keys.__getattribute__, "nope")), dict(items)["c"]]
    it = iter(keys)
    next(it)
    d["z"] = 1
    seen.append(str(raises(next, it)))
    return seen, str(raises(lambda: [d.pop(k) for k in d.keys()]))


def test_views_in_a_batch(shared_context, zoo):
    d = held(zoo, {"a": 1, "b": [2]})
    list(d.keys()), list(d.items()), list(d.values())  # classes are known
    keys, items, mine = d.keys(), d.items(), []
    with shared_context.batch():
        first, second = zoo.append_to(mine, keys), zoo.call(list, items)
        third, later = zoo.call(list, keys), d.values()
    assert first.result() is None and mine[0] is keys and second.result() == [("a", 1), ("b", [2])]
    assert third.result() == ["a", "b"] and len(later.result()) == 2 and list(keys) == ["a", "b"]


def test_views_after_a_death():
    with ipython_isolation.IsolationContext(restart="auto") as context:
        zoo = context.load_module("zoo")  # noqa: F811
        d = held(zoo, {"a": 1, "b": [2]})
        list(d.keys()), list(d.items())  # classes are known
        keys, items = d.keys(), d.items()
        context.checkpoint()
        with pytest.raises(ipython_isolation.ProcessTerminationError):
            context.call(exec, "import os; os._exit(1)", {})
        assert list(keys) == ["a", "b"] and len(items) == 2 and "a" in keys and list(d.values())[1] == [2]


@both
def test_views_of_subclasses(zoo):
    d, c = zoo.DefaultingDict(a=1), held(zoo, collections.Counter("aab"))
    f = held(zoo, collections.defaultdict(list, x=[1]))
    o = held(zoo, collections.OrderedDict(x=1, y=2))
    seen = [list(v) for m in (d, c, f, o) for v in (m.keys(), m.values(), m.items())]
    c.items = lambda: "hidden"
    return seen, c.items(), dict(f), f["new"], len(f.keys())


@both
def test_what_is_not_plain(zoo):
    p = held(zoo, [[zoo.Animal("rex"), 1], [{1, 2}], [bytearray(b"x")], {(1, 2): 3}, {"f": len}, [b"x" * 100, "y" * 1000], [1 << 100, 1j]])
    return [list(x) for x in p], p[0][0].name, [len(x) for x in p], [repr(x) for x in p][1:], [list(x.items()) for x in p if isinstance(x, dict)]


@both
def test_of_all_sizes(zoo):
    p = held(zoo, [list(range(n)) for n in (0, 1, 10, 1000, 3000, 1, 20000, 0, 1023, 1024, 1025, 5)])
    return [sum(x) for x in p], [len(x) for x in p], [x[-1] for x in p if x], pickle.loads(pickle.dumps(p))[4][-1]


@both
def test_the_child_uses_what_is_ours(zoo):
    class Holder:
        numbers = [[1, 2], {"a": [3]}, [4]]

    first, table, last = zoo.count_through(Holder)
    seen = [zoo.call(list, first), first is Holder.numbers[0]]
    Holder.numbers[0].append(7)
    return seen, zoo.call(sum, Holder.numbers[0]), zoo.call(sorted, Holder.numbers[:1]), list(table), list(last)


# -- how long it is remembered ----------------------------------------------------------------------

WORKER = """
import os, sys, threading, time, types
rows = [[0], {"done": 0}]
flags = {"a": [0], "b": 1, "c": [0]}
numbers = []

def work():
    time.sleep(0.3)
    rows[0][0] = rows[1]["done"] = flags["b"] = flags["a"][0] = 1
    flags["c"] = [1]
    numbers.append(1)
    open(done, "w").close()

def start():
    if os.path.exists(done):
        os.remove(done)
    rows[0][0] = rows[1]["done"] = flags["b"] = flags["a"][0] = 0
    flags["c"] = [0]
    numbers.clear()
    thread = threading.Thread(target=work)
    thread.start()
    return thread

module = sys.modules["worker"] = types.ModuleType("worker")
vars(module).update(start=start, rows=rows, flags=flags, numbers=numbers)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A file that the thread makes when it has done its work: it is seen without a request."""
    return tmp_path_factory.mktemp("worker") / "done"


@pytest.fixture(scope="module")
def worker(shared_context, done):
    shared_context.call(exec, WORKER, {"done": str(done)})
    module = shared_context.load_module("worker")
    return module.start, module.rows, module.flags, module.numbers


@pytest.mark.parametrize("pause", [0, 0.01, 0.1])
@pytest.mark.parametrize(
    "wait",
    [
        lambda rows, first, table, flags, numbers: first[0],
        lambda rows, first, table, flags, numbers: table["done"],
        lambda rows, first, table, flags, numbers: table.get("done"),
        lambda rows, first, table, flags, numbers: first == [1],
        lambda rows, first, table, flags, numbers: 1 in first,
        lambda rows, first, table, flags, numbers: sum(first),
        lambda rows, first, table, flags, numbers: repr(first) == "[1]",
        lambda rows, first, table, flags, numbers: list(table.values())[0],
        lambda rows, first, table, flags, numbers: not first < [1],
        lambda rows, first, table, flags, numbers: len(numbers),
        lambda rows, first, table, flags, numbers: bool(numbers),
        lambda rows, first, table, flags, numbers: flags["b"],
        lambda rows, first, table, flags, numbers: [flags[key][0] for key in flags if key == "c"][0],
        lambda rows, first, table, flags, numbers: dict(flags)["c"][0],
    ],
)
def test_who_waits_for_a_thread_sees_what_it_does(worker, wait, pause):
    """While nothing else is asked of the child: what was remembered is not used for long."""
    start, rows, flags, numbers = worker
    thread = start()
    first, table = rows
    dict(flags), list(numbers)
    end = time.monotonic() + 30
    while not wait(rows, first, table, flags, numbers):
        assert time.monotonic() < end
        time.sleep(pause)
    thread.join()


def test_after_a_pause_it_is_asked_again(worker, done):
    start, rows, flags, numbers = worker
    thread = start()
    first, table = rows
    held_ = dict(flags)["a"]
    list(numbers)
    assert wait_until(done.exists)
    time.sleep(0.1)
    assert first[0] == 1 and table["done"] == 1 and held_[0] == 1 and len(numbers) == 1 and flags["b"] == 1
    thread.join()


def test_nothing_is_kept_for_long(shared_context, zoo):
    value = [[[i], {"a": [i]}] for i in range(50)]
    p = held(zoo, value)
    list(p)  # classes become known
    del value

    def exports():
        return shared_context._peer.host_call("counts")["exports"]

    def settled(most):
        end = time.monotonic() + 10
        while shared_context._peer.counts["imports"] > most and time.monotonic() < end:
            time.sleep(0.02)
        return shared_context._peer.counts["imports"]

    exports()
    before, there = shared_context._peer.counts["imports"], exports()
    rows = list(p)
    assert shared_context._peer.counts["imports"] > before + 100  # those in the rows are remembered
    assert settled(before + 50) <= before + 50  # and forgotten when there is nothing to do
    rows = list(p)
    shared_context.call(len, ())
    assert shared_context._peer.counts["imports"] <= before + 50
    del rows
    assert settled(before) <= before
    end = time.monotonic() + 10
    while exports() > there and time.monotonic() < end:
        time.sleep(0.02)
    assert exports() <= there
