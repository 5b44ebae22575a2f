"""What the child prints: in the cell that made the call, in order, whole."""

import io
import os
import sys
import textwrap
import threading
import time

import pytest
from conftest import wait_until
from kernels import event_loop_of_jupyter, kernel, run_python, start_kernel  # noqa: F401 (fixtures)

import ipython_isolation


@pytest.fixture
def talker(kernel):
    """A kernel with the module `talker` isolated."""
    kernel.run("%isolate talker\nimport talker")
    return kernel


# --- In a notebook ---------------------------------------------------------------------------------------


def test_each_way_of_printing_reaches_the_cell(talker):
    cell = talker.run("talker.say('print')\ntalker.say_in_c('printf')\ntalker.write(b'write\\n')\ntalker.warn('error')")
    assert cell.out == "print\nprintf\nwrite\n"
    assert cell.err == "error\n"


def test_order_with_the_prints_of_the_kernel(talker):
    """600 lines, in turn from the kernel, from Python and from C of the child."""
    cell = talker.run(
        "for i in range(0, 600, 3):\n    print('line', i)\n    talker.say(f'line {i + 1}')\n    talker.say_in_c(f'line {i + 2}')"
    )
    assert cell.out.splitlines() == [f"line {i}" for i in range(600)]
    assert cell.err == ""


def test_order_around_a_callback(talker):
    cell = talker.run("talker.say_after(lambda: print('the session'), 'before', 'after')")
    assert cell.out == "before\nthe session\nafter\n"


def test_characters_that_are_cut(talker):
    """Each byte is a write of its own, and there is more than any pipe or buffer holds."""
    text = "aé漢🐍\n"
    cell = talker.run(f"talker.write(*[bytes([b]) for b in {text!r}.encode()])")
    assert cell.out == text
    cell = talker.run(f"talker.write(({text!r} * 30000).encode())")
    assert cell.out == text * 30000


def test_characters_that_are_cut_by_a_callback(talker):
    """Half a character is kept until the other half comes, in the next call if need be."""
    assert talker.run("talker.write('é'.encode()[:1])").out == ""
    assert talker.run("talker.write('é'.encode()[1:])").out == "é"


def test_bytes_that_are_no_text(talker):
    assert talker.run(r"talker.write(b'<\xff>\n')").out == "<\ufffd>\n"


def test_capture_magic(talker):
    cell = talker.run("%%capture captured\ntalker.say('print')\ntalker.say_in_c('printf')\ntalker.warn('error')")
    assert cell.outputs == []
    assert talker.run("captured.stdout, captured.stderr").value == r"('print\nprintf\n', 'error\n')"


def test_redirect(talker):
    cell = talker.run(
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()) as file, contextlib.redirect_stderr(io.StringIO()) as errors:\n"
        "    talker.say('hidden')\n    talker.say_in_c('hidden too')\n    talker.warn('hidden error')\n"
        "talker.say('seen')\n[file.getvalue(), errors.getvalue()]"
    )
    assert cell.out == "seen\n"
    assert cell.value == r"['hidden\nhidden too\n', 'hidden error\n']"


def test_output_before_a_crash(talker):
    cell = talker.run_any("talker.die('last words')")
    assert cell.error["ename"] == "ProcessTerminationError"
    assert cell.out == "last words\nlast words in C\n"
    assert cell.err == "last words as an error\n"
    # The words come before the error that ends the cell.
    assert [kind for kind, _ in cell.outputs][-1] == "error"


def test_queued_cells(talker):
    """Cells that are sent together: each has its own lines, all of them, and no other."""
    messages = [
        talker.send(f"for i in range(40):\n    talker.say(f'{cell} {{i}}')\n    talker.say_in_c(f'{cell} {{i}} in C')")
        for cell in range(5)
    ]
    for number, message in enumerate(messages):
        expected = "".join(f"{number} {i}\n{number} {i} in C\n" for i in range(40))
        assert talker.wait(message).out == expected


