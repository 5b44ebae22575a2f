"""What a child may use: time, memory, processor time; the error says which limit it was."""

import copy
import os
import pickle
import resource
import signal
import subprocess
import sys
import sysconfig
import threading
import time

import pytest
from conftest import wait_until
from IPython.core.error import UsageError
from test_interrupt import Session
from test_magics import ip, run, shell  # noqa: F401: fixtures
from traitlets import TraitError

from ipython_isolation import ClientStateError, IsolationContext, ProcessTerminationError, ProcessTimeoutError, limits
from ipython_isolation.context import contexts, named_context

GREEDY = r"""
#include <Python.h>
#include <string.h>
/* As careless code does it: the result of malloc is not looked at. */
static PyObject *take(PyObject *self, PyObject *megabytes)
{
    size_t size = (size_t)PyLong_AsLong(megabytes) << 20;
    memset(malloc(size), 1, size);
    Py_RETURN_NONE;
}
/* Until nothing is left, in small pieces. */
static PyObject *take_all(PyObject *self, PyObject *none)
{
    for (;;)
        memset(malloc(100000), 1, 100000);
}
static PyObject *crash(PyObject *self, PyObject *none)
{
    *(volatile int *)0 = 0;
    Py_RETURN_NONE;
}
static PyMethodDef methods[] = {
    {"take", take, METH_O}, {"take_all", take_all, METH_NOARGS}, {"crash", crash, METH_NOARGS}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "greedy", NULL, 0, methods};
PyMODINIT_FUNC PyInit_greedy(void) { return PyModuleDef_Init(&module); }
"""

# The sanitizer reserves more memory than any limit here.
no_asan = pytest.mark.no_asan


@pytest.fixture(scope="module")
def greedy_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("greedy")
    (directory / "greedy.c").write_text(GREEDY)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O0", "-w", "greedy.c", f"-I{sysconfig.get_path('include')}",
         "-o", f"greedy{sysconfig.get_config_var('EXT_SUFFIX')}"],
        check=True, cwd=directory,
    )  # fmt: skip
    return directory


def limited(**options):
    return IsolationContext(**{"restart": "auto", "name": "limited", **options})


