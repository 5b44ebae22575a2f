"""What comes ahead, beside everything else that may happen: collections, arguments under way, finalisers, shared parts."""

import gc
import time

from behaviour.harness import both, worlds  # noqa: F401


class _Asks:
    """A cycle whose end asks the other process, in the middle of whatever runs then."""

    def __init__(self, workshop):
        self.me, self.workshop = self, workshop

    def __del__(self):
        self.workshop.identity(1)


@both
def test_a_collection_in_the_middle(load):
    workshop = load("workshop")
    rows = workshop.do("import workshop; workshop.kept[:] = [[[j * 1000 + 0.5 for j in range(20)] for i in range(200)]]; r = workshop.kept[0]")
    dicts = workshop.do("import workshop; workshop.kept += [[{j: j for j in range(300)} for i in range(20)]]; r = workshop.kept[1]")
    before, seen = gc.get_threshold(), []
    gc.collect()
    try:
        for threshold, container, look in ((1, rows, lambda x: x[0:19]), (60, dicts, lambda x: list(x.items())), (1, rows, repr)):
            gc.set_threshold(threshold, 1000, 1000)
            for x in container:
                gc.disable()
                _Asks(workshop)
                gc.enable()
                seen.append(look(x))
                gc.disable()
    finally:
        gc.set_threshold(*before)
        gc.enable()
    return seen


@both
def test_arguments_under_way(load):
    """A list that was passed on is changed without a request."""
    workshop = load("workshop")
    source = "import workshop; workshop.kept[:] = [[[1], [2]], {'a': [1]}]; r = workshop.kept[0]"
    rows, seen = workshop.do(source), []
    first, table = rows[0], workshop.do("import workshop; r = workshop.kept[1]")

    def f(passed):
        for _ in rows:
            pass
        passed.append(5)
        seen.append((len(first), first == [1, 5], repr(first), 5 in first, [len(x) for x in rows]))

    def g(passed):
        for _ in table.items():
            pass
        passed["b"] = 2
        seen.append((len(table), "b" in table, table.get("b"), sorted(table)))

    workshop.do("import workshop; f(workshop.kept[0][0])", None, f)
    workshop.do("import workshop; f(workshop.kept[1])", None, g)
    return seen


@both
def test_a_finaliser_changes_them(load):
    workshop = load("workshop")
    source = "import workshop\nworkshop.kept[:] = [[[1, 2], [3]]]\nclass G:\n    def __del__(self):\n        workshop.kept[0][0].clear()\nr = G"
    made = workshop.do(source)()
    rows = workshop.do("import workshop; r = workshop.kept[0]")
    first = rows[0]
    for _ in rows:
        pass
    del made
    return len(first), list(first)


@both
def test_keys_that_run_code(load):
    workshop = load("workshop")
    # A number: the hash of a text differs between processes, and with it how often a dict compares.
    source = (
        "import workshop\ninner = [[1]]\nclass K:\n    def __hash__(self):\n        return 0\n"
        "    def __eq__(self, other):\n        inner[0].append(7)\n        return False\n"
        "workshop.kept[:] = [{K(): 1, 0: 2}, inner]"
    )
    workshop.do(source)
    table, inner = workshop.do("import workshop; r = workshop.kept[0]"), workshop.do("import workshop; r = workshop.kept[1]")
    [first] = list(inner)
    len(first), table[0]
    return len(first), list(first)


@both
def test_views_of_subclasses(load):
    workshop = load("workshop")
    list(workshop.do("import workshop; workshop.kept[:] = [{1: 2}]; r = workshop.kept[0]").keys())
    source = "import workshop\nclass D(dict):\n    def __len__(self):\n        return 99\nworkshop.kept[:] = [D(a=1, b=2)]\nr = workshop.kept[0]"
    table = workshop.do(source)
    return len(table), len(table.keys()), len(table.items()), list(table.values())


@both
def test_parts_that_are_shared(load):
    """They are looked at once: what refers to them ten times at each of ten levels is not gone through."""
    workshop = load("workshop")
    started = time.monotonic()
    tuples = workshop.do("import workshop\na = (0,)\nfor i in range(12):\n    a = (a,) * 10\nworkshop.kept[:] = [[[a]]]\nr = workshop.kept[0]")
    seen = [len(x) for x in tuples]
    lists = workshop.do("import workshop\na = [0]\nfor i in range(12):\n    a = [a] * 10\nworkshop.kept[:] = [[0] * 1100 + [a]]\nr = workshop.kept[0]")
    seen += [len(list(lists)), lists == lists, 5 in lists[:3]]
    texts = workshop.do("import workshop\nt = 'x' * 5_000_000\nworkshop.kept[:] = [[[(i, t)] for i in range(60)]]\nr = workshop.kept[0]")
    seen += [len(x) for x in texts]
    assert time.monotonic() - started < 20
    return seen
