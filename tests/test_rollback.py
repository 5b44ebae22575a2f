"""What was made in a child outlives its death: by a frozen copy of it, which takes over."""

import contextlib
import gc
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import pytest
from conftest import children, wait_until

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError, StaleProxyError

VICTIMS = str(Path(__file__).with_name("victims"))


@pytest.fixture
def deaths(context):
    return context.load_module("_deaths")


def die(call, *args):
    with pytest.raises(ProcessTerminationError) as caught:
        call(*args)
    return caught.value


def status(context):
    return context.info()["rollback"]


def keep(code):
    global kept
    kept = eval(code)
    return kept


# --- what is kept ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("affordable")
@pytest.mark.parametrize("transport", ["auto", "zmq"])
def test_objects_outlive_deaths_in_a_row(transport):
    with IsolationContext(restart="auto", transport=transport) as context:
        deaths, collections = context.load_module("_deaths"), context.load_module("collections")
        kept = collections.OrderedDict(a=1)
        kept["list"] = [1, [2]]
        inner = kept["list"]
        for n in range(5):
            pid = context.remote_pid
            error = die(deaths.segfault)
            assert error.pid == pid
            assert "kept" in str(error)
            kept[n] = n
            assert context.remote_pid not in (pid, None)
            assert kept["list"] is inner  # the proxy that it was
        assert list(kept.items()) == [("a", 1), ("list", [1, [2]]), *((n, n) for n in range(5))]
        assert status(context)["take_overs"] == 5
        assert context.info()["crashes"] == 5


@pytest.mark.usefixtures("affordable")
@pytest.mark.parametrize(
    "name, args", [("segfault", ()), ("abort", ()), ("_exit", (3,)), ("exit", (3,)), ("kill_self", (9,)), ("crash_in_thread", ())]
)
def test_whatever_it_dies_of(context, deaths, name, args):
    kept = context.load_module("collections").deque([1, 2])
    assert len(kept) == 2
    die(getattr(deaths, name), *args)
    kept.append(3)
    assert list(kept) == [1, 2, 3]


@pytest.mark.parametrize("how", ["death", "transaction", "rollback"])
@pytest.mark.parametrize("single", [False, True], ids=["chunks", "single"])
@pytest.mark.parametrize("kind", ["list(range(5000))", "dict.fromkeys(range(5000))", "set(range(5000))", "[[i] for i in range(5000)]"])
def test_a_loop_goes_on_with_the_next_item(context, deaths, kind, single, how):
    """Which items it has had, the session knows."""
    iterator, had = iter(context.call(keep, kind)), []

    def take(n):
        for _ in range(n):
            item = next(iterator)
            had.append(item if isinstance(item, int) else item[0])
            if single:
                deaths.allocate(0)

    take(4)
    if how == "transaction":
        with contextlib.suppress(LookupError), context.transaction():
            take(4 if single else 3000)
            raise LookupError
    else:
        context.checkpoint()
        take(4 if single else 3000)
        if how == "death":
            die(deaths.segfault)
        else:
            context.rollback()
    take(5000 - len(had))
    assert had == list(range(5000)) and next(iterator, "end") == "end"


def test_a_loop_over_a_dict_with_a_gap_goes_on(context, deaths):
    """The first items, fetched at once, had no gap; one of them is the last before the copy, and comes by itself."""
    for gap in range(1022, 1027):
        mapping = context.call(keep, f"[d := dict.fromkeys(range(5000)), d.pop({gap})][0]")
        iterator = iter(mapping)
        had = [next(iterator) for _ in range(gap - 1)]
        context.call(int)
        had.append(next(iterator))
        context.checkpoint()
        had.append(next(iterator))
        context.rollback()
        had += map(int, iterator)
        assert had == [i for i in range(5000) if i != gap]


def begin(mine):
    global under_way
    under_way = iter(mine.items)


def go_on(n):
    return [next(under_way) for _ in range(n)]


class Mine:
    def __init__(self):
        self.items = list(range(5000))


def test_an_iterator_of_the_child_that_was_taken_back(context, deaths):
    mine = Mine()
    context.call(begin, mine)
    assert context.call(go_on, 3) == [0, 1, 2]
    context.checkpoint()
    assert context.call(go_on, 3000)[-1] == 3002
    context.rollback()
    with pytest.raises(StaleProxyError, match="iterate again"):
        context.call(go_on, 3000)
    assert context.call(int) == 0


