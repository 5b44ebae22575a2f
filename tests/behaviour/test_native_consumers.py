"""What code in C asks for by exact type, by memory or by the calling frame."""

import numpy as np
from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_held_arrays_are_real_ones_for_who_asks_by_protocol(zoo):
    table = zoo.Table([1, 2, 3], ["a", None, ("b", 2)])
    numbers = np.asarray(table)
    table.wanted = table.texts
    texts = np.asarray(table)
    texts[0] = "here"
    return type(numbers) is np.ndarray, numbers.tolist(), np.mean(numbers), texts.tolist(), table.total(), texts.dtype == object, np.array(table).shape


@both
def test_array_interface(zoo):
    return type(zoo.Interface().__array_interface__), zoo.Interface().__array_interface__["shape"]


@both
def test_arrays_of_objects_move(zoo):
    makes = [
        lambda: np.array([["a", 1], [None, 2.5]], dtype=object),
        lambda: np.array([["a", 1, 2], [None, 2.5, 3]], dtype=object, order="F"),
        lambda: np.array([], dtype=object),
        lambda: np.empty(2, dtype=object),
        lambda: np.array("x", dtype=object),
    ]
    moved = [zoo.call(eval, f"__import__('numpy').array({m().tolist()!r}, dtype=object)") for m in makes]
    return [(type(m) is np.ndarray, m.shape, m.tolist(), m.flags.writeable) for m in moved]


@both
def test_values_made_by_operators(zoo):
    union = zoo.UNION
    return str(union), union.__args__[1], isinstance(5, union), isinstance("x", union), isinstance(zoo.Table([], []), union)


@both
def test_a_property_of_the_class(zoo):
    class Mine(zoo.Counted):
        kinds = ("x", "y", "z")

    return zoo.Counted.plenty, zoo.Counted().plenty, Mine.kinds, isinstance(zoo.Animal.mood, property)


@both
def test_super_is_seen_in_the_calling_frame(zoo):
    class Mine(zoo.Virtual):
        def whose(self, mark=None):
            return "mine and " + super().whose(mark=mark)

    class Failing(zoo.Virtual):
        def whose(self, mark=None):
            return super().whose(1, 2, 3)

    error = raises(Failing().whose)
    frames, tb = [], error.__traceback__
    while tb is not None:
        frames.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    return Mine().whose(7), type(error), "<isolation>" in str(frames)


@both
def test_buffers_of_subclasses_of_bytes(zoo):
    class Mine(zoo.RawBytes):
        pass

    return b"a" + Mine(b"bc"), b"a" + zoo.RawBytes(b"bc"), bytes(memoryview(Mine(b"xyz"))[1:]), b"-".join([Mine(b"1"), zoo.RawBytes(b"2")])


@both
def test_buffers_without_dimensions(ctypes):
    view = memoryview(ctypes.c_int(5))
    return view.shape, view.ndim, view.nbytes, bytes(view)[0], np.asarray(view).shape


@both
def test_views_of_unusual_formats(zoo):
    a = np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")])
    return zoo.identity(memoryview(a)).format, zoo.identity(memoryview(np.array([1], ">i4"))).nbytes, zoo.call(len, memoryview(a))