def caught(call, *args):
    """What the call raises, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(ProcessTerminationError) as error:
        call(*args)
    return error.value, time.monotonic() - start


# --- Time ----------------------------------------------------------------------------------------------


def test_there_is_no_limit_unless_asked_for(context):
    info = context.info()
    assert context.timeout is None
    assert [info[option] for option in ("timeout", "memory", "cpu", "nice", "wrapper", "env")] == [None] * 4 + [(), {}]
    context.ensure_started()
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_CPU):
        assert resource.prlimit(context.remote_pid, kind) == resource.getrlimit(kind)
    assert os.getpriority(os.PRIO_PROCESS, context.remote_pid) == os.getpriority(os.PRIO_PROCESS, 0)


# Tiny limits are set when everything is loaded and looked up: those are requests too, and take what they take.

#: A call and its arguments.
CALLS = {
    "time.sleep": lambda context: (context.load_module("time").sleep, 60),
    "a loop in Python": lambda context: (context.call, exec, "while True: pass", {}),
    "a C call that checks": lambda context: (context.load_module("_deaths").busy_checking_signals, 60.0),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_can_be_interrupted_leaves_the_child_alive(call):
    with limited() as context:
        kept = context.load_module("collections").OrderedDict(a=1)
        pid = context.remote_pid
        call = CALLS[call](context)
        context.timeout = 0.3
        for _ in range(2):
            error, took = caught(*call)
            assert type(error) is ProcessTimeoutError
            assert 0.3 <= took < 30
            assert (error.survived, error.timeout, error.limit, error.pid) == (True, 0.3, "timeout", pid)
            assert isinstance(error.__cause__, KeyboardInterrupt)
            assert "took longer than timeout=0.3 s and was interrupted" in str(error) and "lives on" in str(error)
        context.timeout = None
        assert context.remote_pid == pid
        assert kept["a"] == 1
        assert context.info()["crashes"] == 0


@pytest.mark.parametrize("name", ["hold_gil", "sleep_in_c_without_gil"])
def test_a_call_that_cannot_is_killed(name):
    with limited() as context:
        deaths = context.load_module("_deaths")
        pid = context.remote_pid
        call = getattr(deaths, name)
        context.timeout = 0.2
        error, took = caught(call, 60.0)
        context.timeout = None
        assert type(error) is ProcessTimeoutError
        assert 1.2 <= took < 30
        assert (error.survived, error.timeout, error.limit, error.pid) == (False, 0.2, "timeout", pid)
        assert error.signal is signal.SIGKILL
        assert "longer than timeout=0.2 s and did not stop" in str(error) and name in str(error)
        assert context.info()["crashes"] == 1
        assert deaths.allocate(0) == 0


def test_without_restarts_the_reason_is_said_again():
    with limited(restart="never") as context:
        sleep = context.load_module("_deaths").sleep_in_c_without_gil
        context.timeout = 0.2
        caught(sleep, 60.0)
        with pytest.raises(ClientStateError, match="has died .*took longer than timeout=0.2 s.*call restart"):
            sleep(0.0)


def tells_and_sleeps(tell, seconds=60.0):
    """Runs in the child; once it tells, the call that it is part of is under way, with the limit of then."""
    import _deaths

    tell()
    _deaths.sleep_in_c_without_gil(seconds)


def test_a_limit_that_is_changed_meanwhile_holds_for_later_calls():
    with limited() as context:
        context.load_module("_deaths")
        context.call(tells_and_sleeps, list, 0.0)
        context.timeout = 0.5

        def change():
            context.timeout = None

        error, _ = caught(context.call, tells_and_sleeps, change)
        assert context.timeout is None
        assert type(error) is ProcessTimeoutError and error.timeout == 0.5
        assert "longer than timeout=0.5 s and did not stop" in str(error)


def test_the_name_of_the_call():
    """That of the user's, not of what carries it."""

    def waits_too_long(seconds):
        import time

        time.sleep(seconds)

    with limited() as context:
        context.load_module("zlib")
        context.timeout = 0.2
        error, _ = caught(context.call, waits_too_long, 60)
        assert error.operation.endswith(".waits_too_long") and f"{error.operation} took longer" in str(error)
        assert error.arguments == ("60",)
        error, _ = caught(context.call, time.sleep, 60)
        assert error.operation == "time.sleep" and error.survived
        assert "lives on" in error.report()


def test_what_ends_after_its_time_has_taken_too_long():
    """In the second that it is given to stop; it does not notice the interrupt."""
    with limited() as context:
        deaths = context.load_module("_deaths")
        sleep = deaths.sleep_in_c_without_gil
        context.timeout = 0.2
        error, took = caught(sleep, 0.3)
        context.timeout = None
        assert type(error) is ProcessTimeoutError and error.survived and error.__cause__ is None
        assert took >= 0.3
        # The interrupt does not come out elsewhere.
        for _ in range(5):
            assert deaths.allocate(0) == 0


def test_short_calls_are_left_alone():
    """Only their sum is more than the limit; by far, as a machine that is busy makes each longer."""
    with limited() as context:
        sleep = context.load_module("time").sleep
        context.timeout = 1.5
        end = time.monotonic() + 2
        while time.monotonic() < end:
            sleep(0.01)
        sleep(0.2)


def test_the_outermost_call_is_measured():
    """However short the calls are that it makes back and forth."""
    with limited() as context:
        sleep, reduce = context.load_module("time").sleep, context.load_module("functools").reduce

        def again(total, item):
            sleep(0.05)
            return total + 1

        context.timeout = 2.5
        assert reduce(again, range(3), 0) == 3
        error, took = caught(reduce, again, range(1000), 0)
        assert type(error) is ProcessTimeoutError
        assert took < 30  # never the 50 s of all those calls
        sleep(0.3)


