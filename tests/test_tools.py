"""Under a debugger or another tool; crashed children that stand still; a spare one for fast restarts."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from conftest import children, wait_until
from IPython.core.error import UsageError
from test_interrupt import Session
from test_magics import ip, run, shell  # noqa: F401: fixtures

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError, limits
from ipython_isolation.context import named_context

needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")


def tooled(**options):
    return IsolationContext(**{"restart": "auto", "name": "tooled", **options})


def state(pid):
    """As ps shows it, such as "T"; None for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def stands_still(pid):
    """A crash is announced before the process stops."""
    return wait_until(lambda: state(pid) in ("T", "t"))


def is_gone(pid):
    return state(pid) in (None, "Z", "X")


def crash(call, *args):
    with pytest.raises(ProcessTerminationError) as caught:
        call(*args)
    return caught.value


# --- Environment ---------------------------------------------------------------------------------------


def test_variables_of_the_child_alone(monkeypatch):
    monkeypatch.setenv("FROM_SESSION", "1")
    monkeypatch.setenv("TAKEN_AWAY", "1")
    with tooled(env={"MALLOC_PERTURB_": "85", "FROM_SESSION": "2", "TAKEN_AWAY": None}) as context:
        for _ in range(2):
            assert context.call(os.getenv, "MALLOC_PERTURB_") == "85"
            assert context.call(os.getenv, "FROM_SESSION") == "2"
            assert context.call(os.getenv, "TAKEN_AWAY") is None
            # Following the session does not take them away.
            os.environ["FROM_SESSION"] = "3"
            os.environ["TAKEN_AWAY"] = "4"
            os.environ["ANOTHER"] = "5"
            assert context.call(os.getenv, "ANOTHER") == "5"
            assert context.call(os.getenv, "FROM_SESSION") == "2"
            assert context.call(os.getenv, "TAKEN_AWAY") is None
            del os.environ["ANOTHER"]
            assert context.call(os.getenv, "ANOTHER") is None
            context.restart()
        assert "MALLOC_PERTURB_" not in os.environ