def test_late_output_goes_to_the_cell_that_started_it(talker, tmp_path):
    os.mkfifo(tmp_path / "go")
    started = talker.send(f"talker.say_later({str(tmp_path / 'go')!r}, 'late')")
    talker.wait(started)
    later = talker.send("print('of the kernel')\n" + f"open({str(tmp_path / 'go')!r}, 'w').close()\nprint('more')")
    assert talker.wait(started, "late\n").out == "late\n"
    assert talker.wait(later).out == "of the kernel\nmore\n"


def test_much_output_does_not_block_the_child(talker):
    """More than a pipe holds, on both streams at once."""
    cell = talker.run("for _ in range(20):\n    talker.say('x' * 100_000)\n    talker.warn('y' * 100_000)")
    assert len(cell.out) == len(cell.err) == 20 * 100_001


def test_a_stream_that_raises(talker):
    """The error of the session's own stream is the session's; the call has been made, and the next works."""
    cell = talker.run_any(
        "class Full:\n    def write(self, text): raise OSError('disk full')\n    def flush(self): pass\n"
        "import contextlib\nwith contextlib.redirect_stdout(Full()):\n    talker.say('x')"
    )
    assert cell.error["evalue"] == "disk full"
    assert talker.run("talker.say('y')").out == "y\n"


