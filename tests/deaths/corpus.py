"""Deaths: each a function that kills the process it runs in, and what the session must say about it.

This file is loaded twice: in the session, for the table `DEATHS`, and in the child, where the functions run. Those
marked ``session=True`` run in the session instead and are given the context and the child's copy of this module.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

DEATHS = {}


@dataclass
class Death:
    """One row.

    Attributes
    ----------
    verdict : str
        `ProcessTerminationError.verdict`.
    signal : str or None
        Name of the signal.
    exit_code : int or None
    text : str
        A regular expression for something in the error's text.
    frame : str
        A function that is among those of the native stack that are shown.
    python : str
        A function in the Python stack.
    session : bool
        Runs in the session.
    needs : callable
        Says (str) what is missing here for this row, or None.
    environ : dict
        Set while the child is started.
    imports : str
        Modules, besides those of C code, that are loaded before the clock starts.
    prepare : callable
        Called with the context before anything is loaded.
    cleanup : callable
        Called when the context is closed.
    libzmq_aborts : bool
        Where all goes over ZeroMQ, a thread of libzmq may see first what is wrong, and abort its process.
    either : bool
        The exit status is that of a race, and not looked at.
    late : bool
        The call goes on for a while before it comes to that: the time is measured from its end.
    """

    name: str
    what: str
    run: object
    verdict: str
    signal: str = None
    exit_code: int = None
    text: str = ""
    frame: str = ""
    python: str = ""
    session: bool = False
    needs: object = None
    libzmq_aborts: bool = False
    environ: object = dict
    imports: str = ""
    prepare: object = None
    cleanup: object = None
    either: bool = False
    late: bool = False


def death(verdict, signal=None, **expected):
    def register(function):
        what = " ".join(function.__doc__.split())
        DEATHS[function.__name__] = Death(function.__name__, what, function, verdict, signal, **expected)
        return function

    return register


def load(names):
    import importlib

    for name in names.split():
        importlib.import_module(name)


def _native(name, *args):
    import _deaths

    getattr(_deaths, name)(*args)


def _crash(name):
    import _crashes

    getattr(_crashes, name)()


# -- memory faults ---------------------------------------------------------------------------------------------


@death("segfault", "SIGSEGV", text="NULL dereference at 0x0", frame="deaths_segfault", python="null_pointer")
def null_pointer():
    """C code writes through a NULL pointer."""
    _native("segfault")


@death("segfault", "SIGSEGV", text="NULL dereference at 0x28", frame="touch")
def field_of_null():
    """C code writes a field of a structure that is not there."""
    _native("segfault", 0x28)


@death("segfault", "SIGSEGV", text="at address 0xdead0000", frame="touch")
def wild_pointer():
    """C code writes through a pointer that leads nowhere."""
    _native("segfault", 0xDEAD0000)


@death("segfault", "SIGSEGV", text="does not tell", frame="noncanonical")
def garbled_pointer():
    """A pointer that is no address at all: the processor does not say which."""
    _crash("noncanonical")


@death("segfault", "SIGSEGV", text="at 0x0", frame="call_null")
def null_function():
    """A call of a function pointer that is NULL."""
    _crash("call_null")


@death("segfault", "SIGSEGV", text="at address 0x", frame="call_data")
def data_as_code():
    """A call of memory that is not executable."""
    _crash("call_data")


@death("segfault", "SIGSEGV", text="at address 0x", frame="write_to_constant")
def constant():
    """A write to a constant."""
    _crash("write_to_constant")


@death("segfault", "SIGSEGV", text="NULL dereference", frame="memcpy_to_null")
def in_libc():
    """memcpy() to NULL: the fault is in the C library."""
    _crash("memcpy_to_null")


@death("bus-error", "SIGBUS", text="at address 0x", frame="deaths_bus")
def end_of_mapped_file():
    """A page of a mapped file that the file does not have."""
    _native("bus")


@death("segfault", "SIGSEGV", text="at address 0x", python="strided", imports="numpy")
def strided():
    """NumPy's as_strided out of bounds."""
    import numpy

    small = numpy.zeros(10, "u1")
    far = numpy.lib.stride_tricks.as_strided(small, shape=(1 << 20,), strides=(1 << 20,))
    far[1 << 19] = 1


@death("segfault", "SIGSEGV", text="NULL dereference", python="ctypes_string", imports="ctypes")
def ctypes_string():
    """ctypes.string_at(NULL)."""
    import ctypes

    ctypes.string_at(0)