@pytest.mark.no_asan  # whose own library must be preloaded then
def test_a_library_to_preload(tmp_path):
    """As for a sanitizer; it is not loaded into the session, nor into the supervisor."""
    library = tmp_path / "libpre.so"
    (tmp_path / "pre.c").write_text("int preloaded(void) { return 42; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "pre.c", "-o", library], check=True, cwd=tmp_path)
    with tooled(env=[f"LD_PRELOAD={library}"]) as context:
        ctypes = context.load_module("ctypes")
        assert ctypes.CDLL(None).preloaded() == 42

        def maps(pid):
            with open(f"/proc/{pid}/maps") as file:
                return file.read()

        assert str(library) in maps(context.remote_pid)
        assert str(library) not in maps("self")
        assert str(library) not in maps(context._peer.supervisor_pid)


# --- Wrappers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["env WRAPPED=1", ["env", "WRAPPED=1", "nice", "-n", "2"], "SCRIPT"], ids=str)
def test_a_wrapper(tmp_path, wrapper):
    if wrapper == "SCRIPT":
        script = tmp_path / "with spaces.sh"
        script.write_text('#!/bin/sh\nWRAPPED=1 exec "$@"\n')
        script.chmod(0o755)
        wrapper = [script]
    with tooled(wrapper=wrapper) as context:
        deaths = context.load_module("_deaths")
        assert context.call(os.getenv, "WRAPPED") == "1"
        assert context.call(os.getpid) == context.remote_pid
        assert context.info()["transport"] in ("lane", "zmq")
        assert context.info()["rollback"]["on"] is False
        error = crash(deaths.segfault)
        assert error.signal is signal.SIGSEGV
        assert context.call(os.getenv, "WRAPPED") == "1"


def test_a_wrapper_that_does_not_start_the_child():
    context = tooled(wrapper=["false"])
    error = crash(context.load_module, "zlib")
    assert error.exit_code == 1 and "while it started" in str(error)
    context.configure(wrapper=None)
    assert context.load_module("zlib").crc32(b"") == 0


@pytest.mark.no_asan
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind(tmp_path):
    log = tmp_path / "valgrind.log"
    with tooled(wrapper=["valgrind", "-q", f"--log-file={log}"], env={"PYTHONMALLOC": "malloc"}) as context:
        deaths = context.load_module("_deaths")
        assert context.call(os.getpid) == context.remote_pid
        assert deaths.allocate(1) == 1
        error = crash(deaths.segfault)
        assert error.signal is signal.SIGSEGV
        assert wait_until(lambda: "Invalid write of size 1" in log.read_text())
        assert "deaths_segfault" in log.read_text()


def test_the_magic_takes_tools(ip):  # noqa: F811
    run(ip, """%isolate zoo --wrapper "env 'WRAPPED=a b'" --env ALONE=1\nimport zoo""")
    context = named_context("default")
    assert context.call(os.getenv, "WRAPPED") == "a b" and context.call(os.getenv, "ALONE") == "1"
    # Another module joins it, whatever its options are.
    assert run(ip, "%isolate _deaths\nimport _deaths\n_deaths.allocate(0)") == 0
    assert named_context("default") is context


# --- Debuggers -----------------------------------------------------------------------------------------


def test_how_to_attach(context, monkeypatch):
    with pytest.raises(ClientStateError, match="no process now"):
        IsolationContext(name="new").attach()
    context.ensure_started()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits, "ptrace_scope", lambda: 0)
    text = context.attach()
    assert text.splitlines()[0] == f"gdb -p {context.remote_pid}"
    assert "ptrace_scope" not in text
    monkeypatch.setattr(limits, "ptrace_scope", lambda: 1)
    assert f"sudo gdb -p {context.remote_pid}" in context.attach()
    assert "kernel.yama.ptrace_scope is 1" in context.attach()
    monkeypatch.setattr(limits, "ptrace_scope", lambda: 3)
    assert "sudo" not in context.attach() and "rebooted" in context.attach()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "gdb is not installed" in context.attach()


@needs_gdb
@pytest.mark.no_asan  # it would run under it too
def test_what_attach_says_works(context):
    deaths = context.load_module("_deaths")
    command = context.attach().splitlines()[0].split()
    out = subprocess.run([*command, "-q", "-batch", "-ex", "info threads"], capture_output=True, text=True).stdout
    assert "isolation-end" in out, out
    assert deaths.allocate(0) == 0  # it goes on


def test_the_magic_says_how_to_attach(ip, capsys):  # noqa: F811
    run(ip, "%isolate zoo")
    with pytest.raises(UsageError, match="no child process runs yet"):
        run(ip, "%isolate --attach")
    run(ip, "import zoo")
    capsys.readouterr()
    run(ip, "%isolate --attach zoo")
    assert capsys.readouterr().out.startswith(f"gdb -p {named_context('default').remote_pid}\n")


# --- Crashes that stand still --------------------------------------------------------------------------

# One that a frozen copy takes over from, and one that a fresh process follows.
both = pytest.mark.parametrize("rollback", ["auto", "off"])


@both
@pytest.mark.parametrize("name", ["segfault", "abort", "crash_in_thread", "stack_overflow"])
def test_a_crashed_child_stands_still(rollback, name):
    with tooled(hold=True, rollback=rollback) as context:
        deaths = context.load_module("_deaths")
        assert deaths.allocate(0) == 0
        pid = context.remote_pid
        start = time.monotonic()
        error = crash(getattr(deaths, name))
        assert time.monotonic() - start < 30  # nor does the session wait for its end, which does not come
        assert error.pid == pid
        assert f"it is held for a debugger (gdb -p {pid}) until %isolate --release" in str(error)
        assert context.info()["held"] == pid
        assert stands_still(pid)
        # The session goes on, and so do takes-over and restarts by themselves.
        assert deaths.allocate(0) == 0
        assert context.remote_pid != pid
        assert state(pid) in ("T", "t")
        assert context.attach().startswith(f"gdb -p {pid}\n")
        context.release()
        assert wait_until(lambda: is_gone(pid))
        assert wait_until(lambda: context.info()["held"] is None)
        context.release()  # nothing is
        assert deaths.allocate(0) == 0
    assert is_gone(pid)


