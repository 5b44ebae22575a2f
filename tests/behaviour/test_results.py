"""Results: what moves, what stays behind a proxy, and that a target is one proxy."""

import gc
import weakref

from behaviour.harness import both, worlds, zoo  # noqa: F401
from conftest import wait_until

from ipython_isolation import isproxy


@both
def test_values(zoo):
    return zoo.many_values(), zoo.fresh_list(), zoo.fresh_dict()


@both
def test_shared_and_cyclic_results(zoo):
    shared, cycle = zoo.fresh_shared(), zoo.fresh_cycle()
    shared[0].append(2)
    return list(shared[1]), shared[0] is shared[1], cycle[0] is cycle, cycle[0][0] is cycle[0], len(cycle)


@both
def test_held(zoo):
    held, mapping = zoo.get_held_list(), zoo.get_held_dict()
    held.append(4)
    mapping["new"] = [1]
    mapping["new"].append(2)
    seen = list(zoo.held_list), dict(zoo.held_dict)["k"], list(zoo.held_dict["new"]), held is zoo.get_held_list()
    zoo.reset_held()
    return seen, list(held), dict(mapping), isinstance(held, list), isinstance(mapping, dict), type(held) is type(held)


@both
def test_methods_of_a_held_list(zoo):
    held = zoo.get_held_list()
    held.extend([5, 4])
    held.insert(0, "x")
    held.remove("x")
    held.sort()
    seen = list(held), held.index(4), held.count(1), held.pop(), held[::-1], held[1:3], held + [9], held * 2
    held[1:] = [7]
    held += [8]
    seen += list(held), held == [1, 7, 8], held != [1], held < [2], [1, 7, 8] == held, len(held), bool(held)
    zoo.reset_held()
    return seen


@both
def test_methods_of_a_held_dict(zoo):
    d = zoo.get_held_dict()
    d.update(a=1)
    seen = d.get("a"), d.get("z", 5), sorted(d), sorted(d.items()), d.pop("a"), d.setdefault("q", 3), d | {"w": 1}
    seen += d == {"k": "v", "q": 3}, {**d}, "k" in d, len(d), {"k": "v", "q": 3} == d, dict(d), d.copy(), str(d)
    zoo.reset_held()
    return seen


@both
def test_mixed(zoo):
    mixed = zoo.fresh_mixed()
    mixed[0].append("seen by all")
    seen = list(zoo.held_list), mixed[1], mixed[0] is zoo.get_held_list()
    zoo.reset_held()
    return seen


@both
def test_what_came_from_here_comes_back(zoo):
    class Thing:
        pass

    t = Thing()
    f = lambda: t  # noqa: E731
    return (
        zoo.identity(t) is t, zoo.identity(f) is f, zoo.call(f) is t, zoo.first([t]) is t, zoo.identity(Thing) is Thing,
        zoo.identity((t, 1))[0] is t, zoo.identity(zoo) is zoo, zoo.call(lambda *a: a[0], t) is t,
    )  # fmt: skip


@both
def test_identity(zoo):
    a, b = zoo.fresh_animals(2)
    return (
        zoo.identity(a) is a, zoo.identity([a, b])[1] is b, a is b, zoo.use is zoo.use, zoo.Animal is zoo.Animal,
        a.rename("x") is a, zoo.partial is zoo.partial, zoo.namespace is zoo.namespace,
        zoo.namespace.b is zoo.namespace.b,
    )  # fmt: skip


@both
def test_closures(zoo):
    add, count = zoo.make_adder(5), zoo.make_counter()
    return add(1), zoo.call(add, 2), [count(), count()], zoo.call(count), list(map(add, [1, 2])), sorted([3, 1], key=add)


@both
def test_partial_and_cache(zoo):
    zoo.cached.cache_clear()
    return zoo.partial("101"), zoo.cached(4), zoo.cached(4), tuple(zoo.cached.cache_info()), zoo.partial.func is int


@both
def test_functions(zoo):
    f = zoo.call
    return f.__name__, f.__module__, f.__doc__, f.__qualname__, f.__defaults__, zoo.default_list.__defaults__, callable(f)


@both
def test_function_attributes(zoo):
    zoo.identity.mark = 5
    seen = zoo.identity.mark, hasattr(zoo.identity, "nothing")
    del zoo.identity.mark
    return seen, hasattr(zoo.identity, "mark")


@both
def test_held_containers_as_arguments(zoo):
    held = zoo.get_held_list()
    zoo.append_to(held, "more")
    seen = list(held), zoo.identity(held) is held, zoo.first(held), sorted(zoo.consume(held), key=str)
    zoo.reset_held()
    return seen


@both
def test_printing_into_the_session(zoo):
    return f"{zoo.get_held_list()} {zoo.get_held_dict()!r} {zoo.Color.RED} {zoo.Pair(1, 2)} {zoo.Point(1)}"


def test_fresh_results_move(zoo):  # noqa: F811
    for fresh, kind in ((zoo.fresh_list(), list), (zoo.fresh_dict(), dict), (zoo.fresh_mixed(), list)):
        assert type(fresh) is kind and not isproxy(fresh)
    assert not isproxy(zoo.fresh_dict()["b"])
    assert isproxy(zoo.fresh_mixed()[0]) and not isproxy(zoo.fresh_mixed()[1])
    assert isproxy(zoo.get_held_list())


def test_results_outlive_the_child(context):
    zoo = context.load_module("zoo")  # noqa: F811
    fresh, values = zoo.fresh_dict(), zoo.many_values()
    context.close()
    assert fresh == {"a": [1], "b": {"c": (2, 3)}} and values[3] == 0


def test_targets_are_released(zoo, shared_context):  # noqa: F811
    remote = zoo.call(weakref.WeakSet)
    animals = zoo.fresh_animals(20)
    for a in animals:
        remote.add(a)
    assert len(remote) == 20
    del a, animals
    gc.collect()
    # The next request carries the releases, unless the service thread has just sent them: they may arrive after it.
    assert wait_until(lambda: zoo.call(len, remote) == 0)


def test_session_objects_are_released(zoo):  # noqa: F811
    class Thing:
        pass

    t = Thing()
    gone = weakref.ref(t)
    assert zoo.identity(t) is t
    zoo.keep(t)
    del t
    gc.collect()
    assert gone() is not None
    zoo.forget()
    assert wait_until(lambda: (zoo.get_counter(), gc.collect(), gone() is None)[-1])
