"""Copy-restore: a call that changes a container changes the caller's."""

from collections import deque

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_list(zoo):
    items = [3, 1, 2]
    same = items
    return zoo.change_list(items), items, same is items


@both
def test_dict(zoo):
    mapping = {"old": 1, "a": [2]}
    inner = mapping["a"]
    return zoo.change_dict(mapping), mapping, list(mapping), mapping["a"] is inner


@both
def test_set(zoo):
    items = {"old", "b"}
    return zoo.change_set(items), items


@both
def test_bytearray(zoo):
    data = bytearray(b"abc")
    return zoo.change_bytearray(data), data


@both
def test_deque(zoo):
    items = deque([1, 2, 3], maxlen=4)
    return zoo.change_deque(items), list(items), items.maxlen


@pytest.mark.parametrize("function", ["change_list", "change_dict", "change_set", "change_bytearray"])
@both
def test_empty(zoo, function):
    value = {"change_list": [], "change_dict": {}, "change_set": set(), "change_bytearray": bytearray()}[function]
    try:
        return getattr(zoo, function)(value), value
    except IndexError as error:
        return type(error), value


@both
def test_nested(zoo):
    inner_list, inner_set = ["x"], {"y"}
    tree = {"a": inner_list, "b": {"c": inner_set}}
    zoo.change_nested(tree)
    return tree, tree["a"] is inner_list, tree["b"]["c"] is inner_set


@both
def test_inside_tuples(zoo):
    items = [1]
    zoo.call(lambda pair: pair[0].append(2), (items, (items,)))
    zoo.append_to(*(items, 3))
    return items


@both
def test_tuple_holding_a_list(zoo):
    items = []
    zoo.change_shared((items, items))
    return items


@both
def test_shared(zoo):
    x = []
    return zoo.change_shared([x, x]), x, zoo.are_same(x, x), zoo.are_same([], [])


@both
def test_the_same_list_in_keyword_and_position(zoo):
    x = [1]
    zoo.call(lambda a, b: (a.append(2), b.append(3)), x, b=x)
    return x


@both
def test_cyclic(zoo):
    items = [1]
    zoo.make_cyclic(items)
    other = [2]
    other.append(other)
    return items[1] is items, len(items), zoo.is_cyclic(other), zoo.is_cyclic(items), other[1] is other


@both
def test_cyclic_dict(zoo):
    d = {}
    d["self"] = d
    zoo.call(dict.update, d, {"k": 1})
    return d["self"] is d, d["k"]


@both
def test_changed_then_raised(zoo):
    items = ["start"]
    return raises(zoo.change_then_raise, items), items


@both
def test_around_a_callback(zoo):
    items = [1]
    seen = []

    def callback():
        seen.append(list(items))
        items.append("from the session")

    return zoo.change_around_callback(items, callback), items, seen


@both
def test_around_a_callback_that_raises(zoo):
    items = [1]

    def callback():
        items.append("in the callback")
        raise LookupError("stop")

    return raises(zoo.change_around_callback, items, callback), items


@both
def test_given_to_the_callback(zoo):
    items = [1]
    seen = []
    zoo.call(lambda x: (x.append(2), seen.append(x is items)), items)
    return items, seen


@both
def test_swapped(zoo):
    x, y = [1], [2]
    a, b = [x], [y, y]
    zoo.swap_elements(a, b)
    return a, b, a[0] is y, b[0] is x


@both
def test_inserted_into_each_other(zoo):
    a, b = [1], [2]
    zoo.insert_into_each_other(a, b)
    return a[1] is b, b[1] is a, len(a), len(b)


@both
def test_a_copy_that_comes_back_is_the_original(zoo):
    items, mapping = [1], {"a": [2]}
    return zoo.identity(items) is items, zoo.first([items]) is items, zoo.call(lambda: items) is items, (
        zoo.call(dict.get, mapping, "a") is mapping["a"]
    )


@both
def test_returned_inside_a_fresh_container(zoo):
    items = [1]
    result = zoo.call(lambda x: [x, x], items)
    result2 = zoo.call(list, [items, 2])
    return result[0] is items, result[1] is items, result2[0] is items


@both
def test_replaced_by_fresh(zoo):
    items, new = [1, 2], [[3], {"k": [4]}]
    zoo.replace_all(items, new)
    return items, items[0] is new[0]


@pytest.mark.parametrize("kind", [list, set, deque, bytearray])
@both
def test_cleared(zoo, kind):
    container = kind(b"abc")
    zoo.clear(container)
    return list(container)


@both
def test_unchanged(zoo):
    items, mapping = [1, [2]], {"z": 1, "a": 2}
    zoo.identity((items, mapping))
    return items, list(mapping)


@both
def test_objects_of_the_session_in_containers(zoo):
    class Thing:
        pass

    t, u = Thing(), Thing()
    items = [t, u]
    zoo.call(list.reverse, items)
    return items[0] is u, items[1] is t, zoo.first(items) is u


@both
def test_proxies_in_containers(zoo):
    a = zoo.Animal("rex")
    items = [a]
    zoo.append_to(items, a)
    zoo.call(list.append, items, zoo.Dog("x"))
    return items[0] is a, items[1] is a, items[2].name, {"k": a}["k"] is a


@both
def test_order_of_a_dict(zoo):
    d = {"a": 1, "b": 2, "c": 3}
    zoo.call(lambda d: d.update({"a": d.pop("a")}), d)
    zoo.call(dict.pop, d, "b")
    zoo.call(dict.update, d, b=4)
    return list(d.items())