@death("segfault", "SIGSEGV", text="at address 0x", frame="memset", imports="ctypes")
def ctypes_memset():
    """ctypes.memset() past the end of a buffer."""
    import ctypes

    buffer = ctypes.create_string_buffer(16)
    ctypes.memset(buffer, 0, 1 << 40)


# -- other faults and aborts ---------------------------------------------------------------------------------------


@death("arithmetic-error", "SIGFPE", text="integer division by zero", frame="divide")
def division():
    """An integer division by zero in C."""
    _crash("divide")


@death("arithmetic-error", "SIGFPE", text="raised by the process itself", frame="deaths_fpe")
def raised():
    """raise(SIGFPE)."""
    _native("fpe")


@death("illegal-instruction", "SIGILL", frame="deaths_ill")
def illegal_instruction():
    """An instruction that does not exist."""
    _native("ill")


@death("trap", "SIGTRAP", frame="trap")
def breakpoint_instruction():
    """A break-point without a debugger."""
    _crash("trap")


@death("abort", "SIGABRT", frame="deaths_abort")
def c_abort():
    """abort() in C."""
    _native("abort")


@death("abort", "SIGABRT", python="python_abort")
def python_abort():
    """os.abort()."""
    os.abort()


@death("assertion", "SIGABRT", text=r"Assertion .*an image has rows.* failed", frame="assertion")
def assertion():
    """assert() in C."""
    _crash("assertion")


@death("python-fatal-error", "SIGABRT", text="fatal Python error: .*invariant", python="fatal_error")
def fatal_error():
    """Py_FatalError(): the interpreter itself gives up."""
    import ctypes

    ctypes.pythonapi.Py_FatalError(b"an invariant does not hold")


@death("segfault", "SIGSEGV", python="crasher")
def crasher():
    """CPython's Lib/test/crashers/bogus_code_obj.py: byte code that makes no sense."""
    code = crasher.__code__
    exec(code.replace(co_code=b"\x04\x00\x71\x00" * 4, co_consts=(), co_names=(), co_varnames=(), co_nlocals=0, co_freevars=()))


# -- the heap ------------------------------------------------------------------------------------------------------


@death("heap-corruption", "SIGABRT", text=r"free\(\): double free|double free or corruption", frame="deaths_double_free")
def double_free():
    """free() twice."""
    _native("double_free")


@death("heap-corruption", "SIGABRT", text=r"free\(\): invalid|double free or corruption", frame="free_invalid")
def free_invalid():
    """free() of something inside a block."""
    _crash("free_invalid")


@death("heap-corruption", "SIGABRT", text=r"free\(\): invalid|corruption", frame="heap_overflow")
def heap_overflow():
    """A write past the end of a block: free() of the next one finds the heap corrupt."""
    _crash("heap_overflow")


@death("segfault", "SIGSEGV", text="NULL dereference", frame="corrupt_then_segfault")
def after_corruption():
    """A segmentation fault after the heap has been overwritten: nothing may allocate any more."""
    _crash("corrupt_then_segfault")


@death("segfault", "SIGSEGV", text="NULL dereference", frame="die_while_writing")
def holding_mallocs_lock():
    """A segmentation fault while the thread holds the lock of malloc()."""
    _crash("holding_malloc_lock")


@death("stack-smashing", "SIGABRT", text="stack smashing detected", frame="smash")
def stack_smashing():
    """A write past the end of a buffer on the stack, found by the compiler's canary."""
    _crash("stack_smashing")


@death("buffer-overflow", "SIGABRT", text="buffer overflow detected", frame="fortified")
def fortified():
    """strcpy() into a buffer that is too small, found by _FORTIFY_SOURCE."""
    _crash("fortified")


def _asan_missing():
    import importlib.util

    if importlib.util.find_spec("_sanitized") is None:
        return "no address sanitizer here"
    return None


def _asan_environ():
    import subprocess

    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return {"LD_PRELOAD": os.path.realpath(library), "ASAN_OPTIONS": "detect_leaks=0"}


@death(
    "sanitizer", exit_code=1, text="AddressSanitizer: heap-use-after-free", frame="use_after_free",
    python="under_sanitizer", needs=_asan_missing, environ=_asan_environ, late=True,
)  # fmt: skip
def under_sanitizer():
    """A use after free() in a child that runs under the address sanitizer."""
    import _sanitized

    _sanitized.use_after_free()


# -- the stack -------------------------------------------------------------------------------------------------------


@death("stack-overflow", "SIGSEGV", text="stack overflow", frame="recurse")
def c_recursion():
    """Endless recursion in C."""
    _native("stack_overflow")


@death("stack-overflow", "SIGSEGV", text="stack overflow", frame="recurse")
def c_recursion_in_thread():
    """Endless recursion in C, in a thread of Python."""
    thread = threading.Thread(target=_native, args=("stack_overflow",))
    thread.start()
    thread.join()


