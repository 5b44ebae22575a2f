"""arrays="shared": big arrays are in memory that both processes have."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
from conftest import wait_until

import ipython_isolation
from ipython_isolation import IsolationContext, ProcessTerminationError

pytestmark = pytest.mark.shared_memory

N = 100_000  # of 8 bytes: more than ext/arena.h asks for


@pytest.fixture
def context():
    with IsolationContext(restart="auto", name="shared", arrays="shared") as made:
        made.load_module("operator")  # calls before the first module are kept, with what they were called with
        yield made


@pytest.fixture
def apart():
    """A context without frozen copies, which have all that was there when they were made."""
    with IsolationContext(name="apart", arrays="shared", rollback="off") as made:
        made.load_module("operator")
        yield made


@pytest.fixture
def kept(context):
    return context.load_module("collections").deque()


def total(a):
    return float(a.sum())


def put(a, index, value):
    a[index] = value


def make(value, n):
    import numpy

    return numpy.full(n, float(value))


def test_what_either_side_writes_the_other_sees(context, kept):
    a = np.zeros(N)
    kept.append(a)
    a[3] = 5.0
    assert context.call(total, a) == 5.0
    b = kept[0]
    assert type(b) is np.ndarray and np.shares_memory(a, b)
    context.call(put, a, 4, 7.0)
    assert a[4] == b[4] == 7.0
    b[5] = 1.0
    assert context.call(lambda kept: float(kept[0].sum()), kept) == a.sum() == 13.0


def test_also_while_the_call_runs(context):
    a = np.zeros(N)

    def ask(a, look):
        a[0] = 1.0
        seen = look()
        return seen, float(a[1])

    def look():
        a[1] = 2.0
        return float(a[0])

    assert context.call(ask, a, look) == (1.0, 2.0)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[10:-10],
        lambda a: a[::3],
        lambda a: a[::-2],
        lambda a: a.reshape(100, -1).T,
        lambda a: a.reshape(100, -1)[:, 3],
        lambda a: a.reshape(100, -1)[5:50, 100:1:-7],
        lambda a: a.view("u4")[1::2],
        lambda a: a[:0],
        lambda a: a[5:6],
        lambda a: a.view([("x", "f4"), ("y", "i4")]),
    ],
    ids=range(10),
)
def test_views(context, view):
    a = np.arange(float(N))
    seen = view(a)
    plain = view(np.arange(float(N)))

    def change(v):
        facts = v.shape, str(v.dtype), v.tobytes(), v.flags.writeable
        if v.size:
            v[(0,) * v.ndim] = 1
            v[(-1,) * v.ndim] = 2
        return facts

    assert context.call(change, seen) == change(plain)
    assert seen.tobytes() == plain.tobytes()


def test_read_only(context):
    a = np.arange(float(N))
    a.flags.writeable = False

    def write(a):
        try:
            a[0] = 1
        except ValueError as error:
            return str(error)

    assert context.call(write, a) == "assignment destination is read-only"


def test_results(context):
    a = context.call(make, 3, N)
    assert a.flags.owndata and a.flags.writeable and a.base is None and a.sum() == 3.0 * N
    context.call(put, a, 0, 0.0)
    assert a.sum() == 3.0 * N - 3
    a.resize((N * 2,), refcheck=False)
    assert a[N - 1] == 3.0 and a[N] == 0.0 and context.call(total, a) == 3.0 * N - 3


def test_small_ones_are_copied_and_written_back(context):
    a = np.zeros(10)
    context.call(put, a, 0, 1.0)
    assert a[0] == 1.0


def test_made_before(context):
    """An array that was made before is copied, and written back."""
    context.close()
    a = np.zeros(N)
    with IsolationContext(arrays="shared") as again:
        again.call(put, a, 0, 1.0)
        assert a[0] == 1.0


def test_they_outlive_the_child(context, kept):
    """What a dead call had written to a shared array stays, as in a file; nothing that the session has is lost."""
    a, b = np.zeros(N), context.call(make, 2, N)

    def die(a):
        import ctypes

        a[0] = 1.0
        ctypes.string_at(0)

    with pytest.raises(ProcessTerminationError):
        context.call(die, a)
    assert a[0] == 1.0 and b.sum() == 2 * N
    assert context.call(total, a) == 1.0
    assert context.call(total, b) == 2 * N


def test_threads(context):
    """NumPy's allocator is a thread's own, in the child too."""
    results = {}

    def run(i):
        results[i] = context.call(make, i, N)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, a in results.items():
        context.call(put, a, 0, -1.0)
        assert a[0] == -1.0 and a[1] == i


def test_memory_of_arrays_that_went(context):
    """It is used for others, but not what the child still has."""

    deque = context.load_module("collections").deque()
    a = np.full(N, 1.0)
    deque.append(a)
    del a
    others = [np.full(N, float(i)) for i in range(20)]
    assert context.call(lambda d: float(d[0].sum()), deque) == N
    assert [float(o[0]) for o in others] == list(range(20))
    del others
    for i in range(50):
        assert context.call(total, np.full(N, float(i))) == i * float(N)
        assert np.zeros(N).any() == False  # noqa: E712: a numpy.bool


def test_many(context):
    """More than may be shared are copied: nothing fails."""
    arrays = [np.full(50_000, float(i)) for i in range(1200)]
    for i in range(0, 1200, 100):
        context.call(put, arrays[i], 0, -1.0)
        assert arrays[i][0] == -1.0 and context.call(total, arrays[i]) == i * 49_999.0 - 1


def _reads(a, line):
    line.send(float(a[0]))
    a[1] = 5.0
    line.close()


def test_a_fork_of_the_session(context):
    """Forks have shared arrays in common (docs/guide.md); nothing else of them gets mixed up."""
    fork = multiprocessing.get_context("fork")
    a = np.full(N, 1.0)
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_reads, args=(a, there))
    process.start()
    there.close()
    assert here.recv() == 1.0
    process.join()
    here.close()
    assert process.exitcode == 0
    process.close()
    assert a[1] == 5.0 and context.call(total, a) == N + 4.0


def test_what_it_is_not_for():
    with pytest.raises(ValueError, match='arrays must be "copy" or "shared"'):
        IsolationContext(arrays="mapped")
    with pytest.raises(ValueError, match='use transport="auto"'):
        IsolationContext(arrays="shared", transport="zmq")


def test_once_the_context_is_closed():
    """Arrays are ordinary ones again; those that are there stay."""

    def blocks():
        with open("/proc/self/maps") as maps:
            return sum("isolation-array" in line for line in maps)

    with IsolationContext(arrays="shared") as context:
        context.load_module("operator")
        a = np.ones(N)
        assert context.call(total, a) == N and blocks() == 1
    b = np.ones(N)
    assert blocks() == 1 and a.sum() == b.sum() == N
    del a, b
    assert blocks() == 0


def test_it_is_a_setting():
    info = None
    with IsolationContext(arrays="shared") as context:
        info = context.info()
    assert info["arrays"] == "shared"
    assert ipython_isolation.IsolationContext is IsolationContext


def mapped(pid="self"):
    """How many blocks a process has mapped, whether an array is in them or not."""
    with open(f"/proc/{pid}/maps") as maps:
        return sum("isolation-array" in line for line in maps)


def address(a):
    return a.ctypes.data


def test_what_was_passed_is_not_passed_again(context):
    """The child keeps it mapped, at one place; once it is gone here the child lets go of it, asked or not."""
    a = np.zeros(N)
    where = context.call(address, a)
    others = [np.zeros(N) for _ in range(5)]
    for other in others:
        assert context.call(address, other) != where
    for i in range(5):
        a[7] = i
        assert context.call(address, a) == context.call(address, a[5:]) - 40 == where and context.call(total, a) == i
    assert mapped(context.remote_pid) == 6
    del a, others, other
    assert wait_until(lambda: mapped(context.remote_pid) == 0)


def test_more_than_there_are_places_for(context, kept):
    arrays = [np.full(N, float(i)) for i in range(40)]
    for _ in range(2):
        for i, a in enumerate(arrays):
            assert context.call(total, a) == i * N
    for a in arrays:
        kept.append(a)
    assert all(np.shares_memory(kept[i], a) and kept[i][0] == i for i, a in enumerate(arrays))


def test_the_memory_of_a_result_is_used_again(apart):
    """Of one that is gone, never of one that is there."""
    context = apart
    a = context.call(make, 1, N)
    where, view = address(a), a[100:]
    del a
    b = context.call(make, 2, N)
    assert address(b) != where and view[0] == 1.0 and b[0] == 2.0
    del view
    seen = {where}
    for i in range(3, 20):
        c = context.call(make, i, N)
        assert c[0] == c[-1] == i and b[0] == b[-1] == 2.0
        seen.add(address(c))
        del c
    assert len(seen) <= 3 and address(b) not in seen and mapped() <= 4


def test_not_that_of_one_which_a_fork_of_the_session_has(context):
    a = context.call(make, 1, N)
    here, there = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        there.poll(60)  # until the session has dropped its own, and got others
        os._exit(0 if a[0] == a[-1] == 1.0 else 1)
    del a
    for i in range(5):
        b = context.call(make, 5, N)
        assert b[0] == b[-1] == 5.0
        del b
    here.send(None)
    assert os.waitpid(pid, 0)[1] == 0
    here.close()
    there.close()


def test_not_that_of_one_which_the_frozen_copy_has(context, kept):
    """What the child held at the snapshot is as it was, whatever was made of its memory since."""
    context.call(lambda kept: kept.append(__import__("numpy").full(100_000, 1.0)), kept)
    deaths = context.load_module("_deaths")
    context.checkpoint()
    with context._snapshots.hold():
        assert kept[0][0] == 1.0
        kept.clear()
        for i in range(2, 8):
            assert context.call(make, i, N)[0] == i
        with pytest.raises(ProcessTerminationError):
            deaths.segfault()
        assert len(kept) == 1 and kept[0][0] == kept[0][-1] == 1.0


@pytest.mark.parametrize("rollback", ["off", "auto"])
def test_not_that_of_one_which_was_passed_on(rollback):
    """To the child that had made it, or to another: it is theirs, too, although the session has dropped its own."""
    options = {"restart": "auto", "arrays": "shared", "rollback": rollback}
    with IsolationContext(name="one", **options) as one, IsolationContext(name="two", **options) as two:
        ones, twos = (c.load_module("collections").deque() for c in (one, two))
        for _ in range(3):
            a, b = one.call(make, 1, N), one.call(make, 2, N)
            one.call(total, a)
            ones.append(a)
            twos.append(b)
            del a, b
            for i in range(5):
                assert one.call(make, i + 5, N)[0] == i + 5
        for _ in range(2):
            assert [a[-1] for a in ones] == [1.0] * 3 and [a[-1] for a in twos] == [2.0] * 3


def test_more_in_one_call_than_there_are_places_for(context):
    arrays = [np.full(N, float(i)) for i in range(20)]
    for _ in range(2):
        assert context.call(lambda arrays: [a[0] for a in arrays], arrays) == list(range(20))
        for i in (19, 18, 0, 17, 3):
            assert context.call(total, arrays[i]) == i * N


def test_memory_of_results_goes_with_them(apart):
    """What is more than may be kept for the next, without another call."""
    results = [apart.call(make, i, 10_000_000) for i in range(8)]
    assert mapped() >= 8
    del results
    assert mapped() <= 7  # of 80 MB: 512 MB are the most that is kept, and the child has the last one until it is asked again


def test_many_in_one_call(context):
    """More than go with one frame: the rest is copied, and written back."""

    def write(arrays):
        for a in arrays:
            a[0] = 1.0
        return sum(float(a.sum()) for a in arrays)

    arrays = [np.zeros(50_000) for _ in range(130)]
    for _ in range(3):
        assert context.call(write, arrays) == 130.0
    assert all(a[0] == 1.0 for a in arrays)
    back = context.call(lambda n: [__import__("numpy").ones(50_000) for _ in range(n)], 130)
    assert len(back) == 130 and all(a.sum() == 50_000 for a in back)


def test_texts(context):
    a = np.array(["ab", "c"] * 100_000)
    context.call(put, a, 1, "zz")
    assert a[:3].tolist() == ["ab", "zz", "ab"]


def test_the_frozen_copy_shares_them_too(context, kept):
    """A copy of the child that takes over has the memory, and can pass it on."""
    arrays = [np.full(N, float(i)) for i in range(12)]
    for a in arrays:
        kept.append(a)
    deaths = context.load_module("_deaths")
    context.checkpoint()
    with context._snapshots.hold():
        with pytest.raises(ProcessTerminationError):
            deaths.segfault()
        for i in range(12):
            b = kept[i]
            assert np.shares_memory(b, arrays[i]) and b[0] == i
            context.call(put, arrays[i], 0, -1.0)
            assert b[0] == -1.0
        for i in range(30):
            assert context.call(make, i, N)[5] == i


@pytest.mark.no_asan  # which writes a report about it
def test_memory_that_there_is_not(context):
    with pytest.raises(MemoryError):
        np.ones(10**12)


def test_arrays_of_objects(context):
    """Their memory holds references, which are a process's own: kept by the child, they are proxies, as ever."""
    numpy_objects = context.load_module("collections").deque()
    context.call(lambda d: d.append(__import__("numpy").array([[]] * 50_000 + [None], object)), numpy_objects)
    a = numpy_objects[0]
    assert type(a) is not np.ndarray and a.shape == (50_001,)
    fresh = context.call(lambda: __import__("numpy").full(50_000, None, object))
    assert type(fresh) is np.ndarray and fresh[49_999] is None