def test_what_the_crashed_call_had_half_done_is_undone(context):
    """An array of the child's, half overwritten by the call that died, has its old value again."""
    np = context.load_module("numpy")
    deaths = context.load_module("deaths")
    array = np.arange(1000)
    assert int(array.sum()) == 499500
    context.checkpoint()
    die(context.call, exec, "a[:500] = -1\nimport os\nos.abort()", {"a": array})
    assert int(array.sum()) == 499500
    assert int(np.arange(10).sum()) == 45
    assert deaths.recurse_to(2) == 2


def test_what_was_made_since_is_stale(context, deaths):
    collections = context.load_module("collections")
    old = collections.deque([1])
    context.checkpoint()
    with context._snapshots.hold():
        new = collections.deque([2])
        die(deaths.segfault)
        assert list(old) == [1]
        with pytest.raises(StaleProxyError):
            new.append(3)
        assert "deque" in repr(type(new))
        old.append(new.__class__.__name__)
    assert list(old) == [1, "deque"]


def test_objects_of_the_session_in_the_child(context, deaths):
    """What only the child refers to is there for the copy, and gone when nobody needs it any more."""

    class Mine:
        pass

    collections = context.load_module("collections")
    mine = Mine()
    gone = weakref.ref(mine)
    kept = collections.deque([mine])
    context.checkpoint()
    with context._snapshots.hold():
        kept.clear()  # the child drops it; the copy does not know
        del mine
        len(kept)
        gc.collect()
        assert gone() is not None
        die(deaths.segfault)
        assert kept[0] is gone()
        kept.clear()
    context.checkpoint()
    len(kept)
    assert wait_until(lambda: (gc.collect(), gone() is None)[1])


def test_callbacks_and_classes_of_the_session(context, deaths):
    collections = context.load_module("collections")

    class Counted(collections.OrderedDict):
        def __missing__(self, key):
            return f"no {key}"

    made = Counted(a=1)
    default = collections.defaultdict(lambda: "here")
    assert (made["b"], default["x"]) == ("no b", "here")
    context.checkpoint()
    with context._snapshots.hold():
        Counted.__missing__ = lambda self, key: f"never {key}"
        assert made["b"] == "never b"
        die(deaths.segfault)
        assert made["b"] == "never b"  # the session's class is as it is here
        assert default["y"] == "here"
        assert isinstance(made, Counted) and made["a"] == 1


def test_views_of_buffers(context, deaths):
    """A view of an isolated buffer shows what the copy has, and writes to it."""
    struct, array = context.load_module("struct"), context.load_module("array")
    remote = array.array("B", range(100))
    view = memoryview(remote)
    context.checkpoint()
    with context._snapshots.hold():
        remote[5] = 77
        assert view[5] == 77
        die(deaths.segfault)
        assert remote[5] == 5
        assert view[5] == 5 and view[99] == 99
        view[6] = 66
        assert remote[6] == 66
        remote[7] = 55
        assert view[7] == 55
    assert struct.unpack_from("B", view, 6) == (66,)
    view.release()


def test_modules(context, deaths):
    """What was loaded later is loaded again; what was set in a module is as it was."""
    zoo = context.load_module("zoo")
    context.checkpoint()
    with context._snapshots.hold():
        zoo.set_since = 1
        fractions = context.load_module("fractions")
        die(deaths.segfault)
        assert not hasattr(zoo, "set_since")
        assert str(fractions.Fraction(1, 3)) == "1/3"


def test_random_numbers_go_on(context, deaths):
    random = context.load_module("random")
    random.seed(3)
    context.checkpoint()
    with context._snapshots.hold():
        expected = [random.random() for _ in range(3)]
        die(deaths.segfault)
        assert [random.random() for _ in range(3)] == expected


def test_files_that_are_read_are_where_they_were(context, deaths, tmp_path):
    (tmp_path / "file").write_text("".join(f"{n}\n" for n in range(10000)))
    file = context.load_module("io").open(str(tmp_path / "file"))
    assert file.readline() == "0\n"
    context.checkpoint()
    with context._snapshots.hold():
        for n in range(1, 5000):
            assert file.readline() == f"{n}\n"
        die(deaths.segfault)
        assert file.readline() == "1\n"
    file.close()