@both
def test_keys_of_every_kind(zoo):
    d = {1: "a", 1.5: "b", (1, "x"): "c", None: "d", b"y": "e", frozenset({1}): "f", True: "g"}
    zoo.call(dict.update, d, {(2,): "h"})
    return d, zoo.identity(d) is d


@both
def test_equal_but_other_objects(zoo):
    items = [1, 2]
    zoo.call(lambda x: x.__setitem__(0, 1.0), items)
    d = {1: "a"}
    zoo.call(lambda x: (x.pop(1), x.__setitem__(1.0, "a")), d)
    return items, d


@both
def test_sort_in_place(zoo):
    items = ["bb", "a", "ccc"]
    zoo.sort_by(items, len)
    zoo.call(list.sort, items, reverse=True)
    return items


@both
def test_sort_with_a_key_that_raises(zoo):
    items = [3, 1, 2]
    return type(raises(zoo.sort_by, items, lambda x: 1 / 0)), sorted(items)


@both
def test_large(zoo):
    items = list(range(50_000))
    zoo.call(list.reverse, items)
    d = {i: str(i) for i in range(5_000)}
    zoo.call(dict.pop, d, 77)
    return items[:3], len(items), len(d), sum(items)


@both
def test_mutable_default(zoo):
    zoo.default_list.__defaults__[0].clear()
    first = zoo.default_list("a")
    second = zoo.default_list("b")
    return list(first), first is second


@both
def test_kept_after_the_call(zoo):
    """The one documented difference is that later changes of a kept copy stay there."""
    items = [1]
    zoo.keep(items)
    back = list(zoo.give_back())
    zoo.forget()
    return back, items


@both
def test_kept_objects_are_the_same(zoo):
    class Thing:
        pass

    t = Thing()
    zoo.keep(t)
    same = zoo.give_back() is t
    zoo.forget()
    return same


@both
def test_nested_calls_with_the_same_container(zoo):
    items = [1]

    def again():
        zoo.append_to(items, "inner")
        return len(items)

    seen = zoo.call(lambda x: (again(), x.append("outer"), list(x)), items)
    return seen, items


@both
def test_inner_call_changes_an_outer_argument(zoo):
    items = [1]

    def callback():
        zoo.append_to(items, "inner")

    return zoo.change_around_callback(items, callback), items


@both
def test_setattr_and_setitem_with_containers(zoo):
    a, bag = zoo.Animal("x"), zoo.Bag()
    a.toys = ["ball"]
    bag["k"] = {"a": [1]}
    return list(a.toys), dict(bag["k"]), list(bag["k"]["a"])


@both
def test_subclasses_of_containers(zoo):
    class Mine(list):
        def extra(self):
            return len(self) * 10

    m = Mine([1, 2])
    zoo.append_to(m, 3)
    return m, type(m) is Mine, zoo.call(lambda x: x.extra(), m), zoo.identity(m) is m, zoo.first(m), zoo.consume(m)


@both
def test_unhashable_in_a_set_after_all(zoo):
    return type(raises(zoo.call, set.add, {1}, [2])), zoo.call(set.union, {1}, {2})


@both
def test_keyword_containers(zoo):
    seen = {}
    zoo.call(lambda **k: k["where"].append(1) or seen.update(k), where=[], other={})
    return seen


@both
def test_views_and_iterators(zoo):
    d = {"a": 1, "b": 2}
    return (
        zoo.consume(d.keys()), zoo.consume(d.items()), zoo.consume(iter([1, 2])), zoo.consume(map(str, [1])),
        zoo.consume(x * 2 for x in [1, 2]), zoo.consume("ab"), zoo.consume(zip("ab", [1, 2])),
    )  # fmt: skip


class Key:
    """Hashed and compared by code of the session."""

    def __init__(self, n):
        self.n = n

    def __hash__(self):
        return hash(self.n)

    def __eq__(self, other):
        return isinstance(other, Key) and self.n == other.n

    def __repr__(self):
        return f"Key({self.n})"


@both
def test_keys_that_are_hashed_by_the_session(zoo):
    keys = [Key(1), Key(2), Key(3)]
    mapping = dict.fromkeys(keys, "old")

    def change(m):
        m[keys[0]] = "new"
        del m[keys[1]]
        m[keys[1]] = "again"
        m[Key(4)] = "late"
        return [m[k] for k in keys]

    numbers = set(keys)
    return zoo.call(change, mapping), mapping, zoo.call(lambda s: (s.discard(Key(2)), s.add(Key(5)), len(s)), numbers), len(numbers), Key(5) in numbers


@both
def test_order_of_keys(zoo):
    def run(change, before="abcd"):
        mapping = dict.fromkeys(before, 0)
        zoo.call(eval, "exec(change, {'m': m})", {"m": mapping, "change": change})
        return list(mapping.items())

    return [
        run(change)
        for change in (
            "m['a'] = m.pop('a')", "del m['b']; m['z'] = 1", "m['c'] = m.pop('c'); m['a'] = 5", "m.clear(); m.update(d=1, a=2)",
            "x = list(m.items())[::-1]; m.clear(); m.update(x)", "m.popitem(); m['d'] = 9", "m['b'] = 7", "m.clear()", "pass",
        )
    ]  # fmt: skip
