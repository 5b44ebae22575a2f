"""What `ProcessTerminationError` says, and how it is shown; that nothing a dead child left behind can do harm."""

import array
import faulthandler
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import traceback

import pytest
from conftest import wait_until
from kernels import start_kernel, event_loop_of_jupyter, without_colors  # noqa: F401

from ipython_isolation import IsolationContext, ProcessTerminationError, arguments, diagnosis

# Built with the sanitizer, the helper takes longer than its time.
pytestmark = pytest.mark.no_asan

SYMBOLIZER = diagnosis._SYMBOLIZER
LIMIT, PATIENCE = diagnosis._LIMIT, diagnosis._PATIENCE


def die(call, *args, **kwargs):
    with pytest.raises(ProcessTerminationError) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """The search for names may take as long as it takes on this machine; that it is cut short otherwise is tested for
    itself."""
    monkeypatch.setattr(diagnosis, "_LIMIT", 40)


@pytest.fixture
def deaths(context):
    return context.load_module("_deaths")


@pytest.fixture
def error(deaths):
    return die(deaths.segfault, address=0xDEAD0000)


# --- the facts --------------------------------------------------------------------------------------


def test_all_of_it(context, deaths):
    numpy = pytest.importorskip("numpy")
    pid = context.remote_pid
    error = die(deaths.wild_write, numpy.zeros((480, 640, 3), "u1"), 0, 3, crash=True)
    assert (error.pid, error.verdict, error.signal, error.address) == (pid, "segfault", signal.SIGSEGV, 0)
    assert error.operation == "_deaths.wild_write"
    assert error.arguments == ("ndarray uint8 (480, 640, 3), 921.6 kB", "0", "3", "crash=True")
    inlined, frame = error.native_stack[:2]
    assert (inlined.function, frame.function) == ("touch", "deaths_wild_write")
    assert inlined.inlined and not frame.inlined
    assert os.path.basename(frame.file) == "_deaths.c" and frame.line > 100
    assert os.path.basename(frame.library).startswith("_deaths.")
    with open(inlined.file) as file:
        assert "address = 42" in file.read().splitlines()[inlined.line - 1]
    counter = "rip" if "rip" in error.registers else "pc"
    assert error.registers[counter] == frame.address
    text = str(error)
    for part in ("wild_write", "NULL dereference at 0x0", "ndarray uint8 (480, 640, 3)", f"_deaths.c:{inlined.line}"):
        assert part in text
    assert "\x1b" not in text and "\n" not in error.summary


@pytest.mark.parametrize(
    "pieces, text",
    [
        ([(0, b"one"), (1, b"two\n"), (0, b"\n")], "one\ntwo\n"),
        ([(0, b"one"), (1, b"two"), (0, b" more\nthree"), (1, b"\n")], "one more\ntwo\nthree"),
        ([(0, b"50 %\r"), (0, b"51 %\r"), (1, b"a warning\n"), (0, b"52 %")], "50 %\r51 %\r52 %\na warning\n"),
        ([(1, b"a\n\nb"), (0, b"c")], "a\n\nb\nc"),
        ([], ""),
    ],
)
def test_the_output_is_kept_by_lines(context, capsys, pieces, text):
    """In whatever pieces the two streams arrive."""
    context.load_module("math")
    for stream, data in pieces:
        context._host.output.feed(stream, data)
    assert context._host.output.last() == text


def test_the_python_stack_and_the_output(context, tmp_path):
    (tmp_path / "deep_victim.py").write_text(
        "import _deaths, sys\ndef inner():\n    print('one'); print('\\x1b[31mtwo\\x1b[0m', file=sys.stderr)\n"
        "    _deaths.abort()\ndef outer():\n    inner()\n"
    )
    for _ in range(2):  # also in a copy that has taken over
        victim = context.load_module("deep_victim", [str(tmp_path)])
        error = die(victim.outer)
        assert [(f.function, f.line) for f in error.python_stack] == [("inner", 4), ("outer", 6)]
        assert error.output == ("one", "two")
        assert "inner at deep_victim.py:4 < outer at deep_victim.py:6" in str(error)
    assert context.info()["rollback"]["take_overs"] >= 1


def test_a_thread_is_named(deaths):
    error = die(deaths.crash_in_thread)
    assert error.thread and error.python_stack == ()
    assert [f.function for f in error.native_stack[:2]] == ["touch", "crash_late"]


