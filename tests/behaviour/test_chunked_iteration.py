"""Plain containers are iterated several items at a time; nothing may show it."""

import collections
import copy
import operator
import pickle
import weakref

from behaviour.harness import both, count, raises, worlds, zoo  # noqa: F401


def held(zoo, value):
    """The value as an object of the module's side that it keeps."""
    return zoo.keep_under("iterated", value)


@both
def test_all_kinds(zoo):
    numbers, mapping = held(zoo, list(range(3000))), held(zoo, {str(i): i for i in range(3000)})
    things = held(zoo, [zoo.Animal(str(i)) for i in range(200)])
    return (
        list(numbers) == list(range(3000)), sum(numbers), sorted(numbers, reverse=True)[:2], dict(mapping)["2999"],
        [*mapping][-1], list(mapping.values())[-1], list(mapping.items())[-1], "-".join(mapping)[-9:], set(numbers) == set(range(3000)),
        [a.name for a in things][-1], sorted(held(zoo, set(range(2000))))[-1], list(held(zoo, bytearray(b"xyz"))),
        [k for k in held(zoo, collections.OrderedDict(a=1, b=2))], list(reversed(numbers))[0], max(numbers), 2999 in numbers,
        list(zip(numbers, mapping))[-1], list(enumerate(held(zoo, ["a", "b"]))), list(held(zoo, [])), [[], *held(zoo, [[1]])],
    )  # fmt: skip


@both
def test_a_list_that_grows_in_the_loop(zoo):
    numbers, seen = held(zoo, [1, 2, 3]), []
    for x in numbers:
        seen.append(x)
        if len(seen) < 6:
            numbers.append(x * 10)
    return seen


@both
def test_a_list_that_shrinks_in_the_loop(zoo):
    numbers, seen = held(zoo, list(range(10))), []
    for x in numbers:
        seen.append(x)
        numbers.remove(x)
    return seen, list(numbers)


@both
def test_a_list_that_changes_later(zoo):
    numbers = held(zoo, list(range(10)))
    it = iter(numbers)
    seen = [next(it), next(it)]
    numbers[2] = "new"
    numbers.insert(0, "first")
    seen += [next(it), next(it), next(it)]
    del numbers[:]
    return seen, list(it), next(it, "end")


@both
def test_an_end_that_was_not_the_end(zoo):
    numbers = held(zoo, [1])
    it = iter(numbers)
    seen = [next(it)]
    numbers.append(2)  # before the iterator has found the end
    seen.append(next(it))
    seen.append(next(it, "end"))
    numbers.append(3)  # after
    return seen, next(it, "end")


@both
def test_a_list_that_is_short_for_a_while(zoo):
    """An iterator is at its index, also while the list has no such item, and is asked something meanwhile."""
    seen = []
    for direction in iter, reversed:
        numbers = held(zoo, list(range(10)))
        it = direction(numbers)
        seen.append([next(it) for _ in range(6)])
        del numbers[3:]
        seen.append(operator.length_hint(it))
        numbers.extend("abcdefgh")
        seen.append(list(it))
    return seen


@both
def test_a_dict_that_grows(zoo):
    mapping = held(zoo, dict.fromkeys("abc", 0))

    def grow():
        for key in mapping:
            mapping[key + key] = 1

    def later():
        it = iter(mapping)
        next(it)
        mapping["z"] = 1
        return list(it)

    return [str(raises(f)) for f in (grow, later)], str(raises(lambda: [mapping.pop(k) for k in mapping.keys()]))


@both
def test_a_dict_whose_values_change(zoo):
    mapping, seen = held(zoo, dict.fromkeys("abcd", 0)), []
    for key, value in mapping.items():
        seen.append((key, value))
        mapping["d"] = mapping["d"] + 1
    for key in mapping:
        mapping[key] = key
        seen.append(mapping[key])
    return seen, dict(mapping)


@both
def test_a_set_that_grows(zoo):
    numbers = held(zoo, {1, 2, 3})
    return str(raises(lambda: [numbers.add(x + 100) for x in numbers]))


@both
def test_the_length_that_came_along(zoo):
    numbers, seen = held(zoo, [1, 2, 3]), []
    for _ in numbers:
        seen.append(len(numbers))
        numbers.pop()
    it = iter(numbers)
    numbers.extend("abc")
    return seen, len(numbers), len(list(it))


@both
def test_the_values_that_came_along(zoo):
    mapping, seen = held(zoo, {"a": 1, "b": 2, "c": 3}), []
    for key in mapping:
        seen.append(mapping[key])
        if key == "a":
            zoo.set_item(mapping, "b", 20)
    return seen, str(raises(operator.getitem, mapping, "no"))


@both
def test_what_runs_there_changes_it(zoo):
    numbers, seen = held(zoo, list(range(5))), []
    for x in numbers:
        seen.append(x)
        if x == 1:
            zoo.call(lambda: numbers.append("by a callback"))
    return seen