def test_a_callback_that_swallows_it_does_not_keep_the_call_alive():
    with limited() as context:
        sleep, reduce = context.load_module("time").sleep, context.load_module("functools").reduce
        swallowed = []

        def again(total, item):
            try:
                sleep(60)
            except ProcessTimeoutError as error:
                swallowed.append(error)

        context.timeout = 0.3
        error, took = caught(reduce, again, range(1000), 0)
        assert type(error) is ProcessTimeoutError
        assert took < 30  # 0.3, a second to stop, and what a busy machine adds; never the minute of each call
        assert swallowed


def test_an_import_is_a_call(tmp_path):
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(60)\n")
    with limited() as context:
        context.load_module("zlib")
        context.timeout = 0.3
        error, took = caught(context.load_module, "slow_import", str(tmp_path))
        assert type(error) is ProcessTimeoutError and error.survived
        assert "the import of slow_import" in str(error)
        assert took < 30


def test_setting_up_takes_the_time_it_takes():
    context = limited(timeout=1, init=lambda: context.call(time.sleep, 1.5))
    context.start()
    context.timeout = None
    assert context.load_module("zlib").crc32(b"") == 0


def test_the_limit_can_be_changed_at_any_time(context):
    clock = context.load_module("time")

    def sleep():
        clock.sleep(60)

    context.timeout = 0.2
    assert type(caught(sleep)[0]) is ProcessTimeoutError
    context.timeout = None
    clock.sleep(0.4)
    assert context.configure(timeout="0.1") == []
    assert type(caught(sleep)[0]) is ProcessTimeoutError
    context.restart()
    assert type(caught(sleep)[0]) is ProcessTimeoutError


def test_the_calls_of_other_threads_are_told():
    """A process has one end: what another thread was doing there ends too, and the error says why."""
    with limited(timeout=60) as context:
        sleep = context.load_module("_deaths").sleep_in_c_without_gil  # looking it up is a request too
        seen, asleep = [], threading.Event()
        thread = threading.Thread(
            target=lambda: seen.append(caught(context.call, tells_and_sleeps, asleep.set)[0])
        )  # fmt: skip
        thread.start()
        assert asleep.wait(30)
        context.timeout = 0.3
        error, _ = caught(sleep, 60.0)
        thread.join(10)
        assert type(error) is ProcessTimeoutError
        (other,) = seen
        assert type(other) is ProcessTerminationError
        assert other.limit == "timeout" and "another call took longer" in str(other)


def test_a_call_of_another_thread_is_limited():
    with limited() as context:
        sleep = context.load_module("time").sleep
        context.timeout = 0.3
        seen = []
        thread = threading.Thread(target=lambda: seen.append(caught(sleep, 60)))
        thread.start()
        thread.join(30)
        ((error, _),) = seen
        assert type(error) is ProcessTimeoutError


def test_the_error_is_a_value():
    with limited() as context:
        call = CALLS["time.sleep"](context)
        context.timeout = 0.1
        error, _ = caught(*call)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is ProcessTimeoutError and str(other) == str(error)
        assert (other.timeout, other.survived, other.limit) == (0.1, True, "timeout")
    assert issubclass(ProcessTimeoutError, ProcessTerminationError)


def test_the_user_may_interrupt_what_is_limited():
    """In the time that a call has, and in the time that it is given to stop."""
    with Session(
        """
        sleep = clock.sleep
        context.timeout = 0.5
        attempt(sleep, 60)
        context.timeout = 30
        attempt(sleep, 60)
        context.timeout = None
        # Another thread of the child says when the time is over and the child is told to stop, which it does not.
        code = '''
        import os, signal, threading
        waits, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told)
        def say_it():
            os.read(waits, 1)
            print("told", flush=True)
        threading.Thread(target=say_it, daemon=True).start()
        '''
        context.call(exec, textwrap.dedent(code), {})
        context.timeout = 2
        attempt(context.call, exec, deaf("_deaths.sleep_in_c_without_gil(60.0)"), {})
        say("state", context.info()["crashes"])
        context.close()
        """
    ) as session:
        session.expect("ready")
        session.expect("done", "ProcessTimeoutError")
        session.expect("ready")
        time.sleep(0.3)
        session.interrupt()
        (took,) = session.expect("done", "KeyboardInterrupt")
        assert float(took) < 30
        session.expect("ready")
        session.expect("inside")
        session.expect("told")
        session.interrupt()
        (took,) = session.expect("done", "KeyboardInterrupt")
        assert float(took) < 30
        session.expect("state", 1)