def _again():
    import ctypes

    sys.setrecursionlimit(1 << 30)
    again = ctypes.CFUNCTYPE(None)(lambda: again())
    again()


@death("stack-overflow", "SIGSEGV", text="stack overflow", python="<lambda>", late=True)
def python_recursion():
    """Endless recursion in Python through C code, in a thread whose stack is smaller than the interpreter thinks."""
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=_again)
    thread.start()
    thread.join()


# -- C++ -------------------------------------------------------------------------------------------------------------


@death("cxx-terminate", "SIGABRT", text="std::runtime_error: the kernel size must be odd", frame="uncaught")
def cxx_exception():
    """A C++ exception that nobody catches."""
    _crash("uncaught")


@death("cxx-terminate", "SIGABRT", text="uncaught C\\+\\+ exception int", frame="uncaught_int")
def cxx_int():
    """A C++ exception that is no object of a class."""
    _crash("uncaught_int")


@death("cxx-terminate", "SIGABRT", text="std::logic_error: thrown where nothing may be", frame="through_noexcept")
def cxx_noexcept():
    """A C++ exception that leaves a noexcept function."""
    _crash("through_noexcept")


@death("cxx-terminate", "SIGABRT", text="without an active exception", frame="unjoined_thread")
def cxx_thread():
    """A std::thread that is destroyed while it runs."""
    _crash("unjoined_thread")


@death("cxx-terminate", "SIGABRT", text="pure virtual|without an active exception", frame="pure_virtual")
def cxx_pure_virtual():
    """A call of a pure virtual function."""
    _crash("pure_virtual")


# -- other threads ---------------------------------------------------------------------------------------------------


@death("segfault", "SIGSEGV", text="thread: ", frame="crash_late")
def c_thread():
    """A thread of C code."""
    _native("crash_in_thread")


@death("segfault", "SIGSEGV", text="thread: ", frame="two_threads_at_once")
def two_threads():
    """Two threads at the same moment."""
    _crash("two_threads_at_once")


@death("abort", "SIGABRT", text="thread: ", frame="abort_in_thread")
def abort_in_thread():
    """abort() in a thread of C++ code."""
    _crash("abort_in_thread")


@death("segfault", "SIGSEGV", text="thread: ", frame="deaths_segfault", python="_native")
def python_thread():
    """A thread of Python."""
    thread = threading.Thread(target=_native, args=("segfault",))
    thread.start()
    thread.join()


# -- at a bad moment -------------------------------------------------------------------------------------------------


def call(function):
    return function()


def something():
    """What an earlier cell may have made."""
    import types

    return types.SimpleNamespace(value=[1, 2])


@death("segfault", "SIGSEGV", frame="deaths_segfault", session=True)
def in_a_callback(context, corpus):
    """In a function of the child that the session calls from within a callback."""
    corpus.call(lambda: corpus.null_pointer())


@death("killed", "SIGKILL", session=True)
def during_a_callback(context, corpus):
    """While the session serves a callback."""

    def callback():
        os.kill(context.remote_pid, signal.SIGKILL)
        while os.path.exists(f"/proc/{context.remote_pid}/exe") if context.remote_pid else False:
            time.sleep(0.001)

    corpus.call(callback)


class DiesInDel:
    def __del__(self):
        _native("segfault")


@death("segfault", "SIGSEGV", frame="deaths_segfault", python="__del__")
def in_del():
    """In a finaliser."""
    DiesInDel()


@death("segfault", "SIGSEGV", frame="deaths_segfault", python="<module>", session=True)
def at_import(context, corpus):
    """While a module is imported."""
    context.load_module("dies_at_import")


@death("segfault", "SIGSEGV", frame="deaths_segfault", python="Body", session=True)
def in_a_class_body(context, corpus):
    """In a class body of a module that is imported."""
    context.load_module("dies_in_class_body", [os.path.dirname(os.path.abspath(__file__))])


@death("segfault", "SIGSEGV", frame="deaths_segfault", text="last output: .*half a li")
def while_printing():
    """With half a line printed."""
    print("half a li", end="", flush=True)
    _native("segfault")


@death("segfault", "SIGSEGV", frame="deaths_segfault")
def with_a_full_pipe():
    """While another thread prints without end."""

    def chatter():
        while True:
            print("x" * 1000)

    threading.Thread(target=chatter, daemon=True).start()
    time.sleep(0.05)
    _native("segfault")