def test_it_follows_the_session(context, deaths, tmp_path, monkeypatch):
    os_there = context.load_module("os")
    context.checkpoint()
    with context._snapshots.hold():
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ROLLED", "back")
        assert os_there.getcwd() == str(tmp_path)
        die(deaths.segfault)
        assert os_there.getcwd() == str(tmp_path)
        assert os_there.environ["ROLLED"] == "back"


def test_a_jail_holds(tmp_path):
    """In a jail without /proc nobody knows what a copy would share: there is none, and the set-up is replayed."""
    if os.geteuid() != 0:
        pytest.skip("only root can chroot")
    with IsolationContext(restart="auto") as context:
        context.call(os.chroot, str(tmp_path))
        posix = context.load_module("posix")
        for _ in range(2):
            assert posix.listdir("/") == []
            assert status(context)["reason"].startswith("/proc cannot be read")
            die(posix.abort)


def test_privileges_that_were_given_up_stay_so():
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with IsolationContext(restart="auto") as context:
        context.call(os.setuid, 65534)
        posix = context.load_module("posix")
        for n in range(3):
            assert posix.getuid() == 65534
            context.checkpoint()
            die(posix.abort)
        assert posix.getuid() == 65534
        assert status(context)["take_overs"] == 3


def test_threads_of_the_session(context, deaths):
    """Another thread's call after a take-over has a strand of its own again."""
    kept = context.load_module("collections").deque()
    results = []

    def work(n):
        for i in range(50):
            kept.append((n, i))
        results.append(n)

    for round in range(2):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kept) == 200 * (round + 1)
        context.checkpoint()
        die(deaths.segfault)
    assert sorted(results) == sorted([*range(4), *range(4)])


def test_output(context, capfd):
    deaths = context.load_module("_deaths")
    for n in range(3):
        die(deaths.printf_then_crash, f"words {n}\n")
        assert f"words {n}" in capfd.readouterr().out
    context.call(print, "after")
    assert capfd.readouterr().out == "after\n"


def interrupts_and_sleeps(session):
    """Runs in the child: the call is under way when the session is interrupted."""
    import os
    import signal
    import time

    os.kill(session, signal.SIGINT)
    time.sleep(60)


def test_interrupts_work_afterwards(context, deaths):
    context.call(len, "")
    die(deaths.segfault)
    context.call(len, "")
    pid = context.remote_pid
    with pytest.raises(KeyboardInterrupt):
        context.call(interrupts_and_sleeps, os.getpid())
    assert context.call(len, "") == 0 and context.remote_pid == pid
    assert status(context)["take_overs"] == 1


# --- checkpoints and transactions -----------------------------------------------------------------------


def test_rollback_by_wish(context):
    kept = context.load_module("collections").deque([1])
    context.checkpoint()
    with context._snapshots.hold():
        kept.extend(range(10))
        context.rollback()
        assert list(kept) == [1]
    with pytest.raises(ClientStateError, match="no checkpoint"):
        context.restart()
        context.rollback()


def test_a_transaction(context):
    kept = context.load_module("collections").deque([1])
    with context.transaction():
        kept.append(2)
    assert list(kept) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        with context.transaction() as same:
            assert same is context
            kept.append(3)
            with pytest.raises(ClientStateError, match="cannot be nested"):
                with context.transaction():
                    pass
            1 / 0
    assert list(kept) == [1, 2]
    deaths = context.load_module("_deaths")
    with pytest.raises(ProcessTerminationError):
        with context.transaction():
            kept.append(4)
            deaths.segfault()
    assert list(kept) == [1, 2]


def test_a_context_that_does_not_restart(bare_context):
    """Copies are made when they are asked for, and nothing goes on by itself."""
    deaths, collections = bare_context.load_module("_deaths"), bare_context.load_module("collections")
    kept = collections.deque([1])
    assert status(bare_context) == {"on": False, "reason": "it was not asked for", "snapshots": 0, "take_overs": 0, "cost": None}
    bare_context.checkpoint()
    die(deaths.segfault)
    with pytest.raises(ClientStateError, match=r"restart\(\)"):
        kept.append(2)
    bare_context.rollback()
    kept.append(2)
    assert list(kept) == [1, 2]