def test_no_names_of_what_was_replaced_on_disk(tmp_path):
    """The library that died is not the one that has its name now: its names would be wrong."""
    import shutil

    import _deaths

    copy = tmp_path / os.path.basename(_deaths.__file__)
    shutil.copy(_deaths.__file__, copy)
    with IsolationContext(name="replaced") as context:
        deaths = context.load_module("_deaths", [str(tmp_path)])
        shutil.copy(_deaths.__file__, tmp_path / "fresh")
        os.replace(tmp_path / "fresh", copy)
        frame = die(deaths.segfault).native_stack[0]
    assert frame.function == "" and frame.offset > 0
    assert os.path.basename(_deaths.__file__) in frame.library


def test_without_the_helper(deaths, monkeypatch):
    monkeypatch.setattr(diagnosis, "_SYMBOLIZER", "/nowhere")
    error = die(deaths.segfault)
    assert error.verdict == "segfault"
    (frame,) = error.native_stack
    assert frame.function == "" and "_deaths" in frame.library and frame.offset > 0
    assert f"+{frame.offset:#x}" in str(error)


FRAME = "printf 'frame\\t0\\t10\\t10\\t/lib/a.so\\tknown\\t0\\n'"


@pytest.mark.parametrize(
    ("script", "names"),
    [
        (f"{FRAME}\nexec sleep 600", ["known"]),  # it looks for lines: not waited for
        (f"sleep 0.2\n{FRAME}", ["known"]),  # on a busy machine names are, for a moment
        ("exec sleep 600", [""]),
    ],
)
def test_a_helper_that_takes_long(deaths, monkeypatch, tmp_path, script, names):
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    assert LIMIT + PATIENCE < 1  # what the user waits for
    monkeypatch.setattr(diagnosis, "_LIMIT", LIMIT)
    if names != [""]:
        monkeypatch.setattr(diagnosis, "_PATIENCE", 30)  # however long it takes here until the helper has begun
    monkeypatch.setattr(diagnosis, "_SYMBOLIZER", str(helper))
    start = time.monotonic()
    error = die(deaths.segfault)
    assert time.monotonic() - start < 50
    assert [f.function for f in error.native_stack] == names


def test_a_handler_that_the_module_installed(context, deaths):
    """faulthandler is heard first, and sends the signal again: the fault is recorded as it was."""
    context.call(faulthandler.enable)
    error = die(deaths.segfault, address=0xDEAD0000)
    assert (error.verdict, error.address) == ("segfault", 0xDEAD0000)
    assert error.native_stack[0].function == "touch"


def test_exit_is_told_from__exit(context):
    deaths = context.load_module("_deaths")
    error = die(deaths.exit, 5)
    assert error.verdict == "exit" and "deaths_exit" in [f.function for f in error.native_stack]
    error = die(context.load_module("_deaths")._exit, 5)
    assert error.verdict == "_exit" and error.native_stack == ()


@pytest.mark.parametrize(
    "printed, end, verdict",
    [
        ("kernel.c:10:5: runtime error: signed integer overflow", "os._exit(1)", "_exit"),
        ("kernel.c:10:5: runtime error: signed integer overflow", "os.abort()", "abort"),
        ("=={pid}==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1", "os._exit(1)", "_exit"),
        ("=={pid}==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1", "os.kill(os.getpid(), 9)", "killed"),
    ],
)
def test_words_of_a_sanitizer_prove_nothing(context, printed, end, verdict):
    text = printed.replace("{pid}", str(context.remote_pid))
    code = "import os\nos.write(2, %r)\n%s" % (text.encode() + b"\n", end)
    error = die(context.call, exec, code, {})
    assert (error.verdict, error.sanitizer) == (verdict, None)
    assert error.output[-1] == text  # it is shown all the same


def test_killed_is_not_out_of_memory(context, deaths):
    os.kill(context.remote_pid, signal.SIGKILL)
    error = die(lambda: [deaths.allocate(0) for _ in range(1000)])
    assert error.verdict == "killed" and "memory" not in error.reason


def test_names_of_cxx(context):
    crashes = context.load_module("_crashes")
    error = die(crashes.stack_smashing)
    assert any("smash(char const*, unsigned long)" in f.function for f in error.native_stack)