# --- Elsewhere -------------------------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import contextlib, io, sys
    import ipython_isolation
    talker = ipython_isolation.import_isolated("talker")
    for i in range(0, 600, 3):
        print("line", i)
        talker.say(f"line {i + 1}")
        talker.say_in_c(f"line {i + 2}")
    talker.write(*[bytes([b]) for b in "é漢🐍\\n".encode()])
    talker.warn("error")
    with contextlib.redirect_stdout(io.StringIO()) as file:
        talker.say("hidden")
    assert file.getvalue() == "hidden\\n"
    try:
        talker.die("last words")
    except ipython_isolation.ProcessTerminationError:
        print("caught")
    """
)


IPYTHON = "-m", "IPython", "--no-banner", "--colors=NoColor", "--TerminalInteractiveShell.term_title=False"


@pytest.mark.parametrize("command", [(sys.executable,), (sys.executable, *IPYTHON)], ids=["python", "IPython"])
def test_scripts_and_terminal_ipython(tmp_path, command):
    done = run_python(tmp_path, SCRIPT, command=command)
    assert done.returncode == 0, done.stderr
    lines = [f"line {i}" for i in range(600)]
    assert done.stdout.splitlines() == [*lines, "é漢🐍", "last words", "last words in C", "caught"]
    assert done.stderr == "error\nlast words as an error\n"


def test_a_session_without_streams(tmp_path):
    """As under pythonw, where sys.stdout is None."""
    done = run_python(
        tmp_path,
        "import sys, ipython_isolation\ntalker = ipython_isolation.import_isolated('talker')\n"
        "sys.stdout = None\ntalker.say('nowhere')\nsys.stdout = sys.__stdout__\ntalker.say('here')",
    )
    assert (done.returncode, done.stdout) == (0, "here\n")


class SlowStream(io.StringIO):
    """What is written is there only some time later, as in a session that is busy."""

    def write(self, text):
        time.sleep(0.1)
        return super().write(text)


def test_what_is_printed_at_the_end_is_out_when_close_returns(context, monkeypatch):
    """Whoever closes last may end the session, and with it the thread that passes it on."""
    context.load_module("sys")
    context.call(exec, "import atexit; atexit.register(print, 'at the end')", {})
    stream = SlowStream()
    monkeypatch.setattr(sys, "stdout", stream)
    context.close()
    assert stream.getvalue() == "at the end\n"


def test_what_is_printed_at_the_end_of_a_context_that_two_threads_close(context, monkeypatch):
    context.load_module("sys")
    code = "print('ending', flush=True); time.sleep(0.05); print('at the end')"
    context.call(exec, f"import atexit, time; atexit.register(exec, {code!r}, {{'time': time}})", {})
    ending = threading.Event()

    class Stream(io.StringIO):
        def write(self, text):
            ending.set()
            return super().write(text)

    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    closer = threading.Thread(target=context.close)
    closer.start()
    assert ending.wait(20)
    context.close()
    assert stream.getvalue() == "ending\nat the end\n"
    closer.join()


def test_a_stream_that_closes_the_context(context, monkeypatch):
    class Closing(SlowStream):
        def write(self, text):
            context.close()
            return super().write(text)

    stream = Closing()
    monkeypatch.setattr(sys, "stdout", stream)
    before = time.monotonic()
    with pytest.raises(ipython_isolation.ClientStateError):
        context.call(exec, "print('now', end='', flush=True)", {})
        context.call(int)
    assert time.monotonic() - before < 30
    assert stream.getvalue() == "now"


def test_close_does_not_wait_for_who_goes_on_printing(context, monkeypatch):
    context.load_module("sys")
    context.call(exec, "import atexit; atexit.register(lambda: [print('x' * 1000) for _ in iter(int, 1)])", {})
    monkeypatch.setattr(sys, "stdout", SlowStream())
    before = time.monotonic()
    context.close()
    assert time.monotonic() - before < 30


class HeldStream(io.StringIO):
    """Another thread than the main one is held in it until `close_is_over` is set."""

    def __init__(self):
        super().__init__()
        self.writing, self.close_is_over, self.was_over = threading.Event(), threading.Event(), None

    def write(self, text):
        if threading.current_thread() is not threading.main_thread():
            self.writing.set()
            self.was_over = self.close_is_over.wait(20)  # far longer than close() waits for another thread
        return super().write(text)


@pytest.fixture
def close_beside_a_thread(context, monkeypatch, tmp_path):
    """A function that closes the context while another thread is held in the given stream with what was printed
    before; what is printed at the end then is left to the thread that closes."""
    context.load_module("sys")
    os.mkfifo(go := tmp_path / "go")
    code = (
        "import atexit, threading\n"
        "def when_idle():\n    open(go).close()\n    print('a', flush=True)\n"
        "threading.Thread(target=when_idle).start()\natexit.register(print, 'b')"
    )
    context.call(exec, code, {"go": str(go)})

    def close(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        open(go, "w").close()
        assert stream.writing.wait(20)
        try:
            context.close()
        finally:
            stream.close_is_over.set()
            assert wait_until(lambda: stream.was_over is not None)
        assert stream.was_over

    return close


def test_an_interrupt_while_close_passes_on_output(context, close_beside_a_thread):
    """It is raised, and the context is closed."""

    class Interrupted(HeldStream):
        def write(self, text):
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().write(text)

    with pytest.raises(KeyboardInterrupt):
        close_beside_a_thread(Interrupted())
    assert context.info()["state"] == "closed"


def test_a_stream_that_uses_the_context_while_it_closes(context, close_beside_a_thread):
    """Says that it is closed; and starts no new child, whose set-up has been forgotten by now."""
    said = []

    class Using(HeldStream):
        def write(self, text):
            written = super().write(text)
            for _ in range(3):
                with pytest.raises(ipython_isolation.ClientStateError, match="closed"):
                    context.call(os.getpid)
                said.append(threading.current_thread() is threading.main_thread())
            return written

    close_beside_a_thread(Using())
    assert wait_until(lambda: len(said) == 6) and said[:3] == [True] * 3
    assert context.info()["epoch"] == 1 and context.info()["state"] == "closed"


def test_a_call_of_another_thread_while_it_closes(context, monkeypatch):
    context.load_module("sys")
    exits = "print('exits', flush=True); time.sleep(0.3)"
    context.call(exec, f"import atexit, time; atexit.register(exec, {exits!r}, {{'time': time}})", {})
    context.call(int)
    exiting = threading.Event()

    class Stream(io.StringIO):
        def write(self, text):
            exiting.set()
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    raised = []

    def call():
        exiting.wait(20)
        with pytest.raises(ipython_isolation.ClientStateError, match="closed") as caught:
            context.call(time.sleep, 60)
        raised.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    context.close()
    thread.join(20)
    assert len(raised) == 1
