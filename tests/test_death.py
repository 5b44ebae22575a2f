"""Every way of dying raises, promptly, exactly once, and says why; the session is unharmed."""

import contextlib
import copy
import gc
import hashlib
import io
import os
import pickle
import signal
import sys
import time

import pytest
from conftest import wait_until

import ipython_isolation
from ipython_isolation import (
    ClientStateError,
    IsolationContext,
    ProcessTerminatedError,
    ProcessTerminationError,
    StaleProxyError,
)

VICTIMS = os.path.join(os.path.dirname(__file__), "victims")


@pytest.fixture
def deaths(context):
    return context.load_module("_deaths")


def die(call, *args):
    """What `call` raises, and when this process knew it (time.monotonic())."""
    with pytest.raises(ProcessTerminationError) as caught:
        call(*args)
    return caught.value, time.monotonic()


def resident(pid):
    """Pages; 0 for a zombie, None for a process that is gone, which reading may be the first to say (ESRCH)."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1])
    except OSError:
        return None


# --- each death -------------------------------------------------------------------------------------

SIGNALS = [
    ("segfault", (), "SIGSEGV"),
    ("abort", (), "SIGABRT"),
    ("fpe", (), "SIGFPE"),
    ("bus", (), "SIGBUS"),
    ("ill", (), "SIGILL"),
    ("stack_overflow", (), "SIGSEGV"),
    # glibc's check; the sanitizer has one of its own.
    pytest.param("double_free", (), "SIGABRT", marks=pytest.mark.no_asan),
    ("crash_in_thread", (), "SIGSEGV"),
    ("printf_then_crash", ("",), "SIGSEGV"),
    *(("kill_self", (getattr(signal, s),), s) for s in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGSYS", "SIGTRAP", "SIGQUIT")),
]


@pytest.mark.parametrize("name, args, signame", SIGNALS, ids=lambda x: str(x))
def test_a_signal(context, deaths, name, args, signame):
    pid = context.remote_pid
    error, _ = die(getattr(deaths, name), *args)
    assert error.signal is signal.Signals[signame]
    assert error.exit_code is None
    assert error.pid == pid
    assert error.operation == f"_deaths.{name}"
    assert error.context == "test"
    for part in (signame, str(pid), f"_deaths.{name}"):
        assert part in str(error)
    assert context.info()["crashes"] == 1
    assert context.info()["state"] == "dead"
    assert context.remote_pid is None


@pytest.mark.parametrize(
    "module, name, code",
    [("_deaths", "exit", 5), ("_deaths", "_exit", 6), ("deaths", "exit_by_os", 7), ("_deaths", "_exit", 0)],
)
def test_an_exit(context, module, name, code):
    function = getattr(context.load_module(module), name)
    pid = context.remote_pid
    error, _ = die(function, code)
    assert (error.signal, error.exit_code, error.pid) == (None, code, pid)
    assert f"exit code {code}" in str(error)
    assert f"{module}.{name}" in str(error)


def test_sys_exit_is_an_exception_like_others(context):
    deaths = context.load_module("deaths")
    pid = context.remote_pid
    with pytest.raises(SystemExit) as caught:
        deaths.exit_by_sys(4)
    assert caught.value.code == 4
    assert deaths.recurse_to(3) == 3
    assert context.remote_pid == pid


def test_dragons(context):
    error, _ = die(context.load_module("buggy").dragons_here)
    assert error.signal is signal.SIGSEGV
    assert "buggy.dragons_here" in str(error)


def test_dies_at_import(context, capsys):
    error, _ = die(context.load_module, "dies_at_import")
    assert error.signal is signal.SIGSEGV
    assert "dies_at_import" in str(error)
    assert capsys.readouterr().out == "about to die\n"
    # The next import works, and so does the same one: it dies again.
    die(context.load_module, "dies_at_import")
    assert context.load_module("deaths").recurse_to(2) == 2


@pytest.mark.parametrize("name", ["DiesInDel", "DiesInRepr"])
def test_death_in_a_special_method(context, name):
    made = getattr(context.load_module("deaths"), name)(9)
    if name == "DiesInRepr":
        error, _ = die(repr, made)
    else:
        del made
        gc.collect()
        # The release travels by itself, and kills between calls.
        assert wait_until(lambda: context.info()["state"] == "dead")
        error, _ = die(lambda: context.load_module("deaths").recurse_to(1))
        assert "between calls" in str(error)
    assert error.exit_code == 9


def test_the_address_of_a_fault(context, deaths):
    error, _ = die(deaths.segfault, 0xDEAD0000)
    assert error.address == 0xDEAD0000
    assert "0xdead0000" in str(error)
    error, _ = die(deaths.segfault)
    assert error.address == 0
    assert "NULL" in str(error)


# --- an end that is none -------------------------------------------------------------------------------

EXEC = "os.execv('/bin/sh', ['sh', '-c', 'sleep 0.2; echo last words; exit 6'])"


@pytest.mark.parametrize(
    "code", [EXEC, f"threading.Thread(target=lambda: {EXEC}).start(); time.sleep(60)"], ids=["main", "thread"]
)
def test_another_program(context, code, capfd):
    """A child that executes another program has not ended before that has."""
    context.start()
    start = time.monotonic()
    error, known = die(context.call, exec, f"import os, threading, time\n{code}", {})
    assert error.exit_code == 6
    assert known - start >= 0.2
    assert "last words" in capfd.readouterr().out


@pytest.mark.restarts
def test_in_a_jail(context):
    """What the system says of the child is read outside of it; where that may not be read, it is waited for."""
    if os.geteuid() == 0:
        context.call(os.chroot, "/")
        context.call(os.setuid, 65534)
    for code in (3, 0):
        deaths = context.load_module("_deaths")
        assert deaths.allocate(256) == 256
        error, _ = die(deaths._exit, code)
        assert error.exit_code == code


# --- the exception ----------------------------------------------------------------------------------


def test_fresh_each_time_and_picklable(context, deaths):
    first, _ = die(deaths.segfault)
    second, _ = die(deaths.segfault)
    assert first is not second
    assert first.pid != second.pid
    assert ProcessTerminatedError is ProcessTerminationError
    for error in (pickle.loads(pickle.dumps(first)), copy.copy(first), copy.deepcopy(first)):
        assert type(error) is ProcessTerminationError
        assert str(error) == str(first)
        assert vars(error) == vars(first)
        assert error.signal is signal.SIGSEGV


def test_the_traceback_leads_to_the_call(context, deaths):
    error, _ = die(deaths.segfault)
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "die" in frames
    assert error.__cause__ is None
    assert error.__context__ is None


# --- between calls ----------------------------------------------------------------------------------


LATER = """
import _deaths, os, threading