def test_in_a_jail(context):
    """/proc is not there any more when it dies."""
    if os.geteuid() != 0:
        pytest.skip("only root can change the root directory")
    jail = "/usr"  # the victim's own file is out of reach for the child, not for the session
    deaths = context.load_module("_deaths")
    context.call(os.chroot, jail)
    error = die(deaths.segfault)
    assert error.native_stack[0].function == "touch"


# --- the exception -----------------------------------------------------------------------------------


def test_picklable(error):
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error) and str(again) == str(error) and again.report() == error.report()
    assert again.native_stack[0].function == "touch"


def test_short_as_a_cause_and_in_a_log(error, caplog):
    try:
        raise ValueError("the picture cannot be read") from error
    except ValueError as outer:
        text = "".join(traceback.format_exception(outer))
    logging.getLogger("victim").error("failed", exc_info=error)
    for shown in (text, caplog.text):
        lines = shown[shown.index("ProcessTerminationError:") :].splitlines()
        own = [lines[0], *[line for line in lines[1:] if line.startswith("  native stack")]]
        assert len(own) == 2 and "0xdead0000" in own[0] and "touch at _deaths.c" in own[1]
        assert "\x1b" not in shown and "Registers" not in shown


def test_in_a_cell(start_kernel):  # noqa: F811
    kernel = start_kernel()
    kernel.run("%load_ext ipython_isolation\n%isolate _deaths dies_at_import\nimport _deaths")
    kernel.run("from ipython_isolation import diagnosis\ndiagnosis._LIMIT = 40")  # as `patient`
    cell = kernel.run_any("def f(x):\n    return _deaths.segfault(x)\n\nf(0xDEAD0000)")
    text = without_colors("\n".join(cell.error["traceback"]))
    assert cell.error["ename"] == "ProcessTerminationError"
    assert text.index("--> 4 f(0xDEAD0000)") < text.index("--> 2     return") < text.index("--> touch")
    assert text.count("ProcessTerminationError:") == 1
    for part in ("address = 42;", "Arguments:", str(0xDEAD0000), "Registers:", "SIGSEGV"):
        assert part in text
    assert "ipython_isolation/" not in text and "op_method" not in text
    text = without_colors("\n".join(kernel.run_any("import dies_at_import").error["traceback"]))
    assert "import dies_at_import" in text and "Python stack" in text and "dies_at_import.py" in text
    assert "ipython_isolation/" not in text and "importlib" not in text
    cell = kernel.run_any("try:\n    _deaths.segfault()\nexcept Exception as e:\n    raise KeyError('outer') from e")
    text = without_colors("\n".join(cell.error["traceback"]))
    assert "touch at _deaths.c" in text and "Registers" not in text


# --- arguments ---------------------------------------------------------------------------------------


class Own:
    def __repr__(self):
        raise AssertionError("nobody may ask")


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "None"),
        (3, "3"),
        (1 << 4000, "int of 4001 bits"),
        (1.5, "1.5"),
        ("short", "'short'"),
        ("x" * 1000, "str of 1000 characters, '" + "x" * 40 + "'..."),
        (b"ab", "b'ab'"),
        (bytes(5000), "bytes, 5.0 kB"),
        (bytearray(3_000_000), "bytearray, 3.0 MB"),
        ([], "empty list"),
        ([1, "a", 2], "list of 3 (int, str)"),
        ({"a": 1}, "dict of 1 (str)"),
        ((Own(), Own()), "tuple of 2 (Own)"),
        (array.array("d", [1, 2]), "array of 2"),
        (Own(), "Own object"),
        (Own, "class Own"),
        (len, "builtin_function_or_method len"),
        (range(3), "range(0, 3)"),
        (memoryview(b"abc"), "memoryview B (3,), 3 bytes"),
    ],
    # The same in every process: no address in it.
    ids=lambda x: str(x)[:20] if not isinstance(x, (Own, tuple, memoryview)) else "own",
)
def test_a_summary(value, text):
    assert arguments.summarize(value) == text


def test_a_summary_of_a_proxy_asks_nobody(context):
    deaths = context.load_module("deaths")
    made = deaths.DiesInRepr(9)
    before = context.info()["requests"]
    assert arguments.summarize(made) == "DiesInRepr object (isolated)"
    assert arguments.summarize([made]) == "list of 1 (DiesInRepr)"
    assert context.info()["requests"] == before