# --- Memory --------------------------------------------------------------------------------------------


@pytest.mark.no_asan
def test_the_limit_of_memory_is_that_of_the_process(greedy_directory):
    with limited(memory="300M") as context:
        greedy = context.load_module("greedy", str(greedy_directory))
        for _ in range(2):
            greedy.take(50)
            assert resource.prlimit(context.remote_pid, resource.RLIMIT_DATA) == (300 << 20, 300 << 20)
            with pytest.raises(MemoryError):
                context.call(bytearray, 400 << 20)
            with pytest.raises(ProcessTerminationError):
                greedy.crash()  # whatever takes over has the same limit


@pytest.mark.no_asan
@pytest.mark.parametrize("call, args", [("take", (400,)), ("take_all", ())])
def test_a_crash_at_the_limit_says_so(greedy_directory, call, args):
    with limited(memory="300M") as context:
        greedy = context.load_module("greedy", str(greedy_directory))
        error, _ = caught(getattr(greedy, call), *args)
        assert error.signal is signal.SIGSEGV
        assert error.limit == "memory"
        assert "memory limit of 300 MB (memory=)" in str(error)


@pytest.mark.no_asan
def test_a_crash_without_it_does_not(greedy_directory):
    with limited(memory="300M") as context:
        greedy = context.load_module("greedy", str(greedy_directory))
        error, _ = caught(greedy.crash)
        assert error.limit is None and "memory=" not in str(error)
        # Nor where an allocation had failed in an earlier call.
        with pytest.raises(MemoryError):
            context.call(bytearray, 400 << 20)
        error, _ = caught(greedy.crash)
        assert error.limit is None and "memory=" not in str(error)
    with limited() as context:
        greedy = context.load_module("greedy", str(greedy_directory))
        error, _ = caught(greedy.crash)
        assert error.limit is None


@pytest.mark.no_asan
def test_numpy_and_its_threads_fit():
    pytest.importorskip("numpy")
    with limited(memory="1G") as context:
        numpy = context.load_module("numpy")
        ones = numpy.ones((1000, 1000))
        assert float((ones @ ones).sum()) == 1e9
        with pytest.raises(MemoryError):
            numpy.ones(200_000_000)
        assert float(ones.sum()) == 1e6


# --- Processor time ------------------------------------------------------------------------------------


def test_processor_time():
    with limited(cpu=1) as context:
        context.load_module("zlib")
        error, took = caught(context.call, exec, "while True: pass", {})
        assert error.signal is signal.SIGXCPU
        assert error.limit == "cpu"
        assert "the CPU limit of 1 s (cpu=) is used up" in str(error)
        # The next process has as much again.
        context.restart()
        assert resource.prlimit(context.remote_pid, resource.RLIMIT_CPU) == (1, 2)
        assert context.call(len, "abc") == 3


def test_processor_time_of_one_that_ignores_the_signal():
    with limited(cpu=1, rollback="off") as context:
        code = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
        error, _ = caught(context.call, exec, code, {})
        assert error.signal is signal.SIGKILL
        assert error.limit == "cpu" and "the CPU limit of 1 s" in str(error)


def test_a_kill_within_the_limit_is_somebody_elses():
    with limited(cpu=30) as context:
        context.load_module("zlib")
        error, _ = caught(context.call, os.kill, context.remote_pid, signal.SIGKILL)
        assert error.limit is None and "CPU" not in str(error)


def test_the_time_of_sub_processes_is_not_the_childs():
    """The system adds it to the usage that it tells of a process, and not to what it limits."""
    with limited(cpu=1) as context:
        context.load_module("zlib")
        burn = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.7: pass"]
        for _ in range(2):
            assert context.call(subprocess.run, burn).returncode == 0
        error, _ = caught(context.call, os.kill, context.remote_pid, signal.SIGKILL)
        assert error.signal is signal.SIGKILL
        assert error.limit is None and "CPU" not in str(error)