def later():
    with open(go) as file:
        file.read()
    {what}

threading.Thread(target=later, daemon=True).start()
"""


def between_by(what):
    """In a thread of the child, which is told to when the call that has started it is over."""

    def between(context, go):
        os.mkfifo(go)
        context.call(exec, LATER.format(what=what), {"go": str(go)})
        go.write_text("")

    return between


def between_by_kill(context, go):
    os.kill(context.remote_pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "how, reason",
    [
        (between_by("_deaths.crash_in_thread()"), "SIGSEGV"),
        (between_by_kill, "SIGKILL"),
        (between_by("os._exit(3)"), "exit code 3"),
    ],
    ids=["thread", "kill", "exit"],
)
@pytest.mark.parametrize("noticed", [True, False])
def test_between_calls_raises_once_at_the_next_use(context, deaths, tmp_path, how, reason, noticed):
    pid = context.remote_pid
    how(context, tmp_path / "go")
    if noticed:
        assert wait_until(lambda: context.info()["state"] == "dead")
    else:
        assert wait_until(lambda: not resident(pid))
    error, _ = die(lambda: deaths.allocate(0))
    assert reason in str(error)
    assert "between calls" in str(error)
    assert error.pid == pid
    assert deaths.allocate(0) == 0  # exactly once
    assert context.info()["crashes"] == 1


# --- output -----------------------------------------------------------------------------------------


def test_what_was_printed_before_is_not_lost(context, deaths, capfd):
    for text in ("", "short", "ä" * 30_000 + "end"):
        die(deaths.printf_then_crash, text)
        assert capfd.readouterr().out == text


@pytest.mark.parametrize("stream", ["out", "err"])
def test_what_python_printed_before_is_not_lost(context, deaths, capsys, stream):
    victim = context.load_module("deaths")
    if stream == "out":
        die(victim.print_then_exit_by_os, "last words")
    else:
        die(context.call, exec, "import sys, os; sys.stderr.write('last words\\n'); os._exit(1)", {})
    captured = capsys.readouterr()
    assert getattr(captured, stream) == "last words\n"


# --- a context that does not restart by itself ------------------------------------------------------


def test_bare_context(bare_context):
    context = bare_context
    zoo = context.load_module("zoo")
    deaths = context.load_module("_deaths")
    counter = zoo.Counter(1) if hasattr(zoo, "Counter") else context.load_module("collections").OrderedDict(a=1)
    die(deaths.segfault)
    for use in (
        lambda: deaths.allocate(0),
        lambda: zoo.__nothing__,
        lambda: context.load_module("zoo"),
        lambda: context.load_module("colorsys"),
        lambda: context.call(os.getpid),
        context.start,
        context.ensure_started,
    ):
        with pytest.raises(ClientStateError, match="died.*restart"):
            use()
    with pytest.raises(ClientStateError):
        len(counter)
    assert "lost" in repr(counter) or "stale" in repr(counter).lower()
    context.restart()
    assert deaths.allocate(0) == 0
    with pytest.raises(StaleProxyError):
        len(counter)
    assert "lost" in repr(counter) or "stale" in repr(counter).lower()
    assert context.info()["epoch"] == 2


SHAPES = """
import _deaths
class Error(Exception):
    pass