@death("segfault", "SIGSEGV", text="thread: ", frame="crash_late", late=True)
def half_a_reply():
    """In another thread, while a reply of some ten megabytes is being written."""
    reply = [str(i) for i in range(1_000_000)]
    _native("crash_in_thread", 0.01)
    return reply


@death("segfault", "SIGSEGV", text="NULL dereference at 0x0", frame="deaths_segfault", libzmq_aborts=True)
def without_descriptors():
    """With all descriptors closed."""
    import _deaths

    os.closerange(0, 65536)
    _deaths.segfault()


@death("disconnected", text="connection", session=True, either=True, libzmq_aborts=True)
def disconnected(context, corpus):
    """Code that closes all descriptors and goes on: nothing can be said to it any more."""
    corpus.close_all()
    for _ in range(3):
        corpus.close_all()


def close_all():
    os.closerange(0, 65536)


@death("segfault", "SIGSEGV", text="raised by the process itself", python="in_signal_handler")
def in_signal_handler():
    """A signal handler of Python that sends a fatal signal."""
    signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGSEGV))
    signal.raise_signal(signal.SIGUSR1)


@death("abort", "SIGABRT", text="SIGABRT", frame="abort_at_exit")
def at_exit():
    """abort() in a handler of exit()."""
    _crash("abort_at_exit")


@death("segfault", "SIGSEGV", session=True, late=True, text="between calls", frame="touch")
def between_calls(context, corpus):
    """Between two calls, in a thread that a call has left behind."""
    import tempfile

    pid = context.remote_pid
    with tempfile.TemporaryDirectory() as directory:
        go = os.path.join(directory, "go")
        os.mkfifo(go)
        corpus.crash_later(go)
        with open(go, "w"):  # the call has returned
            pass
        while os.path.exists(f"/proc/{pid}/exe"):
            time.sleep(0.001)
    corpus.call(int)


def crash_later(go):
    def wait_and_crash():
        with open(go) as file:
            file.read()
        _native("crash_in_thread")

    threading.Thread(target=wait_and_crash, daemon=True).start()


# -- exits -----------------------------------------------------------------------------------------------------------


@death("exit", exit_code=5, text=r"exit code 5 \(exit\(\) was called\)", frame="deaths_exit", python="c_exit")
def c_exit():
    """exit() in C."""
    _native("exit", 5)


@death("_exit", exit_code=6, text=r"exit code 6 \(_exit\(\) was called\)")
def c__exit():
    """_exit() in C."""
    _native("_exit", 6)


@death("_exit", exit_code=3, text="exit code 3")
def os_exit():
    """os._exit(3)."""
    os._exit(3)


@death("_exit", exit_code=0, text="exit code 0")
def success():
    """os._exit(0): no failure, and no answer either."""
    os._exit(0)


@death("exit", exit_code=8, text="exit code 8", frame="exit_in_thread")
def exit_in_thread():
    """exit() in a thread of C++ code."""
    _crash("exit_in_thread")


@death("another-program", exit_code=7, text="exit code 7")
def another_program():
    """exec() of another program, which ends."""
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])


# -- signals that somebody sends -------------------------------------------------------------------------------------


def send(name):
    number = signal.Signals[name]
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)  # Python ignores some
    os.kill(os.getpid(), number)
    time.sleep(10)


def _sent(name):
    def run(context, corpus):
        corpus.send(name)

    run.__name__ = f"sent_{name.lower()}"
    run.__doc__ = f"{name} that nobody handles."
    death("killed", name, text=name, session=True)(run)


for _name in (
    "SIGHUP SIGINT SIGQUIT SIGKILL SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGTERM SIGSTKFLT SIGXCPU SIGXFSZ SIGVTALRM SIGPROF "
    "SIGIO SIGPWR"
).split():
    if hasattr(signal, _name) and _name != "SIGINT":  # which is the session's to send
        _sent(_name)


@death("bad-system-call", "SIGSYS", text="SIGSYS")
def sent_sigsys():
    """SIGSYS, as seccomp sends it."""
    os.kill(os.getpid(), signal.SIGSYS)


@death("killed", "SIGKILL", session=True, text="SIGKILL \\(killed\\)")
def killed_from_outside(context, corpus):
    """SIGKILL by another process, in the middle of a call."""
    pid = context.remote_pid
    threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
    corpus.wait_for_ever()


@death("killed", "SIGSEGV", session=True, text="sent by process")
def segv_from_outside(context, corpus):
    """SIGSEGV that another process sends: no fault of the code."""
    pid = context.remote_pid
    threading.Timer(0.05, os.kill, (pid, signal.SIGSEGV)).start()
    corpus.wait_for_ever()


def wait_for_ever():
    time.sleep(60)


