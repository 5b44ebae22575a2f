"""Arrays and buffers: real on both sides, written back, read-only where they were."""

import array

import numpy as np
import pytest
from behaviour.harness import both, normal, raises, worlds, zoo  # noqa: F401

STRUCTURED = np.dtype([("x", "i4"), ("y", "f8"), ("s", "S3")])


def read_only(a):
    a.flags.writeable = False
    return a


ARRAYS = {
    "vector": lambda: np.arange(5),
    "matrix": lambda: np.arange(12.0).reshape(3, 4),
    "fortran": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": lambda: np.arange(20)[::3],
    "reversed": lambda: np.arange(5)[::-1],
    "column": lambda: np.arange(12).reshape(3, 4)[:, 1],
    "transposed": lambda: np.arange(6).reshape(2, 3).T,
    "empty": lambda: np.zeros((0, 3)),
    "zero-dimensional": lambda: np.array(5.5),
    "structured": lambda: np.zeros(3, STRUCTURED),
    "bool": lambda: np.array([True, False]),
    "complex": lambda: np.array([1j, 2]),
    "big-endian": lambda: np.arange(3, dtype=">i4"),
    "bytes": lambda: np.array([b"ab", b"c"]),
    "text": lambda: np.array(["ab", "c"]),
    "dates": lambda: np.array(["2020-01-02"], "M8[D]"),
    "half": lambda: np.arange(3, dtype=np.float16),
    "read-only": lambda: read_only(np.arange(5)),
    "large": lambda: np.arange(300_000),
    "broadcast": lambda: np.broadcast_to(np.arange(3), (2, 3)),
}


def same(a, b):
    return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ARRAYS)
@both
def test_read(zoo, name):
    a = ARRAYS[name]()
    kept = a.copy()
    seen = zoo.call(lambda x: (type(x) is np.ndarray, x.shape, str(x.dtype), x.tobytes() == kept.tobytes()), a)
    back = zoo.identity(a)
    return seen, same(a, kept), back is a or not a.flags.writeable, same(back, kept)


@pytest.mark.parametrize("name", ["vector", "matrix", "fortran", "strided", "reversed", "column", "transposed", "large"])
@both
def test_written(zoo, name):
    a = ARRAYS[name]()
    base = a.base
    zoo.call(np.ndarray.fill, a, 7)
    zoo.call(np.ndarray.__setitem__, a, 0, 3)
    return a.tobytes(), None if base is None else base.tobytes(), a.flags.c_contiguous, a.flags.f_contiguous


@both
def test_written_structured(zoo):
    a = ARRAYS["structured"]()
    zoo.call(np.ndarray.__setitem__, a, 1, (5, 2.5, b"abc"))
    return a.tolist()


@both
def test_written_zero_dimensional(zoo):
    a = np.array(5.5)
    zoo.call(np.ndarray.fill, a, 2)
    return float(a), a.shape


@both
def test_read_only_stays_so(zoo):
    a = ARRAYS["read-only"]()
    return type(raises(zoo.call, np.ndarray.fill, a, 7)), a.tolist(), a.flags.writeable


@both
def test_written_then_raised(zoo):
    a = np.arange(3)
    return raises(zoo.change_then_raise, [a]).args, type(raises(zoo.call, _write_and_raise, a)), a.tolist()


def _write_and_raise(a):
    a[0] = 9
    raise ValueError("after")


@both
def test_results(zoo):
    made = zoo.call(np.arange, 6)
    made[0] = 5
    return type(made) is np.ndarray, made.tolist(), made.flags.writeable, zoo.call(np.float64, 2.5) == 2.5


@both
def test_nested_in_containers(zoo):
    a = np.arange(3)
    items = {"a": [a]}
    zoo.call(lambda d: np.ndarray.fill(d["a"][0], 4), items)
    zoo.call(list.append, items["a"], 1)
    return items["a"][0] is a, a.tolist(), len(items["a"])


@both
def test_array_array(zoo):
    a = array.array("d", [1, 2])
    zoo.call(array.array.append, a, 3)
    zoo.call(array.array.__setitem__, a, 0, 9.5)
    return a, zoo.identity(a) is a, zoo.call(array.array, "b", [1]), zoo.call(lambda x: (x.typecode, len(x)), a)


@both
def test_memoryview(zoo):
    data = bytearray(b"abcdef")
    zoo.call(memoryview.__setitem__, memoryview(data), 0, 120)
    view = memoryview(b"abc")
    return data, zoo.call(bytes, view), zoo.call(lambda v: v.readonly, view), zoo.call(len, memoryview(data)[::2])


@both
def test_large_bytes(zoo):
    data = bytes(range(256)) * 4096
    return zoo.call(len, data), zoo.identity(data) == data, zoo.call(bytes.count, data, b"\0")


@both
def test_cv_module(load):
    cv = load("cv_module")
    y, x = np.mgrid[0:40, 0:50]
    photo = np.stack([x * 5 % 256, y * 6 % 256, (x + y) * 2 % 256], axis=2).astype(np.uint8)
    gray = cv.grayscale(photo)
    edges = np.asarray(cv.sobel_edges(np.asarray(gray)))
    return (
        type(gray).__name__, np.asarray(gray).shape, np.asarray(gray).tobytes(), edges.tobytes(), edges.dtype == np.uint8,
        memoryview(gray).shape, memoryview(gray).format, bytes(gray)[:5], photo.tobytes()[:9],
        np.asarray(cv.sobel_edges(gray)).tobytes() == edges.tobytes(),
    )  # fmt: skip


@both
def test_buffer_of_an_isolated_array(load):
    arrays = load("array")
    a = arrays.array("i", [1, 2, 3])
    return np.asarray(a).tolist(), bytes(a), memoryview(a).tolist(), b"".join([a]), type(raises(memoryview, arrays))


def test_a_call_that_dies_has_changed_nothing(context):
    import os
    import signal

    zoo = context.load_module("zoo")  # noqa: F811
    a, items = np.arange(5), [1]

    def die():
        os.kill(context.remote_pid, signal.SIGKILL)

    error = raises(zoo.change_around_callback, [a, items], die)
    assert "SIGKILL" in str(error) and type(error).__name__ == "ProcessTerminationError"
    assert a.tolist() == [0, 1, 2, 3, 4] and items == [1]
    assert normal(zoo.identity(3)) == ("int", 3)


@pytest.mark.parametrize("n", [10, 10_000, 200_000])
@both
def test_resized_after_it_was_sent(zoo, n):
    """Nothing of a call holds on to what can get another size: not afterwards, nor in callbacks."""
    items, text = array.array("d", bytes(8 * n)), bytearray(8 * n)
    seen = []
    for o, one in ((items, 1.0), (text, 1)):
        for _ in range(3):
            zoo.identity(o)
            o.append(one)
        zoo.call(lambda a, one=one: a.append(one), o)
        seen.append((len(o), zoo.call(len, o), o[-1] == one, zoo.identity(o) is o))
    view = memoryview(text)
    zoo.call(lambda v: v.__setitem__(0, 77), view)
    view.release()
    text.append(5)
    return seen, text[0], bytes(text[-2:])
