"""Arrays that are read in place of being copied: nobody can tell, whatever is done with them."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
from conftest import wait_until

from ipython_isolation import ProcessTerminationError

N = 300_000  # of 8 bytes: more than ext/extents.h asks for


def total(a):
    return float(a.sum())


def make(value, n):
    import numpy

    return numpy.full(n, float(value))


def beyond(a, index):
    import ctypes

    ctypes.memset(a.ctypes.data + index, 1, 1)


def stained(a):
    a[:] = -1.0
    a[0] = total_of(a)
    import ctypes

    ctypes.string_at(0)


def total_of(a):
    return float(a.sum())


@pytest.fixture
def deaths(context):
    return context.load_module("_deaths")


def test_sent_again(context):
    """What was written in between arrives, however it was written."""
    a = np.arange(float(N))
    for _ in range(4):
        assert context.call(total, a) == a.sum()
    a[0] = 5.0
    assert context.call(total, a) == a.sum()
    a[N // 2] = 7.0
    a[-1] = 9.0
    assert context.call(total, a) == a.sum()
    a *= 2
    assert context.call(total, a) == a.sum()
    view = a[10 : N - 10]
    for value in range(4):
        view[5] = value
        assert context.call(total, view) == view.sum()
        assert context.call(total, a) == a.sum()
    with open("/dev/zero", "rb") as zeros:
        zeros.readinto(memoryview(a).cast("B"))
    assert context.call(total, a) == 0.0


def test_other_memory_at_the_same_place(context):
    """An array that takes the place of one that was freed is another one."""
    for value in range(12):
        a = np.full(4 * N, float(value))
        for _ in range(3):
            assert context.call(total, a) == value * 4.0 * N
        del a


def test_written_in_the_child(context):
    """What the call writes is written back, no more and no less, and the next call sees the session's array alone."""

    def write(a):
        a[::1000] = 1.0
        a[5] = 2.0
        return float(a.sum())

    def write_all(a):
        a += 1.0

    a, b = np.zeros(N), np.zeros(N)
    write(b)
    for _ in range(3):
        assert context.call(write, a) == b.sum()
        assert (a == b).all()
    for i in range(1, 14):
        context.call(write_all, a)
        assert (a == b + i).all()
    assert context.call(total, a) == a.sum()


def test_several_in_one_call(context):
    def mix(a, b, c):
        a[0] = b.sum()
        c[1] = a.sum()
        return b * 2, c

    a, b, c = np.ones(N), np.ones(N), np.ones(10)
    doubled, back = context.call(mix, a, b, c)
    assert back is c and a[0] == N and c[1] == N + N - 1
    assert (doubled == 2).all()


def test_results_are_arrays_like_others(context):
    a = context.call(make, 3, N)
    assert a.flags.owndata and a.flags.writeable and a.base is None
    a[10] = 4.0
    assert a.sum() == 3.0 * N + 1
    a.resize((N + 1000,), refcheck=False)
    assert a[10] == 4.0 and a[N - 1] == 3.0 and a[N + 999] == 0.0
    a.resize((5,), refcheck=False)
    assert a.tolist() == [3.0] * 5
    assert context.call(total, a) == 15.0


def test_arguments_are_arrays_like_others(context):
    def facts(a):
        a[0] = 1
        before = a.flags.owndata, a.flags.writeable, a.base is None
        a.resize((3,), refcheck=False)
        return before, a.tolist()

    a = np.zeros(N)
    before = a.flags.owndata, a.flags.writeable, a.base is None
    assert context.call(facts, a) == (before, [1.0, 0.0, 0.0])
    assert a.size == N and a[0] == 1.0  # a new size is the child's alone (docs/crossing.md)


@pytest.mark.parametrize("transport", ["auto", "zmq"])
def test_many_results_that_are_kept(transport):
    import ipython_isolation

    with ipython_isolation.IsolationContext(restart="auto", name="many", transport=transport) as context:
        kept = [context.call(make, i, N) for i in range(80)]
        for i in range(0, 80, 3):
            kept[i][0] = -1.0
        more = [context.call(make, -i, N) for i in range(80)]
        for i in range(80):
            assert kept[i][1] == i and kept[i][-1] == i and more[i][0] == -i
            assert kept[i][0] == (-1.0 if i % 3 == 0 else i)


