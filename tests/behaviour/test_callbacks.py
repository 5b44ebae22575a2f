"""The child calls the session: nested, raising, deep."""

import functools
import sys

from behaviour.harness import both, raises, worlds, zoo  # noqa: F401


@both
def test_every_kind_of_callable(zoo):
    class Thing:
        def method(self, x):
            return ("method", x)

        @classmethod
        def of_class(cls, x):
            return (cls.__name__, x)

        @staticmethod
        def static(x):
            return ("static", x)

        def __call__(self, x):
            return ("call", x)

    t = Thing()
    partial = functools.partial(lambda a, b: (a, b), 1)
    return [zoo.call(f, 5) for f in (t.method, Thing.of_class, Thing.static, t, partial, str, [].append, (5, 6).count)]


@both
def test_keywords_and_many(zoo):
    return zoo.call(lambda *a, k=0, **m: (a, k, m), 1, 2, k=3, z=4), zoo.call_many(lambda i: i * i, 5)


@both
def test_nested_twenty_deep(zoo):
    return zoo.ping_pong(lambda function, depth: function(lambda f, d: 100, depth), 1), _deep(zoo, 20)


def _deep(zoo, depth):  # noqa: F811
    return 0 if depth == 0 else 1 + zoo.call(_deep, zoo, depth - 1)


@both
def test_both_sides_call_each_other(zoo):
    def here(there, depth):
        return there(here, depth) if depth else 0

    return zoo.ping_pong(here, 12)


@both
def test_raising(zoo):
    def stop():
        raise LookupError("stop")

    return zoo.call_and_catch(stop), raises(zoo.call, stop), raises(zoo.call_and_translate, stop)


@both
def test_raising_through_twenty_levels(zoo):
    def down(depth):
        if depth == 0:
            raise KeyError("bottom")
        return zoo.call(down, depth - 1)

    return raises(down, 20)


@both
def test_caught_half_way(zoo):
    def inner():
        raise zoo.CageError("inner", 3)

    def outer():
        try:
            zoo.call(inner)
        except zoo.ZooError as error:
            return error.code, type(error) is zoo.CageError
        return None

    return zoo.call(outer)


@both
def test_kept_callback(zoo):
    clicks = []
    button = zoo.Button()

    @button.on_click
    def clicked(x):
        clicks.append(x)
        return x + 1

    seen = button.click(1), button.click(2), clicks, clicked.__name__
    return seen, button.handlers[0] is clicked, len(button.handlers)


@both
def test_callback_object_used(zoo):
    class Thing:
        n = 3

        def __len__(self):
            return self.n

        def __iter__(self):
            yield from "abc"

        def __getitem__(self, i):
            return "item", i

        def __str__(self):
            return "a thing"

        def __eq__(self, other):
            return True

        __hash__ = None

    t = Thing()
    zoo.write_attribute(t, "n", 5)
    return zoo.use(t), zoo.read_attribute(t, "n"), zoo.catch(zoo.read_attribute, t, "missing")


@both
def test_generators_of_the_session(zoo):
    log = []

    def generate():
        try:
            for i in range(3):
                log.append(i)
                yield i
        finally:
            log.append("closed")

    seen = zoo.consume(generate()), log[:]
    g = generate()
    seen += (zoo.call(next, g), zoo.call(g.close))
    return seen, log


@both
def test_sort_by_key_of_the_session(zoo):
    items = ["bbb", "a", "cc"]
    zoo.sort_by(items, lambda s: -len(s))
    return items


@both
def test_returns_of_every_kind(zoo):
    a = zoo.Animal("rex")
    values = [None, 1, [1, [2]], {"k": (1,)}, {1}, a, zoo.Animal, zoo, ValueError("v")]
    same = [zoo.call(lambda v=v: v) is v for v in values]
    return same, [zoo.call(lambda v=v: v) for v in ("s", 2.5, (1, [2]), b"b")], zoo.call(lambda: len)("abc")


@both
def test_wrong_number_of_arguments(zoo):
    return raises(zoo.call, lambda a: a), zoo.call_and_catch(lambda a: a)


@both
def test_recursion_error(zoo):
    def forever():
        return forever()

    return type(raises(zoo.call, forever)), zoo.identity(1)


def test_unbounded_mutual_recursion_is_an_error(zoo):  # noqa: F811
    def forever():
        return zoo.call(forever)

    limit = sys.getrecursionlimit()
    error = raises(forever)
    assert isinstance(error, RecursionError)
    assert zoo.identity(1) == 1 and sys.getrecursionlimit() == limit


@both
def test_callback_changes_module_state(zoo):
    def change():
        zoo.set_counter(41)
        return zoo.increment_counter()

    seen = zoo.call(change), zoo.counter
    zoo.set_counter(0)
    return seen


@both
def test_exit_and_interrupt_pass_through(zoo):
    def stop(kind):
        raise kind("now")

    return [type(raises(zoo.call, stop, kind)) for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration)]


@both
def test_endless_recursion_through_both(zoo):
    def again(n):
        return zoo.call(again, n + 1)

    return type(raises(again, 0)).__name__, zoo.call(abs, -1)


@both
def test_a_namespace_copied_to_another_class(zoo):
    class Mine:
        color = ("red", ["held"])

        def hello(self):
            return "hello"

    copy = zoo.call(eval, "type(m)('Copy', (), {k: v for k, v in m.__dict__.items() if k in ('color', 'hello')})", {"m": Mine})
    return copy.color, copy().hello(), zoo.read_attribute(copy, "color")