def test_a_signal_that_somebody_sent_is_no_limit():
    with limited(cpu=30) as context:
        context.load_module("zlib")
        error, _ = caught(context.call, os.kill, context.remote_pid, signal.SIGXCPU)
        assert error.signal is signal.SIGXCPU
        assert error.limit is None and "(cpu=)" not in str(error)


@no_asan
def test_the_limit_that_is_named_is_that_of_the_process():
    """Not one that holds from the next on."""
    with limited(cpu=1, memory="256M") as context:
        context.load_module("zlib")
        assert context.configure(cpu=60, memory="1G") == ["cpu", "memory"]
        error, _ = caught(context.call, exec, "while True: pass", {})
        assert error.limit == "cpu" and "the CPU limit of 1 s (cpu=) is used up" in str(error)
        context.configure(cpu=None, memory=None)
        context.restart()
        context.load_module("_deaths")
        context.configure(memory="256M")
        error, _ = caught(context.load_module("_deaths").segfault)
        assert error.limit is None and "memory" not in str(error)


def test_sleeping_uses_no_processor_time():
    with limited(cpu=1) as context:
        context.load_module("time").sleep(1.5)


def test_nice():
    with limited(nice=7) as context:
        context.load_module("zlib")
        before = os.getpriority(os.PRIO_PROCESS, 0)
        assert context.call(os.nice, 0) == min(before + 7, 19)
        assert os.getpriority(os.PRIO_PROCESS, 0) == before


# --- Options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, number",
    [(1 << 30, 1 << 30), ("2G", 2 << 30), ("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("200000K", 200000 << 10),
     ("300 mb", 300 << 20), ("268435456", 1 << 28), (None, None), ("none", None)],
)  # fmt: skip
def test_sizes(text, number):
    assert limits.size(text) == number


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"timeout": 0}, ValueError, "timeout must be a positive number of seconds or None, not 0"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"timeout": float("nan")}, ValueError, "timeout must be"),
        ({"timeout": float("inf")}, ValueError, "timeout must be"),
        ({"timeout": "soon"}, ValueError, "timeout must be"),
        ({"timeout": True}, TypeError, "timeout must be"),
        ({"timeout": [1]}, TypeError, "timeout must be"),
        ({"memory": "2X"}, ValueError, 'such as "512M" or "2G"'),
        ({"memory": "1M"}, ValueError, "at least 128 MB, which the interpreter needs"),
        ({"memory": 0}, ValueError, "at least 128 MB"),
        ({"memory": 1.5}, TypeError, "memory must be"),
        ({"cpu": -3}, ValueError, "cpu must be"),
        ({"nice": 100}, ValueError, "nice must lie between"),
        ({"nice": "much"}, ValueError, "nice must be a whole number"),
        ({"nice": 1.5}, TypeError, "nice must be a whole number"),
        ({"env": "LD_PRELOAD"}, ValueError, "env needs NAME=VALUE"),
        ({"env": ["=x"]}, ValueError, "env needs NAME=VALUE"),
        ({"env": {"A": 1}}, TypeError, "env needs names and texts"),
        ({"env": {"A=B": "1"}}, ValueError, "no environment has"),
        ({"wrapper": "no-such-tool -q"}, ValueError, "no program 'no-such-tool' is found"),
        ({"wrapper": [1]}, TypeError, "wrapper must be a command"),
    ],
)
def test_options_that_make_no_sense(options, error, text):
    before = len(contexts())
    with pytest.raises(error) as raised:
        IsolationContext(**options)
    assert text in str(raised.value)
    assert len(contexts()) == before
    with IsolationContext() as context:
        with pytest.raises(error):
            context.configure(**options)
        assert context.info()["timeout"] is None


