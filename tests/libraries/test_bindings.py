"""Modules made with pybind11, Cython, cffi and ctypes, isolated and used as their users do."""

import array
import copy
import pickle

import numpy as np
import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401

import ipython_isolation

# ---- pybind11 ----


@both
def test_pybind11_classes(bound_zoo):
    a, d = bound_zoo.Animal("cat"), bound_zoo.Dog("rex")
    a.name = "lion"
    return (
        a.sound(), a.sound(times=3), d.sound(2), a.name, a.length, repr(a), isinstance(d, bound_zoo.Animal), bound_zoo.Animal.make("x").name,
        bound_zoo.same(a) is a, type(d).__mro__[1].__name__, bound_zoo.hear(d), bound_zoo.Animal.__doc__, str(raises(bound_zoo.Animal, 1)).split("\n")[0],
        str(raises(setattr, a, "length", 1)), bound_zoo.__doc__, bound_zoo.Animal.sound.__doc__, type(raises(lambda: a.nope)),
    )  # fmt: skip


@both
def test_pybind11_overridden_in_the_session(bound_zoo):
    calls = []

    class Cat(bound_zoo.Animal):
        def __init__(self, name, lives):
            super().__init__(name)
            self.lives = lives

        def sound(self, times):
            calls.append((times, self.lives))
            return self.name + " meows " + super().sound(times)

    class Mute(bound_zoo.Animal):
        def __init__(self):
            pass  # pybind11 says so when __init__ of the base is not called

    class Angry(Cat):
        def sound(self, times):
            raise OSError("no sound")

    cat = Cat("tom", 9)
    return bound_zoo.hear(cat), cat.sound(1), bound_zoo.same(cat) is cat, bound_zoo.same(cat).lives, calls, type(raises(Mute)), str(raises(bound_zoo.hear, Angry("a", 1)))


@both
def test_pybind11_enumerations(bound_zoo):
    red = bound_zoo.Colour.red
    return (
        str(red), repr(red), int(red), red == bound_zoo.red, bound_zoo.Colour(2).name, bound_zoo.is_red(red), bound_zoo.is_red(bound_zoo.green),
        {red: 1}[bound_zoo.red], sorted(bound_zoo.Colour.__members__), red != bound_zoo.green, hash(red) == hash(bound_zoo.red), red.value,
        type(raises(bound_zoo.is_red, 1)).__name__, isinstance(red, bound_zoo.Colour),
    )  # fmt: skip


@both
def test_pybind11_operators(bound_zoo):
    v, w = bound_zoo.Vec(1, 2), bound_zoo.Vec(3, 4)
    s = v + w
    s.x += 10
    again = pickle.loads(pickle.dumps(v))
    return (
        s.x, s.y, (v * 3).y, (2 * v).x, v == bound_zoo.Vec(1, 2), v == w, hash(v), {v: 1}[bound_zoo.Vec(1, 2)], type(raises(lambda: v + 1)).__name__,
        again == v, again is v, copy.copy(v) == v, v != w,
    )  # fmt: skip


@both
def test_pybind11_buffers(bound_zoo):
    g = bound_zoo.Grid(2, 3)
    a = np.asarray(g)
    view = memoryview(g)
    a[1, 2] = 5.0
    return (
        a.shape, a.tolist(), view.format, view.shape, g[1, 2], type(raises(lambda: g[9, 9])).__name__, bound_zoo.sum_of(np.arange(4.0)),
        bound_zoo.sum_of(array.array("d", [1, 2])), bound_zoo.sum_of(g),
    )  # fmt: skip


@both
def test_pybind11_functions(bound_zoo):
    items = [1]
    bound_zoo.fill(items)
    return (
        bound_zoo.apply(lambda x: x * 2, [1, 2, 3]), bound_zoo.apply(lambda x: x, (4,)), items, bound_zoo.word_count(["a", "b", "a"]),
        type(raises(bound_zoo.apply, lambda x: 1 / 0, [1])).__name__, type(raises(bound_zoo.apply, lambda x: "no", [1])).__name__,
        type(raises(bound_zoo.apply, 5, [1])).__name__,
    )  # fmt: skip


@both
def test_pybind11_exceptions(bound_zoo):
    errors = [raises(bound_zoo.fail, kind) for kind in range(4)]
    return [(type(e).__name__, str(e), isinstance(e, ValueError)) for e in errors], isinstance(errors[0], bound_zoo.TooWild)


# ---- Cython ----


@both
def test_cython_classes(cythonic):
    c = cythonic.Counter(3, label="l", owner=[1])
    c.double = 20
    c.label = "other"
    return (
        c.step(), c.step(by=5), c.double, c.label, c.owner, len(c), c[1], list(c)[:2], type(raises(lambda: c[99])).__name__, (c + 1).double,
        type(raises(lambda: c + "x")).__name__, c == cythonic.Counter(16), c == 5, hash(c), c.many(2), pickle.loads(pickle.dumps(c)) == c,
        type(raises(setattr, c, "owner", 1)).__name__, type(raises(setattr, c, "new", 1)).__name__, cythonic.Counter.__doc__, 3 in c, bool(c),
    )  # fmt: skip