# -- limits ----------------------------------------------------------------------------------------------------------


@death("cpu-limit", "SIGXCPU", text="limit of processor time", late=True)
def cpu_limit():
    """RLIMIT_CPU is reached."""
    import resource

    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + 1, used + 5))
    while True:
        pass


@death("killed", "SIGXFSZ", text="limit of size")
def file_size_limit():
    """RLIMIT_FSIZE is reached."""
    import resource
    import tempfile

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100_000)


def _cgroup():
    """A directory in which a memory cgroup can be made, or None."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        if os.path.exists(os.path.join(root, "cgroup.procs")) and os.access(root, os.W_OK):
            with open(os.path.join(root, "cgroup.subtree_control" if limit == "memory.max" else "cgroup.procs")) as file:
                if limit != "memory.max" or "memory" in file.read():
                    return root, limit
    return None


def _cgroup_missing():
    return None if _cgroup() else "no control group of memory can be made here"


def _group():
    root, limit = _cgroup()
    return os.path.join(root, f"isolation-test-{os.getpid()}"), limit


def _confine(context):
    group, limit = _group()
    os.mkdir(group)
    with open(os.path.join(group, limit), "w") as file:
        file.write(str(200 << 20))
    code = f"with open({os.path.join(group, 'cgroup.procs')!r}, 'w') as file: file.write('0')"
    context.call(exec, code, {})


def _remove():
    group = _group()[0]
    end = time.monotonic() + 5
    while os.path.exists(group) and time.monotonic() < end:
        try:
            os.rmdir(group)
        except OSError:
            time.sleep(0.01)


@death(
    "out-of-memory", "SIGKILL", session=True, text="out of memory: .*(oom_kill|Killed process)", needs=_cgroup_missing, prepare=_confine,
    cleanup=_remove, late=True,
)  # fmt: skip
def out_of_memory(context, corpus):
    """More memory than the control group has."""
    corpus.hog()


def hog():
    kept = []
    while True:
        kept.append(bytearray(b"x" * (10 << 20)))


def _log_missing():
    from ipython_isolation import oom

    return _cgroup_missing() or (None if oom._kernel_log(os.getpid(), 0)[0] else "the kernel's log cannot be read here")


@death("killed", "SIGKILL", session=True, text="SIGKILL \\(killed\\)", needs=_log_missing, prepare=_confine, cleanup=_remove, late=True)
def killed_after_another(context, corpus):
    """SIGKILL by another process, after memory ran out for a neighbour in the control group."""
    import subprocess

    code = "import sys; sys.stdin.read(); kept = []\nwhile True: kept.append(b'x' * (10 << 20))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as neighbour:
        with open(os.path.join(_group()[0], "cgroup.procs"), "w") as file:
            file.write(str(neighbour.pid))
        with open(f"/proc/{neighbour.pid}/oom_score_adj", "w") as file:
            file.write("1000")
        neighbour.stdin.close()
        assert neighbour.wait() == -signal.SIGKILL
    corpus.call(int)  # it lives
    os.kill(context.remote_pid, signal.SIGKILL)
    corpus.wait_for_ever()


# -- alive, but of no use --------------------------------------------------------------------------------------------


def _interrupted(context, verdict, call, *args):
    """Interrupts a call twice: once the process has got as far as the verdict says, and when the session has said
    what it sees."""
    from ipython_isolation import waiting

    host, pid = context._host, context.remote_pid
    hint = host.interrupt_hint
    seen = []

    def hinted():
        hint()
        seen.append(host.waiting)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt():
        end = time.monotonic() + 30
        while waiting.look(pid).verdict != verdict and time.monotonic() < end:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    host.interrupt_hint = hinted
    try:
        threading.Thread(target=interrupt).start()
        call(*args)
    except KeyboardInterrupt:
        raise StillAlive(seen[0]) from None
    finally:
        del host.interrupt_hint


@dataclass
class StillAlive(Exception):
    """What the session said about a process that did not answer."""

    waiting: object
    verdict: str = field(init=False)

    def __post_init__(self):
        self.verdict = self.waiting.verdict
        self.args = (self.waiting.text,)


@death("stopped", session=True, text="stopped by a signal", late=True)
def stopped(context, corpus):
    """SIGSTOP: the process is not dead, but nothing in it runs."""
    _interrupted(context, "stopped", corpus.send, "SIGSTOP")


@death("deadlock", session=True, text="waits for a lock", late=True)
def deadlock(context, corpus):
    """A thread that waits for a lock which it holds itself."""
    _interrupted(context, "deadlock", corpus.lock_twice)


def lock_twice():
    _crash("deadlock")