class Base:
    def __init__(self, n=1):
        self.n = n
    def value(self):
        return self.n * 10
    def twice(self):
        return 2 * self.value()
def make(n):
    return Base(n)
def fail():
    raise Error("on purpose")
def crash():
    _deaths.segfault()
"""


def test_names_bind_again(bare_context, tmp_path):
    (tmp_path / "shapes_victim.py").write_text(SHAPES)
    mod = bare_context.load_module("shapes_victim", [str(tmp_path)])
    Error, Base, make, fail = mod.Error, mod.Base, mod.make, mod.fail

    class Mine(Base):
        def value(self):
            return super().value() + 1

    lost, mine = make(3), Mine(2)
    method = lost.value
    assert (lost.value(), mine.twice()) == (30, 42)
    for life in (2, 3):
        die(mod.crash)
        bare_context.restart()
        with pytest.raises(Error, match="on purpose"):
            fail()
        try:
            mod.fail()
        except mod.Error as error:
            assert type(error) is Error
        assert mod.Base is Base and mod.Error is Error
        assert isinstance(make(1), Base) and type(make(1)) is Base
        assert make(4).value() == 40
        fresh = Mine(5)
        assert (fresh.value(), fresh.twice()) == (51, 102)
        assert isinstance(fresh, Base)
        for use in (lost.value, lambda: lost.n, method, mine.twice, lambda: setattr(lost, "n", 1), lambda: mine.n):
            with pytest.raises(StaleProxyError, match="lost"):
                use()
        assert isinstance(lost, Base) and isinstance(mine, Mine)
        assert "Base" in repr(lost)
        assert bare_context.info()["epoch"] == life


# --- a context that restarts by itself --------------------------------------------------------------


@pytest.mark.restarts
def test_auto_says_once_what_was_reset(context, deaths, capsys):
    die(deaths.segfault)
    assert capsys.readouterr().err == ""
    assert deaths.allocate(0) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "'test' was restarted" in lines[0] and "lost" in lines[0]
    assert deaths.allocate(0) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.restarts
def test_set_up_is_replayed_in_order(context):
    context.call(exec, "import builtins; builtins.steps = ['a']", {})
    context.call(exec, "steps.append('b')", {})
    context.call(exec, "steps.append('c')", {})
    deaths = context.load_module("_deaths")
    context.call(exec, "steps.append('after')", {})  # a module is loaded: no set-up any more
    assert context.call(eval, "list(steps)") == ["a", "b", "c", "after"]
    for _ in range(2):
        die(deaths.segfault)
        assert context.call(eval, "list(steps)") == ["a", "b", "c"]
    context.restart()
    assert context.call(eval, "list(steps)") == ["a", "b", "c"]


@pytest.mark.parametrize("restart", ["never", "auto"])
def test_when_set_up_fails_nothing_runs(restart, tmp_path):
    """The child that could not be jailed is gone before anything else runs in it."""
    marker, log = tmp_path / "allowed", tmp_path / "log"
    marker.touch()
    with IsolationContext(restart=restart, name="jail", rollback="off") as context:
        context.call(exec, f"open({str(marker)!r}).close()", {})
        context.call(exec, f"with open({str(log)!r}, 'a') as file: file.write('second ')", {})
        deaths = context.load_module("_deaths")
        log.unlink()
        marker.unlink()
        die(deaths.segfault)
        if restart == "never":
            with pytest.raises(FileNotFoundError):
                context.restart()
        else:
            with pytest.raises(FileNotFoundError):
                deaths.allocate(0)
        assert not log.exists()
        assert context.remote_pid is None
        assert context.info()["state"] == "dead"
        # Not a death to be reported, and not to be used: the start fails until the set-up works.
        for _ in range(2):
            with pytest.raises(ClientStateError if restart == "never" else FileNotFoundError):
                deaths.allocate(0)
        assert not log.exists()
        marker.touch()
        if restart == "never":
            context.restart()
        assert deaths.allocate(0) == 0
        assert log.read_text() == "second "


@pytest.mark.restarts
def test_set_up_by_a_function_whose_module_is_isolated_later(context):
    """It is replayed in the child, not here."""
    mine = os.umask(0o22)
    os.umask(mine)
    context.call(os.umask, 0o77)
    posix = context.load_module("posix")
    for _ in range(2):
        assert posix.umask(0o77) == 0o77
        die(posix.abort)
    assert posix.umask(0o77) == 0o77
    assert os.umask(mine) == mine


def test_a_set_up_that_dies(tmp_path):
    marker = tmp_path / "die"
    with IsolationContext(restart="auto", name="jail", rollback="off") as context:
        context.call(exec, f"import os; os.path.exists({str(marker)!r}) and os._exit(9)", {})
        deaths = context.load_module("_deaths")
        marker.touch()
        die(deaths.segfault)
        error, _ = die(lambda: deaths.allocate(0))
        assert error.exit_code == 9
        marker.unlink()
        assert deaths.allocate(0) == 0


def test_init_runs_after_each_start():
    seen = []
    context = IsolationContext(restart="auto", rollback="off", init=lambda: seen.append(context.call(os.getpid)))
    with context:
        deaths = context.load_module("_deaths")
        assert seen == [context.remote_pid]
        die(deaths.segfault)
        assert deaths.allocate(0) == 0
        assert len(seen) == 2 and seen[1] == context.remote_pid != seen[0]
        context.restart()
        assert len(seen) == 3


def test_init_that_fails():
    def init():
        raise LookupError("not ready")

    context = IsolationContext(restart="auto", init=init)
    try:
        for _ in range(2):
            with pytest.raises(LookupError, match="not ready"):
                context.load_module("colorsys")
            assert context.remote_pid is None
    finally:
        context.close()


def test_a_child_that_cannot_start(tmp_path):
    for python in (tmp_path / "missing", "/bin/false", "/bin/true"):
        context = IsolationContext(python=str(python))
        try:
            with pytest.raises((OSError, ProcessTerminationError)) as caught:
                context.start()
            if str(python) == "/bin/false":
                assert caught.value.exit_code == 1 and "while it started" in str(caught.value)
        finally:
            context.close()


# --- wild writes ------------------------------------------------------------------------------------


def checksum(o):
    if hasattr(o, "tobytes"):
        return hashlib.sha256(o.tobytes()).hexdigest()
    if isinstance(o, (bytearray, memoryview)):
        return hashlib.sha256(bytes(o)).hexdigest()
    return hashlib.sha256(repr(o).encode()).hexdigest()


@pytest.mark.parametrize("nbytes", [1, 8, 64, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("side", ["before", "behind"])
@pytest.mark.parametrize("kind", ["bytearray", "ndarray"])
def test_wild_writes_leave_the_session_alone(context, deaths, nbytes, side, kind):
    numpy = pytest.importorskip("numpy")
    rng = numpy.random.default_rng(5)
    session = {
        "small": rng.integers(0, 255, 100, dtype=numpy.uint8),
        "image": rng.integers(0, 255, (200, 300, 3), dtype=numpy.uint8),
        "floats": rng.normal(size=(300, 300)),
        "table": {str(i): [i, i * 0.5, (i,)] for i in range(1000)},
        "text": "x" * 10_000,
        "raw": bytearray(rng.bytes(5000)),
    }
    argument = session["image"] if kind == "ndarray" else session["raw"]
    size = argument.nbytes if kind == "ndarray" else len(argument)
    before = {name: checksum(value) for name, value in session.items()}
    offset = -nbytes if side == "before" else size
    with pytest.raises(ProcessTerminationError) as caught:
        deaths.wild_write(argument, offset, nbytes, crash=True)
    assert caught.value.signal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    assert {name: checksum(value) for name, value in session.items()} == before
    # A call that dies changes nothing inside of its argument either.
    with pytest.raises(ProcessTerminationError):
        deaths.wild_write(argument, 0, min(size, nbytes), crash=True)
    assert {name: checksum(value) for name, value in session.items()} == before
    deaths.wild_write(argument, 0, 4)
    assert bytes(memoryview(argument).cast("B")[:4]) == b"\xaa" * 4


# --- a reply before the death -----------------------------------------------------------------------


def test_an_answer_given_just_before_the_death_is_delivered(context, deaths):
    """A thread of the child kills it as soon as the call's answer is on its way."""
    outcomes = {"answer": 0, "death": 0}
    for delay in (0.002, 0.004, 0.006, 0.008, 0.010) * 2:
        deaths.allocate(0)
        try:
            deaths.crash_in_thread(delay)  # which may itself die first, of a thread that gets the processor
            while True:
                assert deaths.allocate(0) == 0
                outcomes["answer"] += 1
        except ProcessTerminationError as error:
            assert error.signal is signal.SIGSEGV
            outcomes["death"] += 1
        with contextlib.redirect_stderr(io.StringIO()):
            assert deaths.allocate(0) == 0
    assert outcomes["death"] == 10
    assert context.info()["crashes"] == 10