def test_results_outlive_the_child(context, deaths):
    a, b = context.call(make, 1, N), context.call(make, 2, N)
    b[0] = 7.0
    with pytest.raises(ProcessTerminationError):
        deaths.segfault()
    c = context.call(make, 3, N)
    assert a.sum() == N and b.sum() == 2 * N + 5 and c.sum() == 3 * N
    context.close()
    assert a.sum() == N and b.sum() == 2 * N + 5 and c.sum() == 3 * N


def test_the_frozen_copy_has_what_it_had(context, deaths):
    """Arrays of the session that the child keeps are in a copy of it as they were when it was made,
    whatever was sent and given back meanwhile."""
    kept = context.load_module("collections").deque()
    kept.append(np.full(N, 1.0))
    kept.append(np.full(N, 2.0))

    def change(kept):
        kept[1][:] = 9.0
        del kept[0]

    context.checkpoint()
    with context._snapshots.hold():
        context.call(change, kept)
        for value in range(20):
            assert context.call(total, np.full(N, float(value))) == value * float(N)
        with pytest.raises(ProcessTerminationError):
            deaths.segfault()
        totals = context.call(lambda kept: [float(a.sum()) for a in kept], kept)
    assert totals == [1.0 * N, 2.0 * N]
    for value in range(5):
        assert context.call(total, np.full(N, float(value))) == value * float(N)


@pytest.mark.restarts
@pytest.mark.shared_memory
def test_what_was_sent_is_closed_to_the_child(context):
    """As long as the session has it; the memory is opened for the next one before that is asked for."""

    def writable():
        with open(f"/proc/{context.info()['pid']}/maps") as maps:
            return sum("isolation-extent" in line and " rw-s " in line for line in maps)

    for i in range(3):
        context.call(make, i, N)
    a = context.call(make, 7, N)
    assert wait_until(lambda: writable() == 0) and a[0] == a[-1] == 7
    del a
    context.call(int)  # the child learns of it
    assert wait_until(lambda: writable() == 1)
    b = context.call(make, 8, N)
    assert wait_until(lambda: writable() == 0) and b[0] == b[-1] == 8


def test_a_call_that_dies_has_written_nothing(context):
    a = np.arange(float(N))
    for _ in range(3):
        with pytest.raises(ProcessTerminationError):
            context.call(stained, a)
        assert (a == np.arange(float(N))).all()
    assert context.call(total, a) == a.sum()


@pytest.mark.no_asan
@pytest.mark.shared_memory
@pytest.mark.parametrize("where", ["before", "behind"])
def test_beyond_its_end(context, where):
    """The page next to an array's pages is nobody's: what overruns it dies there, before it harms others."""
    a = np.ones(2**17)
    index = -1 if where == "before" else a.nbytes
    with pytest.raises(ProcessTerminationError) as info:
        context.call(beyond, a, index)
    assert info.value.signal == signal.SIGSEGV
    assert (a == 1).all()


def _fork_reads(a, begin, line):
    begin.wait()
    line.send(float(a.sum()))
    line.close()


def test_a_fork_of_the_session(context):
    """What a fork has of a result does not change when the session drops it and gets others."""
    fork = multiprocessing.get_context("fork")
    a = context.call(make, 1, N)
    begin = fork.Event()
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_fork_reads, args=(a, begin, there))
    process.start()
    there.close()
    del a
    results = [context.call(make, value, N)[0] for value in range(10, 30)]
    begin.set()
    assert here.recv() == N
    process.join()
    here.close()
    process.close()
    assert results == list(range(10, 30))


def test_forks_of_the_child(context):
    """The same of an argument, and of a fork that the child makes."""

    def read_in_fork(a):
        import os

        there, here = os.pipe()
        begin, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(begin, 1)
            os.write(here, b"1" if (a == 1.0).all() else b"0")
            os._exit(0)
        return pid, there, here, begin, go

    def finish(pid, there, here, begin, go):
        import os

        os.write(go, b"x")
        answer = os.read(there, 1)
        os.waitpid(pid, 0)
        for fd in (there, here, begin, go):
            os.close(fd)
        return answer

    state = context.call(read_in_fork, np.full(N, 1.0))
    for value in range(2, 20):
        assert context.call(total, np.full(N, float(value))) == value * float(N)
    assert context.call(finish, *state) == b"1"