@needs_gdb
@pytest.mark.no_asan  # it would run under it too
def test_a_debugger_sees_where_it_crashed():
    with tooled(hold=True) as context:
        deaths = context.load_module("_deaths")
        error = crash(deaths.segfault)
        assert stands_still(error.pid)
        command = ["gdb", "-q", "-batch", "-ex", "bt", "-p", str(error.pid)]
        out = subprocess.run(command, capture_output=True, text=True).stdout
        assert "deaths_segfault" in out.partition("<signal handler called>")[2], out
        # Told to go on, it dies of what it was about to die of.
        os.kill(error.pid, signal.SIGCONT)
        assert wait_until(lambda: context.info()["held"] is None)
        assert is_gone(error.pid)


def test_not_unless_asked_for(context):
    deaths = context.load_module("_deaths")
    error = crash(deaths.segfault)
    assert "held" not in str(error) and context.info()["held"] is None
    assert wait_until(lambda: is_gone(error.pid))


def test_asked_for_while_it_runs_and_no_more(context):
    deaths = context.load_module("_deaths")
    deaths.allocate(0)
    context.configure(hold=True)
    pid = crash(deaths.segfault).pid
    assert context.info()["held"] == pid
    context.release()
    assert wait_until(lambda: context.info()["held"] is None)
    assert deaths.allocate(0) == 0
    context.configure(hold=False)
    pid = crash(deaths.segfault).pid
    assert context.info()["held"] is None and wait_until(lambda: is_gone(pid))


@pytest.mark.parametrize("name, args", [("_exit", (3,)), ("kill_self", (signal.SIGKILL,)), ("kill_self", (signal.SIGTERM,))])
def test_an_end_that_is_no_crash_is_not_held(name, args):
    with tooled(hold=True) as context:
        error = crash(getattr(context.load_module("_deaths"), name), *args)
        assert context.info()["held"] is None and "held" not in str(error)


@both
def test_the_first_is_kept(rollback):
    with tooled(hold=True, rollback=rollback) as context:
        deaths = context.load_module("_deaths")
        first = crash(deaths.segfault).pid
        error = crash(deaths.abort)
        assert f"process {first}, of an earlier crash, is held" in str(error)
        assert context.info()["held"] == first
        assert wait_until(lambda: is_gone(error.pid))
        assert stands_still(first)


@both
def test_a_restart_that_is_asked_for_ends_it(rollback):
    with tooled(hold=True, rollback=rollback) as context:
        pid = crash(context.load_module("_deaths").segfault).pid
        context.restart()
        assert wait_until(lambda: is_gone(pid))
        assert wait_until(lambda: context.info()["held"] is None)


def test_a_handler_that_was_there_before():
    """faulthandler prints first."""
    with tooled(hold=True) as context:
        deaths = context.load_module("_deaths")
        context.call(exec, "import faulthandler; faulthandler.enable()", {})
        pid = crash(deaths.segfault).pid
        assert context.info()["held"] == pid
        assert stands_still(pid)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_it_ends_with_the_session(how):
    with Session(
        """
        context.configure(hold=True)
        try:
            deaths.segfault()
        except ii.ProcessTerminationError as error:
            say("held", error.pid, context.info()["held"])
        say("supervisor", context._peer.supervisor_pid)
        time.sleep(600)
        """
    ) as session:
        pid, held = map(int, session.expect("held"))
        (supervisor,) = map(int, session.expect("supervisor"))
        assert pid == held and stands_still(pid)
        if how == "kill":
            session.process.kill()
        else:
            session.process.terminate()
        assert wait_until(lambda: is_gone(pid) and is_gone(supervisor))