def test_checkpoint_needs_a_module(context):
    with pytest.raises(ClientStateError, match="no module yet"):
        context.checkpoint()


# --- when there is none ---------------------------------------------------------------------------------

UNFIT = {
    "writing": ("f = open(path, 'w')", "a file is open for writing: "),
    "socket": ("import socket; f = socket.socketpair()", "a socket is open"),
    "pipe": ("import os; f = os.pipe()", "a pipe is open"),
    "database": ("import sqlite3; f = sqlite3.connect(path); f.execute('create table t (a)')", "a file is open for writing: "),
    "mapping": ("import mmap; f = mmap.mmap(-1, 4096)", "memory is mapped shared and writable: "),
    "thread": ("import threading; f = threading.Event(); threading.Thread(target=f.wait, daemon=True).start()", "1 thread of"),
    "child": ("import os; f = os.posix_spawnp('sleep', ['sleep', '60'], {})", "it has started a process"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_unsafe_is_off_with_the_reason(context, deaths, tmp_path, case):
    code, reason = UNFIT[case]
    kept = context.load_module("collections").deque()
    context.checkpoint()
    assert status(context)["on"]
    context.call(exec, f"import builtins\n{code}\nbuiltins.kept_f = f", {"path": str(tmp_path / "file")})
    with pytest.raises(ClientStateError, match=reason):
        context.checkpoint()
    assert not status(context)["on"]
    assert reason in status(context)["reason"]
    error = die(deaths.segfault)
    assert "kept" not in str(error)
    with pytest.raises(StaleProxyError):
        kept.append(1)


def test_what_has_been_closed_is_no_obstacle(context, deaths, tmp_path):
    with pytest.raises(ClientStateError):
        context.call(exec, "import builtins; builtins.f = open(path, 'w')", {"path": str(tmp_path / "file")})
        deaths.allocate(0)
        context.checkpoint()
    context.call(exec, "f.close()")
    context.checkpoint()
    assert status(context)["on"]


@pytest.mark.parametrize("name", ["numpy", "cv2"])
def test_pools_of_threads(context, name):
    """OpenBLAS and OpenCV have pools: they end before the copy is made, and begin again on both sides of it."""
    np = context.load_module("numpy")
    context.load_module(name)
    code = """
import numpy as np, sys
a = np.random.default_rng(1).random((300, 300))
for _ in range(3):
    a = a @ a
    a /= abs(a).max()
if 'cv2' in sys.modules:
    import cv2
    a = cv2.GaussianBlur(cv2.resize((a * 255).astype('uint8'), (2000, 2000)), (31, 31), 0)
"""
    kept = np.ones(3)
    context.call(exec, code, {})
    context.checkpoint()
    assert status(context)["on"]
    for _ in range(3):
        context.call(exec, code, {})
        die(context.call, os._exit, 1)
        context.call(exec, code, {})
        assert float(kept.sum()) == 3.0
    assert status(context)["take_overs"] == 3


def test_openmp(context, tmp_path):
    """The pool of GNU's OpenMP does not survive a fork; it is paused before."""
    source, library = tmp_path / "sum.c", tmp_path / "libsum.so"
    source.write_text("long sum(long n) { long s = 0;\n#pragma omp parallel for reduction(+:s)\nfor (long i = 0; i < n; i++) s += i; return s; }")
    subprocess.run(["gcc", "-fopenmp", "-shared", "-fPIC", "-o", library, source], check=True)
    ctypes, deaths = context.load_module("ctypes"), context.load_module("_deaths")
    add = ctypes.CDLL(str(library)).sum
    add.restype = ctypes.c_long
    for _ in range(3):
        assert add(ctypes.c_long(100000)) == 4999950000
        context.checkpoint()
        die(deaths.segfault)
        assert add(ctypes.c_long(100000)) == 4999950000


def test_right_after_another_thread_has_called(context, deaths):
    """Its thread in the child ends, for which it needs the GIL; a copy is made all the same."""
    context.call(exec, "import sys; sys.setswitchinterval(1e-6)", {})
    allocate = deaths.allocate
    for _ in range(100):
        thread = threading.Thread(target=allocate, args=(0,))
        thread.start()
        thread.join()
        context.checkpoint()


def test_an_interrupt_once_the_copy_is_there():
    """What comes in place of the answer leaves no copy that the next checkpoint takes for its own."""

    def interrupt_after_the_next_copy():
        import ctypes
        import functools
        import os

        # All in C: in Python it would be raised in the hook.
        once = map(ctypes.pythonapi.PyErr_SetInterrupt, [0])
        os.register_at_fork(after_in_parent=functools.partial(next, once, None))

    with IsolationContext(restart="never", rollback="off", name="test") as context:
        kept = context.load_module("collections").OrderedDict()
        context.call(interrupt_after_the_next_copy)
        kept["at"] = 1
        with pytest.raises(KeyboardInterrupt):
            context.checkpoint()
        kept["at"] = 2
        context.checkpoint()
        kept["at"] = 3
        context.rollback()
        assert kept["at"] == 2


def test_a_call_that_begins_while_a_copy_is_made():
    """It would be in the copy for ever, with what it has locked."""

    def prepare(tell):
        import os
        import sys
        import threading
        import types

        module = sys.modules["late"] = types.ModuleType("late")
        working, over = threading.Event(), threading.Event()
        left = [1]
        module.work = lambda: (working.set(), over.wait(60))[1]
        os.register_at_fork(before=lambda: left and (left.pop(), tell(), working.wait(60)))
        return over.set

    with IsolationContext(restart="never", rollback="off", name="late") as context:
        kept = context.load_module("collections").OrderedDict(a=1)
        begin, done = threading.Event(), []
        finish = context.call(prepare, begin.set)
        work = context.load_module("late").work
        thread = threading.Thread(target=lambda: (begin.wait(60), done.append(work())))
        thread.start()
        with pytest.raises(ClientStateError, match="a call of another thread is under way"):
            context.checkpoint()
        finish()
        thread.join()
        assert done == [True]
        context.checkpoint()
        kept["a"] = 2
        context.rollback()
        assert kept["a"] == 1


# --- processes ------------------------------------------------------------------------------------------


def _no_socketpairs():
    """From now on socketpair() fails in this process: "Too many open files"."""
    import ctypes
    import struct

    def step(code, to, otherwise, k):
        return struct.pack("HBBI", code, to, otherwise, k)

    number, load, equal, leave = 53, 0x20, 0x15, 0x06  # on x86-64; BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    steps = step(load, 0, 0, 0) + step(equal, 0, 1, number) + step(leave, 0, 0, 0x50000 | 24)  # SECCOMP_RET_ERRNO, EMFILE
    steps += step(leave, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
    code = ctypes.create_string_buffer(steps, len(steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has numbers of x86-64")
def test_a_copy_that_cannot_be_made_takes_none_away(context, deaths):
    collections = context.load_module("collections")
    kept = collections.OrderedDict(a=1)
    context.checkpoint()
    context.call(_no_socketpairs)
    with pytest.raises(ClientStateError, match="it could not be copied: Too many open files"):
        context.checkpoint()
    assert status(context)["on"]
    assert "kept" in str(die(deaths.segfault))
    assert list(kept.items()) == [("a", 1)]
    context.checkpoint()  # the copy was made before the filter was there


def test_the_copy_is_nobodys_child(context, deaths):
    """Code that waits for any child does not find the copy, which is the supervisor's; nor are there zombies."""
    deaths.allocate(0)
    for _ in range(5):
        context.checkpoint()
        with pytest.raises(ChildProcessError):
            context.call(os.waitpid, -1, 0)
    assert wait_until(lambda: len(children(context._peer.supervisor_pid)) == 2)
    assert children(context.remote_pid) == []


def test_the_copy_goes_with_the_context():
    context = IsolationContext(restart="auto")
    context.load_module("_deaths").allocate(0)
    context.checkpoint()
    supervisor = context._peer.supervisor_pid
    assert wait_until(lambda: len(children(supervisor)) == 2)
    found = children(supervisor)
    context.close()
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in found))


def test_a_copy_that_was_killed(context, deaths):
    """As when memory runs out: a copy is the first to go. Then there is a restart like any other."""
    kept = context.load_module("collections").deque()
    context.checkpoint()
    copy = wait_until(lambda: context._peer.frozen_pid)  # which is known once it waits
    with open(f"/proc/{copy}/oom_score_adj") as file:
        assert int(file.read()) > 0
    os.kill(copy, signal.SIGKILL)
    assert wait_until(lambda: not context._peer.has_frozen)
    with context._snapshots.hold():
        die(deaths.segfault)
    with pytest.raises(StaleProxyError):
        kept.append(1)
    assert deaths.allocate(0) == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_copy_that_dies_as_it_is_to_take_over(context, deaths, monkeypatch, capsys, when):
    """The error has said that objects are kept: so it is said that they are not."""
    kept = context.load_module("collections").deque()
    context.checkpoint()
    copy, peer = wait_until(lambda: context._peer.frozen_pid), context._peer

    class Deadly:
        """The peer; its order to take over comes before or after the copy's death."""

        def take_over(self):
            if when == "before":
                os.kill(copy, signal.SIGKILL)
            taken = peer.take_over()
            if when == "after":
                os.kill(copy, signal.SIGKILL)
            return taken

        def __getattr__(self, name):
            return getattr(peer, name)

    with context._snapshots.hold():
        assert "objects made in it earlier are kept" in str(die(deaths.segfault))
        monkeypatch.setattr(context._snapshots, "_peer", Deadly())
        with pytest.raises(StaleProxyError):
            kept.append(1)
        monkeypatch.undo()
    assert capsys.readouterr().err == (
        "ipython_isolation: the process of context 'test' was restarted, since the copy that was to go on has died,"
        " too: objects made in it before are lost\n"
    )
    assert deaths.allocate(0) == 0
    die(deaths.segfault)
    assert deaths.allocate(0) == 0
    assert "has died, too" not in capsys.readouterr().err


def test_what_the_dead_child_had_started_ends(context, deaths):
    deaths.allocate(0)
    context.checkpoint()
    with context._snapshots.hold():
        pid = context.call(eval, "os.posix_spawnp('sleep', ['sleep', '100'], {})", {"os": os})
        die(deaths.segfault)
        deaths.allocate(0)
        assert status(context)["take_overs"] == 1
        assert wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_the_kernel_is_killed():
    """Nothing is left: no child, and no copy, frozen or not."""
    script = f"""
        import os, sys, signal
        sys.path.insert(0, {VICTIMS!r})
        import ipython_isolation as ii
        context = ii.IsolationContext(restart="auto")
        deaths = context.load_module("_deaths")
        deaths.allocate(0)
        context.checkpoint()
        try:
            deaths.segfault()
        except ii.ProcessTerminationError:
            pass
        deaths.allocate(0)
        context.checkpoint()
        assert context.info()["rollback"]["take_overs"] == 1
        print(context._peer.supervisor_pid, flush=True)
        deaths.sleep_in_c_without_gil(60.0)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    supervisor = int(process.stdout.readline())
    assert wait_until(lambda: len(children(supervisor)) == 2)
    found = children(supervisor)
    process.kill()
    process.communicate()
    assert wait_until(lambda: [pid for pid in found if os.path.exists(f"/proc/{pid}")] == [])


# --- cells ----------------------------------------------------------------------------------------------


def test_cells():
    """What earlier cells made is there; the crashed cell's is stale, unless that cell was long."""
    script = f"""
        import sys
        sys.path.insert(0, {VICTIMS!r})
        import ipython_isolation.rollback
        from IPython.testing.globalipapp import start_ipython
        shell = start_ipython()
        def run(cell):
            return shell.run_cell(cell)
        run("%load_ext ipython_isolation")
        run("%isolate _deaths collections")
        run("import _deaths, collections, ipython_isolation")
        ipython_isolation.rollback._CHEAP = 60  # however long a copy takes on this machine: each cell has one
        run("kept = collections.deque([1])")
        run("kept.append(2)")
        failed = run("new = collections.deque(); kept.append(3); _deaths.segfault()")
        assert type(failed.error_in_exec).__name__ == "ProcessTerminationError", failed
        assert "kept" in str(failed.error_in_exec)
        run("assert list(kept)[:2] == [1, 2], kept").raise_error()
        context = shell.user_global_ns["ipython_isolation"].default_context()
        assert context.info()["rollback"]["take_overs"] == 1
        made = context.info()["rollback"]["snapshots"]
        run("kept.append(1)")
        assert context.info()["rollback"]["snapshots"] > made
        print(repr(shell.run_line_magic("isolate", "")))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("module ") :]
    assert table.splitlines()[1].endswith(" on"), table