def test_memory_goes_back(context):
    """What is not used keeps no more than docs/protocol.md says: nothing grows with the number of calls."""

    def extents():
        with open("/proc/self/maps") as maps:
            return sum("isolation-extent" in line for line in maps)

    for _ in range(12):
        context.call(make, 1, N)
        context.call(total, np.ones(N))
    before = extents(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        context.call(make, 1, N)
        context.call(total, np.ones(N))
    assert extents() <= before[0] + 2 and len(os.listdir("/proc/self/fd")) <= before[1] + 2


def test_results_that_are_passed_back(context):
    """A result is the other side's memory until it is written: what comes later at its place is seen."""
    r = context.call(make, 1, N)
    r += 1
    assert context.call(total, r) == 2.0 * N
    del r
    for value in range(2, 30):
        r = context.call(make, value, N)
        for _ in range(value % 3 + 1):
            assert context.call(total, r) == value * float(N)
        del r


def test_results_that_are_passed_back_after_forks(context):
    for value in range(1, 25):
        if value % 4 == 0:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        r = context.call(make, value, N)
        assert context.call(total, r) == context.call(total, r) == value * float(N)
        del r


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_files(context, tmp_path, mode):
    """What is written to the file of a memory map is seen, wherever the next one is mapped."""
    path = tmp_path / "numbers"
    for value in range(1, 12):
        np.full(N, float(value)).tofile(path)
        a = np.asarray(np.memmap(path, dtype=float, mode=mode))
        assert context.call(total, a) == value * float(N)
        with open(path, "r+b") as file:
            file.write(np.full(N, float(value) + 0.5).tobytes())
        assert context.call(total, a) == (value + 0.5) * N
        del a


def test_texts(context):
    """NumPy fills these with zeros when it makes them."""
    a = np.array(["ab", "c"] * 400_000)
    assert context.call(lambda a: "".join(a[:3]) + str(a.dtype), a) == "abcab<U2"
    b = context.call(lambda a: a.copy(), a)
    assert (a == b).all() and b.flags.owndata


def test_a_buffer_that_is_let_go_while_it_is_written(context):
    """Its changes, which come with the answer, are nobody's then."""
    builtins = context.load_module("builtins")
    b = builtins.bytearray(b"x" * 2_000_000)
    view = memoryview(b)

    def write(b, let_go):
        b[:1_500_000] = b"y" * 1_500_000
        let_go()
        return bytes(b[:3])

    assert context.call(write, b, view.release) == b"yyy"
    assert bytes(b[:3]) == b"yyy"


@pytest.mark.parametrize("dtype", ["i1", "u2", "f4", "f8", "c16", "m8[s]", "S3", "i4,f8", ">i2", "f2"])
def test_written_here_and_there(context, dtype):
    """Numbers are compared and written back as such: whatever their size, all that was written arrives, and no more."""

    def write(a, at):
        a[at] = a[0]
        a[3000:3500] = a[1]

    made = np.frombuffer(np.random.default_rng(1).bytes(20_002 * 24), "u1")
    a = made[: 20_001 * np.dtype(dtype).itemsize].copy().view(dtype)
    plain, at = a.copy(), np.arange(5, 20_001, 7)
    write(plain, at)
    context.call(write, a, at)
    assert a.tobytes() == plain.tobytes()


def described(a):
    return str(a.dtype), a.shape, a.flags.writeable, a.flags.f_contiguous, a.tobytes()


def made(dtype, shape, order):
    import numpy

    return numpy.arange(numpy.prod(shape, dtype=int)).astype(dtype).reshape(shape, order=order)


def test_shapes_and_more_dtypes_than_are_remembered(context):
    dtypes = [*(f"S{n}" for n in range(1, 20)), ">i2", "<f8", np.dtype("f8", copy=True), "m8[s]", "V3", [("a", "3f4")]]
    for _ in range(2):
        for dtype in dtypes:
            for shape, order in [((), "C"), ((0, 3), "C"), ((2, 3), "F"), ((4,), "C")]:
                a = made(dtype, shape, order) if dtype != "V3" else np.zeros(shape, dtype, order)
                b = context.call(np.ndarray.copy, a, "K")
                assert type(b) is np.ndarray and b.flags.owndata
                assert described(b) == described(a) == context.call(described, a)
                a.flags.writeable = False
                assert described(a) == context.call(described, a)