@both
def test_the_child_iterates_what_is_ours(zoo):
    class Holder:
        numbers = list(range(5))

    it = zoo.count_through(Holder)
    seen = [next(it), next(it)]
    Holder.numbers.append("late")
    del Holder.numbers[2]
    return seen, list(it)


@both
def test_the_iterator_itself(zoo):
    numbers = held(zoo, list(range(10)))
    it = iter(numbers)
    seen = [next(it), operator.length_hint(it), iter(it) is it]
    twin = copy.copy(it)
    seen += [next(it), next(twin), next(twin), pickle.loads(pickle.dumps(it)).__next__()]
    it.__setstate__(8)
    seen += [list(it), operator.length_hint(it), next(it, "end")]
    half = iter(numbers)
    next(half)
    seen += [zoo.call(next, half), next(half), zoo.call(list, half), list(half)]
    seen += [isinstance(half, type(iter([]))), isinstance(half, collections.abc.Iterator), half.__class__.__name__]
    return seen


@both
def test_two_at_once(zoo):
    numbers = held(zoo, [1, 2, 3])
    return [(a, b) for a in numbers for b in numbers], list(zip(numbers, numbers))


@both
def test_subclasses(zoo):
    d, k = zoo.DefaultingDict(a=1), zoo.KeepingList([1, 2])
    return list(d), list(k), [x for x in d.items()]


def test_requests(worlds, zoo):
    context = worlds[1].context
    numbers, mapping = held(zoo, list(range(1000))), held(zoo, {str(i): i for i in range(300)})
    mapping.keys(), mapping.items(), mapping.values()  # the first ones of a life are asked for: their classes are not known
    assert count(context, lambda: list(numbers)) == 1
    assert count(context, lambda: sum(numbers)) == 1
    assert count(context, lambda: sorted(numbers)) == 1
    assert count(context, lambda: [len(numbers) for _ in numbers]) == 1
    assert count(context, lambda: [mapping[k] for k in mapping]) == 1
    assert count(context, lambda: dict(mapping)) == 1
    assert count(context, lambda: [numbers.index(x) for x in range(10)]) == 10
    big = held(zoo, list(range(100_000)))
    assert count(context, lambda: sum(big)) < 20
    assert count(context, lambda: next(iter(big))) == 1


@both
def test_the_end_of_an_item_iterates_too(zoo):
    """What was fetched together ends together, where one request's items follow another's."""
    animals = held(zoo, [zoo.Animal(str(i)) for i in range(1000)])
    it, refs, seen, inside = iter(animals), [], [], [0]

    def ended(ref):
        if inside[0] < 3:
            inside[0] += 1
            seen.append(next(it).name)

    for animal in it:
        seen.append(animal.name)
        refs.append(weakref.ref(animal, ended))
        del animal
    return len(seen), sorted(map(int, seen)) == list(range(1000))


EDGES = [0, -1, 127, -128, 128, -129, 2**15 - 1, -(2**15), 2**15, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1]


@both
def test_numbers_of_all_sizes(zoo):
    """They go packed where many of one kind are in a row: as items, in arguments and in results."""
    found = []
    for i, edge in enumerate(EDGES):
        numbers = [n % 100 for n in range(7 + i)] + [edge] * 9 + list(range(5))
        found.append((list(held(zoo, numbers)), list(held(zoo, tuple(numbers))), zoo.repeat(numbers, 1), zoo.repeat(tuple(numbers), 1)))
    return found


@both
def test_floats_and_what_is_mixed_with_numbers(zoo):
    floats = [0.0, -0.0, 1.5, float("inf"), float("-inf"), 5e-324, 1.7e308, 0.1, 1 / 3]
    mixed = [*floats, 1, True, *range(10), None, "a", *floats, False, 2, 2**70, *range(8), [1], *range(20)]
    texts = [repr(list(held(zoo, case))) for case in (floats, floats * 300, mixed, mixed * 50, [True] * 20, [*range(2000), 1.5])]
    return texts, repr(zoo.repeat(mixed, 2)), repr(zoo.repeat(tuple(mixed), 1)), [type(x).__name__ for x in held(zoo, mixed)]


@both
def test_packed_numbers_of_a_list_that_changes(zoo):
    numbers, seen = held(zoo, list(range(3000))), []
    it = iter(numbers)
    for n in it:
        seen.append(n)
        if n in (500, 1100, 2500) and numbers[0] != -n:
            numbers.insert(0, -n)
        if n == 2000:
            numbers[2050:2060] = ["x", None]
    numbers.append(5)
    return len(seen), [x for x in seen if type(x) is not int], sum(x for x in seen if type(x) is int), list(it)


@both
def test_packed_numbers_of_a_list_that_shrinks(zoo):
    numbers, seen = held(zoo, [float(i) for i in range(5000)]), []
    for x in numbers:
        seen.append(x)
        if len(seen) == 1500:
            del numbers[1400:4900]
    return seen, operator.length_hint(iter(numbers))