def test_it_ends_with_its_supervisor():
    with tooled(hold=True) as context:
        pid = crash(context.load_module("_deaths").segfault).pid
        os.kill(context._peer.supervisor_pid, signal.SIGKILL)
        assert wait_until(lambda: is_gone(pid))
        assert wait_until(lambda: context.info()["held"] is None)
        assert context.load_module("zlib").crc32(b"") == 0


def test_the_magic_holds_and_releases(ip, capsys):  # noqa: F811
    run(ip, "%isolate --hold _deaths\nimport _deaths")
    with pytest.raises(ProcessTerminationError, match="%isolate --release") as caught:
        run(ip, "_deaths.segfault()")
    pid = caught.value.pid
    capsys.readouterr()
    run(ip, "%isolate --attach")
    assert capsys.readouterr().out.startswith(f"gdb -p {pid}\nIt is stopped at its fatal signal")
    run(ip, "%isolate --release")
    assert wait_until(lambda: is_gone(pid))
    run(ip, "%isolate --hold off")
    assert named_context("default").info()["hold"] is False


# --- A spare -------------------------------------------------------------------------------------------


def spares(context):
    """Processes that wait below the supervisor, besides the child and what is held."""
    others = (context.remote_pid, context.info()["held"])
    return [pid for pid in children(context._peer.supervisor_pid) if pid not in others and not is_gone(pid)]


def ready_spare(context):
    """The spare, once it waits for a life."""

    def ready():
        pids = spares(context)
        return pids[0] if len(pids) == 1 and waits(pids[0]) else None

    assert (pid := wait_until(ready)), children(context._peer.supervisor_pid)
    return pid


def waits(pid):
    """The core is loaded, and it sleeps in recvmsg()."""
    try:
        with open(f"/proc/{pid}/wchan") as file:
            where = file.read()
        with open(f"/proc/{pid}/maps") as file:
            return "_core." in file.read() and state(pid) == "S" and where != "futex_wait_queue"
    except OSError:
        return False


def test_a_restart_takes_the_spare(tmp_path, monkeypatch):
    with tooled(spare=True, rollback="off") as context:
        deaths = context.load_module("_deaths")
        for _ in range(3):
            pid = ready_spare(context)
            lost = context.call(exec, "x = 1", {})
            assert lost is None
            crash(deaths.segfault)
            # What the session has changed meanwhile.
            monkeypatch.setenv("AFTER_THE_SPARE", str(pid))
            monkeypatch.chdir(tmp_path)
            monkeypatch.syspath_prepend(f"/nowhere/{pid}")
            assert deaths.allocate(0) == 0
            assert context.remote_pid == pid
            assert context.call(os.getenv, "AFTER_THE_SPARE") == str(pid)
            assert context.call(os.getcwd) == str(tmp_path)
            assert context.call(eval, "__import__('sys').path[0]") == f"/nowhere/{pid}"
        assert context.info()["crashes"] == 3


def test_its_output_and_its_interrupts_are_those_of_any_child(capfd):
    with tooled(spare=True, rollback="off") as context:
        context.load_module("zlib")
        pid = ready_spare(context)
        context.restart()
        assert context.remote_pid == pid
        context.call(print, "from the spare")
        context.call(os.system, "echo to stderr >&2")
        context.timeout = 0.3
        with pytest.raises(ProcessTerminationError, match="lives on"):
            context.call(time.sleep, 60)
    out, err = capfd.readouterr()
    assert out == "from the spare\n" and "to stderr" in err