def test_closed_descriptors(context, deaths):
    """Code that closes all descriptors cuts the connection: that call raises or, when its answer came by
    shared memory, a later one. It does not hang."""
    with pytest.raises(ProcessTerminationError):
        deaths.close_all_fds(3)
        deaths.allocate(0)
        assert wait_until(lambda: context.info()["state"] == "dead")
        deaths.allocate(0)
    assert deaths.allocate(0) == 0


HANDLES = """
import signal
hits = []
signal.signal(signal.SIGFPE, lambda *_: hits.append(1))
"""


def test_a_signal_that_the_child_handles(tmp_path, monkeypatch):
    """Announced, since nobody can know; taken back, since it went on. The session does not spin meanwhile."""
    (tmp_path / "sitecustomize.py").write_text(HANDLES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with IsolationContext(restart="auto") as context:
        clock, deaths = context.load_module("time"), context.load_module("_deaths")
        pid = context.remote_pid
        for n in range(1, 4):
            deaths.kill_self(signal.SIGFPE)
            clock.sleep(0)
            assert context.call(eval, "len(__import__('sitecustomize').hits)") == n
            start = time.thread_time()
            clock.sleep(0.5)
            assert time.thread_time() - start < 0.2
        assert context.remote_pid == pid
        error, _ = die(deaths._exit, 7)
        assert error.exit_code == 7 and error.signal is None
        error, _ = die(deaths.segfault)
        assert error.signal is signal.SIGSEGV


def test_faulthandler_of_the_child(monkeypatch, capfd):
    """It is heard before the child dies, and hides nothing."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    with IsolationContext(restart="auto") as context:
        deaths = context.load_module("_deaths")
        error, _ = die(deaths.segfault, 0x1234)
        assert error.signal is signal.SIGSEGV and error.address == 0x1234
    assert "Segmentation fault" in capfd.readouterr().err


def test_default_context_and_names():
    mod = ipython_isolation.import_isolated("_deaths")
    die(mod.segfault)
    assert mod.allocate(0) == 0
    assert sys.modules["_deaths"] is mod
