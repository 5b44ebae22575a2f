"""The buffer protocol of proxies: a view of an isolated object is as good as one of an own object."""

import array
import io
import operator
import struct
import sys
import tempfile

import numpy
import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401
from ipython_isolation import IsolationContext

SMALL, LARGE = 5, 100_000  # elements of 4 bytes: changes made over there are seen in a small one


def make(load, size=SMALL):
    return load("array").array("i", range(size))


@both
def test_what_a_view_says(load):
    a = make(load)
    m = memoryview(a)
    return m.format, m.itemsize, m.shape, m.strides, m.ndim, m.nbytes, m.readonly, m.tolist(), m.tobytes(), m.obj is a


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
@both
def test_exported_while_a_view_lives(load, size):
    a = make(load, size)
    m = memoryview(a)
    error = raises(a.append, 1)
    other = memoryview(a)
    m.release()
    second = raises(a.extend, [1])
    other.release()
    a.append(1)
    return type(error), str(error), type(second), len(a)


@both
def test_exported_until_the_view_is_collected(load):
    a = make(load)
    m = memoryview(a)[1:]
    error = raises(a.pop)
    del m
    a.pop()
    return type(error), len(a)


@both
def test_short_uses_export_nothing(load):
    a = make(load)
    out = bytes(a), b"".join([a, a]), struct.unpack("5i", a), int.from_bytes(a, "little"), numpy.asarray(a).sum() == 10
    a.append(1)
    return out, len(a)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@both
def test_written_through_a_view(load, size):
    a = make(load, size)
    m = memoryview(a)
    m[0] = 7
    seen = a[0]
    m[1], m[size - 1] = 8, 9
    seen = seen, a[1], a[size - 1], a.index(8)
    m[2] = -1
    m.release()
    return seen, a[2], a[3]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@both
def test_written_by_others(load, size):
    a = make(load, size)
    struct.pack_into("i", a, 4, 42)
    with tempfile.TemporaryFile() as file:
        file.write(b"\1\0\0\0")
        file.seek(0)
        read = file.readinto(a)
    read = read, io.BytesIO(b"\2\0\0\0\3").readinto(memoryview(a)[2:])
    n = numpy.frombuffer(a, "i4")
    n[3] = 99
    return a[0], a[1], a[2], a[3], read


@both
def test_views_share_their_memory(load):
    a = make(load)
    m, n = memoryview(a), memoryview(a)
    m[0] = 5
    n[1] = 6
    return n[0], m[1], a.tolist()


@both
def test_changes_over_there_are_seen_in_a_small_view(load):
    a = make(load)
    m = memoryview(a)
    a[0] = 9
    seen = m[0]
    m[1] = 8
    a.reverse()
    return seen, m.tolist(), a.tolist()


@both
def test_a_later_view_sees_what_changed(load):
    a = make(load, LARGE)
    m = memoryview(a)
    a[0] = 9
    m[1] = 8
    n = memoryview(a)
    return n[0], n[1], m[0]


@both
def test_written_in_a_callback(load):
    a, zoo = make(load), load("zoo")
    m = memoryview(a)
    return zoo.call(lambda: operator.setitem(m, 0, 3)), zoo.call(operator.getitem, a, 0)


@both
def test_written_while_it_is_iterated(load):
    zoo = load("zoo")
    zoo.call(setattr, zoo, "kept", bytearray(b"abcd"))
    m, seen = memoryview(zoo.kept), []
    for i, byte in enumerate(zoo.kept):
        seen.append(byte)
        m[(i + 1) % 4] = 7
    return seen, zoo.kept


@both
def test_let_go_of_in_a_callback(load):
    """What is written through the view arrives; what happens to other arguments after that is not lost."""
    a, zoo, items = make(load), load("zoo"), [1]
    m = memoryview(a)

    def callback():
        m[0] = 3
        m.release()
        items.append(2)

    zoo.change_around_callback(items, callback)
    return items, a.tolist(), zoo.call(len, items)


@both
def test_read_only(load):
    view = load("io").BytesIO(b"abc").getbuffer().toreadonly()
    m = memoryview(view)
    return m.readonly, m.tobytes(), [type(raises(f)) for f in (lambda: operator.setitem(m, 0, 1), lambda: struct.pack_into("b", view, 0, 1))]


@both
def test_bytesio(load):
    stream = load("io").BytesIO(b"abcdef")
    view = stream.getbuffer()
    m = memoryview(view)
    error = raises(stream.write, b"x" * 10)
    m[0] = ord("A")
    m.release()
    view.release()
    stream.write(b"xy")
    return type(error), stream.getvalue()


@both
def test_strided(load):
    a = load("numpy").arange(12, dtype="i4").reshape(3, 4)[::-1, ::2]
    m = memoryview(a)
    m[0, 1] = 100
    return (
        m.shape, m.strides, m.contiguous, m.c_contiguous, m.tolist(), a.tolist(),
        type(raises(struct.pack_into, "i", a, 0, 1)), type(raises(operator.methodcaller("cast", "B"), m)),
    )  # fmt: skip


@both
def test_flags_are_the_targets_business(load):
    a = load("numpy").arange(6).reshape(2, 3).T
    return type(raises(struct.unpack_from, "q", a)), type(raises(io.BytesIO().write, a)), memoryview(a).f_contiguous


@both
def test_not_contiguous_as_an_argument(load):
    zoo = load("zoo")
    m = memoryview(b"abcdef")[::2]
    error = raises(load("zlib").crc32, m)
    return type(error), str(error), zoo.call(bytes, m), zoo.call(len, m)


@both
def test_a_session_buffer_written_over_there(load):
    class Mine(array.array):
        pass

    a = Mine("b", [1, 2, 3])
    load("struct").pack_into("b", a, 1, 9)
    return a.tolist()


def test_a_write_reaches_the_target_without_another_request(tmp_path):
    """A file that is mapped keeps what was written to it, also when the context is closed right after."""
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    with IsolationContext() as context:
        with open(path, "r+b") as file:
            mapped = context.load_module("mmap").mmap(context.call(lambda p: __import__("os").open(p, 2), str(path)), 6)
            assert file
        m = memoryview(mapped)
        m[0] = ord("X")
        m.release()
    assert path.read_bytes() == b"Xbcdef"


def test_a_view_outlives_its_process():
    context = IsolationContext(restart="auto")
    a = context.load_module("array").array("i", [1, 2, 3])
    m = memoryview(a)
    context.restart()
    m[0] = 5
    assert m.tolist() == [5, 2, 3]
    m.release()
    assert context.load_module("array").array("i", [7]).tolist() == [7]
    context.close()


def test_object_pointers_do_not_cross(worlds):
    a = worlds[1].context.load_module("numpy").array([None, 1], dtype=object)
    with pytest.raises((BufferError, ValueError, TypeError)):
        memoryview(a)
    assert sys.getrefcount(a) < 10