def test_set_up_calls_and_init_are_made_in_it_too():
    masks = []
    context = tooled(spare=True, rollback="off", init=lambda: masks.append(context.call(os.umask, 0o22)))
    context.call(os.umask, 0o27)
    context.load_module("zlib")
    pid = ready_spare(context)
    context.restart()
    assert context.remote_pid == pid
    assert masks[-1] == 0o27
    assert context.call(os.umask, 0o22) == 0o22


@pytest.mark.parametrize(
    "option, value",
    [
        ("nice", 3),
        ("env", {"A": "1"}),
        pytest.param("memory", "512M", marks=pytest.mark.no_asan),
        ("wrapper", ["env"]),
    ],
)
def test_one_that_was_started_otherwise_is_not_taken(option, value):
    with tooled(spare=True, rollback="off") as context:
        context.load_module("zlib")
        pid = ready_spare(context)
        context.configure(**{option: value})
        context.restart()
        assert context.remote_pid != pid
        assert wait_until(lambda: is_gone(pid))
        pid = ready_spare(context)
        context.restart()
        assert context.remote_pid == pid


def test_a_spare_that_has_died_is_not_missed():
    with tooled(spare=True, rollback="off") as context:
        zlib = context.load_module("zlib")
        pid = ready_spare(context)
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: is_gone(pid))
        context.restart()
        assert zlib.crc32(b"") == 0
        ready_spare(context)


def test_a_spare_beside_a_frozen_copy():
    """The copy takes over, and the spare goes on waiting; a restart takes the spare."""
    with tooled(spare=True, rollback="auto") as context:
        deaths, collections = context.load_module("_deaths"), context.load_module("collections")
        kept = collections.OrderedDict(a=1)
        context.checkpoint()
        frozen = wait_until(lambda: context._peer.frozen_pid)
        assert wait_until(lambda: len([pid for pid in spares(context) if pid != frozen]) == 1)
        (pid,) = [pid for pid in spares(context) if pid != frozen]
        assert wait_until(lambda: waits(pid))
        crash(deaths.segfault)
        assert kept["a"] == 1
        assert not is_gone(pid)
        context.restart()
        assert context.remote_pid == pid
        with pytest.raises(ClientStateError):
            kept["a"]


def test_no_more_spare():
    with tooled(spare=True, rollback="off") as context:
        context.load_module("zlib")
        pid = ready_spare(context)
        context.configure(spare=False)
        assert wait_until(lambda: is_gone(pid))
        context.restart()
        assert wait_until(lambda: spares(context) == [])  # the last child may be about to end
    context = tooled(spare=True)
    assert context.info()["state"] == "new" and context._peer.pid is None


def test_a_fork_of_the_session_has_none_of_it():
    """It neither changes nor ends anything, and uses no descriptor of these; the session's goes on."""
    with tooled(spare=True, autoreload=True, hold=True, rollback="off") as context:
        deaths = context.load_module("_deaths")
        held = crash(deaths.segfault).pid
        assert deaths.allocate(0) == 0
        spare = ready_spare(context)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                context.release()
                for refused in (lambda: context.configure(spare=False), context.reload, context.attach):
                    try:
                        refused()
                    except ClientStateError:
                        code += 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        assert stands_still(held) and not is_gone(spare)
        assert deaths.allocate(0) == 0


def test_a_closed_context_cannot_be_changed():
    context = tooled()
    context.close()
    for use in (lambda: context.configure(autoreload=True), context.reload, context.attach):
        with pytest.raises(ClientStateError):
            use()
    context.release()


@pytest.mark.no_asan
def test_a_spare_with_everything_else(tmp_path):
    """Held, limited, reloaded."""
    with tooled(spare=True, hold=True, timeout=30, memory="1G", autoreload=True) as context:
        deaths = context.load_module("_deaths")
        pid = crash(deaths.segfault).pid
        assert deaths.allocate(0) == 0
        assert stands_still(pid)
        context.reload()
        assert deaths.allocate(0) == 0
        assert state(pid) in ("T", "t")
    assert wait_until(lambda: is_gone(pid))