@both
def test_cython_overridden_in_the_session(cythonic):
    class Mine(cythonic.Counter):
        def __init__(self, start=0, **kwargs):
            self.seen = []

        def step(self, by=1):
            self.seen.append(by)
            return super().step(by * 10)

    m = Mine(1, label="m")
    return m.many(2), m.seen, m.label, m.double, isinstance(m, cythonic.Counter)


@both
def test_cython_functions(cythonic):
    a, b = np.arange(3.0), array.array("d", [4, 5])
    memory = cythonic.Memory(4)
    items, table = [1], {}
    g = cythonic.generate(3)
    return (
        cythonic.total(a), a.tolist(), cythonic.total(b), b.tolist(), cythonic.total(memory), np.asarray(cythonic.Memory(3)).tolist(),
        cythonic.typed(items, table, "k"), items, table["k"] is items, type(raises(cythonic.typed, (), {}, "k")).__name__,
        type(raises(cythonic.typed, [], {}, None)).__name__, next(g), g.send("sent"), list(g), cythonic.call(lambda *a, **k: (a, k), 1, x=2),
        type(raises(cythonic.total, np.arange(3))).__name__,
    )  # fmt: skip


@both
def test_cython_exceptions(cythonic):
    error, inner = raises(cythonic.fail), raises(cythonic.call, lambda: {}["k"])
    return type(error).__name__, str(error), isinstance(error, cythonic.CythonError), inner.args, type(inner)


# ---- cffi ----


@both
def test_cffi(_ffi_zoo):
    ffi, lib = _ffi_zoo.ffi, _ffi_zoo.lib
    p = ffi.new("point *", {"x": 3, "y": 4})
    p.name = b"abc"
    values = ffi.new("int[]", [1, 2, 3])
    total = lib.sum(values, 3)
    callback = ffi.callback("int(int, void *)", lambda i, data: i * 10)
    handle = ffi.new_handle("the data")
    buffer = ffi.buffer(values)
    lib.counter = 7
    return (
        lib.length(p), p.x, p[0].y, ffi.string(p.name), total, list(values), len(values), lib.apply(callback, 3, ffi.NULL), lib.RED, lib.counter,
        ffi.sizeof("point"), ffi.typeof(p).kind, ffi.from_handle(handle), len(buffer), ffi.cast("int", 3.7) == ffi.cast("int", 3), ffi.NULL == ffi.cast("void *", 0),
        type(raises(lib.length, 5)).__name__, type(raises(lambda: p.nope)).__name__, type(raises(lambda: values[9])).__name__, bool(ffi.NULL),
        ffi.unpack(values, 3), ffi.string(ffi.new("char[]", b"hello")), repr(ffi.typeof("int *")),
    )  # fmt: skip


# ---- ctypes ----


@both
def test_ctypes(ctypes):
    libc = ctypes.CDLL(None)
    libc.strlen.restype = ctypes.c_size_t
    buffer = ctypes.create_string_buffer(b"hello", 10)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    values = (ctypes.c_int * 4)(3, 1, 4, 2)
    seen = []

    def order(a, b):
        seen.append(a[0])
        return a[0] - b[0]

    libc.qsort(values, 4, ctypes.sizeof(ctypes.c_int), compare(order))

    class Point(ctypes.Structure):
        _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]

    p = Point(1, y=2.5)
    pointer = ctypes.pointer(p)
    pointer.contents.x = 9
    number = ctypes.c_int(5)
    return (
        libc.strlen(b"four"), buffer.value, len(buffer), list(values), bool(seen), p.x, p.y, ctypes.sizeof(Point), number.value,
        type(raises(lambda: Point("x"))).__name__, ctypes.cast(buffer, ctypes.c_char_p).value, ctypes.string_at(buffer, 2),
    )  # fmt: skip


# ---- each of them crashes ----


@pytest.mark.parametrize(
    "module, crash",
    [
        ("bound_zoo", lambda m: m.crash()),
        ("cythonic", lambda m: m.crash()),
        ("_ffi_zoo", lambda m: m.lib.crash()),
        ("ctypes", lambda m: m.string_at(0)),
    ],
    ids=["pybind11", "cython", "cffi", "ctypes"],
)
def test_crashes(context, module, crash):
    isolated = context.load_module(module)
    with pytest.raises(ipython_isolation.ProcessTerminationError, match="SIGSEGV"):
        crash(isolated)
    with pytest.raises(ipython_isolation.ProcessTerminationError):  # the module is there again
        crash(isolated)
