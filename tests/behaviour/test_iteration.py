"""Iterators, generators, coroutines."""

import asyncio
import operator

from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_iterator(zoo):
    it = zoo.Countdown(3)
    return iter(it) is it, next(it), operator.length_hint(it), list(it), next(it, "end"), raises(next, zoo.Countdown(0))


@both
def test_for_break_else(zoo):
    seen = []
    for i in zoo.endless():
        if i == 3:
            break
        seen.append(i)
    for i in zoo.count_up(2):
        seen.append(i)
    else:
        seen.append("else")
    return seen


@both
def test_unpacking(zoo):
    first, *rest = zoo.count_up(4)
    a, b = zoo.OldSequence().__class__, None
    return first, rest, [*zoo.count_up(2), *zoo.Countdown(2)], dict(zip(zoo.count_up(2), "ab")), a is zoo.OldSequence, b


@both
def test_generator_return_value(zoo):
    g = zoo.count_up(1)
    next(g)
    return raises(next, g).value, list(zoo.delegating(2)), _delegate(zoo.count_up(2))


def _delegate(generator):
    def run():
        result = yield from generator
        yield result

    return list(run())


@both
def test_send_throw_close(zoo):
    g = zoo.averager()
    seen = [next(g), g.send(10), g.send(20), g.throw(ValueError), g.send(5)]
    g.close()
    return seen, type(raises(next, g)), type(raises(zoo.averager().throw, KeyError("k")))


@both
def test_failing_generator(zoo):
    g = zoo.failing_generator()
    return next(g), raises(next, g), type(raises(next, g))


@both
def test_generator_attributes(zoo):
    g = zoo.count_up(3)
    before = g.gi_frame is None, g.gi_running
    list(g)
    return before, g.gi_frame is None, g.__name__, g.gi_yieldfrom


@both
def test_iteration_in_the_child(zoo):
    return zoo.consume(zoo.count_up(3)), zoo.consume(zoo.Bag({"a": 1})), zoo.consume(zoo.OldSequence())


@both
def test_builtins_on_iterators(zoo):
    return (
        sum(zoo.count_up(5)), max(zoo.Countdown(3)), sorted(zoo.Countdown(3)), list(map(str, zoo.count_up(2))),
        any(zoo.count_up(2)), list(enumerate(zoo.count_up(2))), set(zoo.count_up(3)), tuple(zoo.count_up(2)),
        list(reversed(zoo.get_held_list())), ",".join(map(str, zoo.count_up(3))), 2 in zoo.count_up(3),
    )  # fmt: skip


@both
def test_coroutine(zoo):
    async def use():
        return await zoo.coroutine(4), [i async for i in zoo.async_count(3)]

    return asyncio.run(use())


@both
def test_session_coroutine_awaits_many(zoo):
    async def use():
        return await asyncio.gather(*(zoo.coroutine(i) for i in range(3)))

    return asyncio.run(use())


@both
def test_itertools(load):
    itertools = load("itertools")
    return (
        list(itertools.islice(itertools.count(5), 3)), list(itertools.chain([1], (2, 3))), next(itertools.cycle("a")),
        [(k, list(g)) for k, g in itertools.groupby("aab")], list(itertools.product("ab", [1])),
        list(itertools.accumulate([1, 2, 3], lambda a, b: a * b)),
    )  # fmt: skip


@both
def test_changing_while_iterating(zoo):
    d = zoo.get_held_dict()

    def use():
        for key in d:
            d[key + "x"] = 1

    error = raises(use)
    zoo.reset_held()
    return error