@no_asan
def test_the_least_memory_is_enough():
    with limited(memory=limits.LEAST_MEMORY) as context:
        assert len(context.load_module("zlib").compress(b"a" * 1000)) < 100


@no_asan
def test_what_holds_later_is_said():
    context = limited()
    assert context.configure(memory="1G", nice=3, timeout=5) == []  # nothing runs yet
    context.load_module("zlib")
    assert context.configure(memory="1G", nice=4, timeout=6, hold=True) == ["nice"]
    assert context.call(os.nice, 0) == 3
    context.restart()
    assert context.call(os.nice, 0) == 4
    with pytest.raises(TypeError, match="arrays: no option that can be changed"):
        context.configure(arrays="copy")


def test_options_of_a_named_context():
    first = named_context("n", memory="1G", timeout=5)
    assert named_context("n", memory=1 << 30, timeout=5.0) is first
    with pytest.raises(ValueError, match="exists with timeout=5.0"):
        named_context("n", timeout=6)


# --- %isolate ------------------------------------------------------------------------------------------


@no_asan
def test_the_magic_takes_limits(ip):  # noqa: F811
    run(ip, "%isolate zoo --timeout 9.5 --memory 512M --cpu 60 --nice 3 --env A=1 --env 'B=2 3'")
    info = named_context("default").info()
    assert (info["timeout"], info["memory"], info["cpu"], info["nice"]) == (9.5, 512 << 20, 60, 3)
    assert info["env"] == {"A": "1", "B": "2 3"}
    run(ip, "%isolate _deaths --context other\nimport zoo, _deaths")
    assert named_context("other").info()["timeout"] is None
    run(ip, "%isolate --timeout 0.2")
    assert named_context("other").timeout == named_context("default").timeout == 0.2
    with pytest.raises(ProcessTimeoutError):
        run(ip, "_deaths.busy_checking_signals(60.0)")
    run(ip, "%isolate --timeout none --context other")
    assert (named_context("other").timeout, named_context("default").timeout) == (None, 0.2)
    run(ip, "%isolate --timeout 7 zoo")
    assert named_context("default").timeout == 7


def test_the_magic_says_what_holds_later(ip, capsys):  # noqa: F811
    run(ip, "%isolate zoo\nimport zoo")
    run(ip, "%isolate --nice 4 --timeout 9")
    said = capsys.readouterr().err
    assert said == "%isolate: --nice: from the next process of context default on; %isolate --restart begins it\n"
    run(ip, "%isolate --restart")
    assert named_context("default").call(os.nice, 0) == os.getpriority(os.PRIO_PROCESS, 0) + 4


@pytest.mark.parametrize(
    "line, text",
    [
        ("--timeout soon zoo", "--timeout: timeout must be a positive number"),
        ("--memory 2X", '--memory: memory must be a number of bytes, or such as "512M"'),
        ("--wrapper no-such-tool zoo", "--wrapper: wrapper: no program 'no-such-tool'"),
        ("--timeout 5 --restart", "run them one after the other"),
        ("--timeout 5 --context nowhere", "there is no context 'nowhere' yet"),
    ],
)
def test_the_magic_refuses(ip, line, text):  # noqa: F811
    with pytest.raises(UsageError) as raised:
        run(ip, f"%isolate {line}")
    assert text in str(raised.value)
    assert contexts() == []


def test_limits_in_a_profile(shell):  # noqa: F811
    shell.config.Isolate.modules = ["zoo"]
    shell.config.Isolate.timeout = 5
    shell.config.Isolate.memory = "1G"
    shell.config.Isolate.hold = True
    shell.run_line_magic("load_ext", "ipython_isolation")
    info = named_context("default").info()
    assert (info["timeout"], info["memory"], info["hold"], info["cpu"]) == (5.0, 1 << 30, True, None)
    shell.run_line_magic("config", "Isolate.timeout = 6")
    shell.run_line_magic("isolate", "_deaths --context later")
    assert named_context("later").timeout == 6
    magics = shell.magics_manager.registry["Isolate"]
    with pytest.raises(TraitError, match="Isolate.memory: memory must be"):
        magics.memory = "much"