def test_numpy_and_pandas():
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    assert arguments.summarize(numpy.zeros((2, 3))) == "ndarray float64 (2, 3), 48 bytes"
    assert arguments.summarize(numpy.float32(1.5)) == "float32 1.5"
    assert arguments.summarize(pandas.DataFrame({"a": [1, 2]})) == "DataFrame (2, 1)"


@pytest.mark.parametrize(
    "call, operation, expected",
    [
        (lambda c: c.load_module("deaths").DiesInRepr(9).__repr__(), "deaths.DiesInRepr.__repr__", ()),
        (lambda c: c.call(os._exit, 4), "os._exit", ("4",)),
        (lambda c: c.load_module("dies_at_import"), "the import of dies_at_import", ()),
    ],
    ids=["method", "call", "load"],
)
def test_the_call_is_named(context, call, operation, expected):
    context.load_module("colorsys")
    error = die(call, context)
    assert (error.operation.replace("posix", "os"), error.arguments) == (operation, expected)


# --- what a child leaves behind is not believed --------------------------------------------------------


@pytest.fixture
def block(context, deaths):
    seen = []
    diagnose = context._deaths.diagnose

    def spy(facts):
        seen.append(context._peer.death_record())
        return diagnose(facts)

    context._deaths.diagnose = spy
    die(deaths.segfault)
    del context._deaths.diagnose
    return seen[0]


def symbolize(data, seconds=20):
    fd = os.memfd_create("test")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return subprocess.run([SYMBOLIZER], stdin=fd, capture_output=True, timeout=seconds)
    finally:
        os.close(fd)


@pytest.mark.skipif(not os.path.exists(SYMBOLIZER), reason="built without libdw")
def test_the_helper_survives_garbage(block):
    assert b"touch" in symbolize(block).stdout
    assert symbolize(b"").returncode == 2 and symbolize(os.urandom(5000)).returncode == 2
    rng = random.Random(7)
    for n in range(60):
        data = bytearray(block)
        for _ in range(rng.choice((1, 10, 1000))):
            at = rng.randrange(8, len(data)) if n % 2 else rng.randrange(8, diagnosis._HEADER.size)
            data[at] = rng.randrange(256)
        done = symbolize(bytes(data[: rng.randrange(900, len(data))] if n % 3 == 0 else data))
        assert done.returncode in (0, 1, 2), done


def test_a_garbled_record_is_a_death_all_the_same(block):
    facts = {
        "pid": 1, "known": True, "exit_code": 2, "exit_status": 11, "announced": 2, "signal": 11, "si_code": 1, "address": 16,
        "operation": "", "operand": None,
    }  # fmt: skip
    rng = random.Random(8)
    for n in range(30):
        data = bytearray(block)
        for _ in range(50):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            found = diagnosis.Diagnosis(facts, bytes(data))
        except Exception as error:  # the context then makes one from the facts alone
            assert type(error) in (ValueError, UnicodeError, KeyError, IndexError), error
        else:
            assert found.signal == signal.SIGSEGV


def test_controls_do_not_reach_the_terminal():
    assert diagnosis.clean("\x1b[31mred\x1b[0m \x1b]0;title\x07 \x07bell\ttab\n") == "red  ?bell\ttab\n"
    facts = {"pid": 1, "known": True, "exit_code": 1, "exit_status": 3, "announced": 0, "signal": 0, "si_code": 0, "address": 0}
    found = diagnosis.Diagnosis(facts, b"", "\x1b[2Jlast\n", "")
    assert found.output == ("last",)


def test_when_the_report_fails(deaths, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(diagnosis, "Record", broken)
    monkeypatch.setattr(diagnosis, "text", broken)
    error = die(deaths.segfault)
    assert error.signal is signal.SIGSEGV and "SIGSEGV" in str(error)


# --- alive, and no answer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, verdict",
    [("import time; time.sleep(60)", "asleep"), ("while True: pass", "running"), ("import os; os.kill(os.getpid(), 19)", "stopped")],
)
def test_waiting(code, verdict):
    from ipython_isolation import waiting

    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); " + code if "while" not in code else f"print(flush=True)\n{code}"], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert wait_until(lambda: waiting.look(process.pid).verdict == verdict), waiting.look(process.pid)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert waiting.look(process.pid).verdict == "unknown"
