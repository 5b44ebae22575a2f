"""SIGINT in sessions that are real processes: the call stops, the child and the session live on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

VICTIMS = str(Path(__file__).with_name("victims"))

PREFIX = f"""
import sys, os, time, signal, textwrap, threading
sys.path.insert(0, {VICTIMS!r})
import ipython_isolation as ii
context = ii.IsolationContext(restart="auto", name="session")
deaths, clock = context.load_module("_deaths"), context.load_module("time")
OrderedDict = context.load_module("collections").OrderedDict
def say(*words):
    print(*words, flush=True)
def attempt(call, *args):
    "Runs a call that the test interrupts, and says how it ended, and after how long."
    start = time.monotonic()
    try:
        say("ready")
        outcome = call(*args)
    except BaseException as error:
        outcome = type(error).__name__
    say("done", outcome, round(time.monotonic() - start, 3))
def deaf(call):
    "For exec in the child: says when it can be interrupted, and is in a C call that does not end of it, then or later."
    return f"import _deaths\\ntry:\\n    print('inside', flush=True)\\n    {{call}}\\nexcept KeyboardInterrupt:\\n    {{call}}"
"""


class Session:
    """A script as a session; its lines are read as they come."""

    def __init__(self, script):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREFIX + textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return line.split()

    def expect(self, *words):
        line = self.line()
        assert line[: len(words)] == [str(w) for w in words], (line, words)
        return line[len(words) :]

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def finish(self):
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


CALLS = {
    "time.sleep": "clock.sleep, 60",
    "a loop in Python": "context.call, exec, 'while True: pass', {}",
    "a C call that checks": "deaths.busy_checking_signals, 60.0",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_interrupt_stops_the_call(call):
    with Session(
        f"""
        kept = OrderedDict(a=1)
        mine = list(range(1000))
        pid = context.remote_pid
        for _ in range(3):
            attempt({call})
            assert deaths.allocate(0) == 0
        say("state", context.remote_pid == pid, kept["a"], sum(mine), context.info()["crashes"])
        context.close()
        """
    ) as session:
        longest = 0
        for _ in range(3):
            session.expect("ready")
            time.sleep(0.3)  # the request is under way; one that is not yet is interrupted all the same
            interrupted = time.monotonic()
            session.interrupt()
            (took,) = session.expect("done", "KeyboardInterrupt")
            longest = max(longest, time.monotonic() - interrupted)
            assert float(took) < 30
        session.expect("state", True, 1, 499500, 0)
        # A child that gets no processor for a second is one that has not answered for a second.
        assert "interrupt again" not in session.finish() or longest >= 1


def test_an_interrupt_at_any_moment_is_not_lost():
    """The signal may overtake the request: it is meant for it all the same."""
    with Session(
        """
        pid = context.remote_pid
        for _ in range(40):
            attempt(clock.sleep, 60)
        say("state", context.remote_pid == pid)
        context.close()
        """
    ) as session:
        for n in range(40):
            session.expect("ready")
            time.sleep(0.0002 * n)
            session.interrupt()
            outcome = session.line()
            # An interrupt between "ready" and the call ends the script's own code: not this test's matter.
            assert outcome[:2] == ["done", "KeyboardInterrupt"], outcome
            assert float(outcome[2]) < 30
        session.expect("state", True)
        session.finish()


@pytest.mark.parametrize("call", ["_deaths.hold_gil(60.0)", "_deaths.sleep_in_c_without_gil(60.0)"])
def test_the_second_interrupt_kills(call):
    with Session(
        f"""
        mine = list(range(1000))
        pid = context.remote_pid
        attempt(context.call, exec, deaf({call!r}), {{}})
        assert deaths.allocate(0) == 0
        say("state", context.remote_pid == pid, sum(mine))
        context.close()
        """
    ) as session:
        session.expect("ready")
        session.expect("inside")
        session.interrupt()
        hint = session.process.stderr.readline()  # comes a second later
        assert "interrupt again to kill" in hint
        session.interrupt()
        (took,) = session.expect("done", "KeyboardInterrupt")
        assert 1.0 < float(took) < 30
        session.expect("state", False, 499500)
        assert "was rolled back" in session.finish()


def test_interrupts_between_calls_harm_no_child():
    with Session(
        """
        pid = context.remote_pid
        kept = OrderedDict(a=1)
        for _ in range(5):
            attempt(time.sleep, 60)
        say("state", context.remote_pid == pid, kept["a"], deaths.allocate(0))
        context.close()
        """
    ) as session:
        for _ in range(5):
            session.expect("ready")
            time.sleep(0.05)
            session.interrupt()
            session.expect("done", "KeyboardInterrupt")
        session.expect("state", True, 1, 0)
        session.finish()


def test_a_terminals_interrupt_reaches_only_the_session():
    """Ctrl-C goes to the whole foreground process group; the child is not in it."""
    with Session(
        """
        pid = context.remote_pid
        attempt(time.sleep, 60)
        attempt(clock.sleep, 60)
        say("state", context.remote_pid == pid, deaths.allocate(0))
        context.close()
        """
    ) as session:
        for _ in range(2):
            session.expect("ready")
            time.sleep(0.2)
            os.killpg(session.process.pid, signal.SIGINT)
            session.expect("done", "KeyboardInterrupt")
        session.expect("state", True, 0)
        session.finish()


def test_an_interrupt_that_the_child_handles():
    """Code of the child that catches KeyboardInterrupt goes on; the session raises all the same."""
    with Session(
        """
        code = '''
        import time
        try:
            print("inside", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            caught.append(1)
        '''
        names = context.call(eval, "__import__('types').SimpleNamespace(caught=[])")
        attempt(context.call, exec, textwrap.dedent(code), {"caught": names.caught})
        say("state", len(names.caught))
        context.close()
        """
    ) as session:
        session.expect("ready")
        session.expect("inside")
        session.interrupt()
        session.expect("done", "KeyboardInterrupt")
        session.expect("state", 1)
        session.finish()


def test_an_interrupt_of_what_prints_faster_than_the_session_can():
    with Session(
        """
        class Slow:
            begun = False
            def write(self, text):
                if not self.begun:
                    self.begun = True
                    print("ready", file=out, flush=True)
                time.sleep(0.005)
            def flush(self):
                pass
        context.load_module("sys")
        pid, out = context.remote_pid, sys.stdout
        sys.stdout = Slow()
        try:
            context.call(exec, "while True: print('x' * 10000)", {})
        except KeyboardInterrupt:
            sys.stdout = out
        say("state", context.remote_pid == pid, deaths.allocate(0))
        context.close()
        """
    ) as session:
        session.expect("ready")
        time.sleep(0.5)  # there is a backlog
        session.interrupt()
        before = time.monotonic()
        session.expect("state", True, 0)
        assert time.monotonic() - before < 30
        session.finish()


def test_an_interrupt_in_a_callback():
    with Session(
        """
        functools = context.load_module("functools")
        pid = context.remote_pid
        attempt(functools.reduce, lambda a, b: (say("inside"), time.sleep(60)), [1, 2])
        say("state", context.remote_pid == pid, deaths.allocate(0))
        context.close()
        """
    ) as session:
        session.expect("ready")
        session.expect("inside")
        session.interrupt()
        session.expect("done", "KeyboardInterrupt")
        session.expect("state", True, 0)
        session.finish()


def test_other_handlers_run_in_the_wait(tmp_path):
    """A signal handler of the session runs while the child is in a C call, and may raise."""
    with Session(
        f"""
        class Alarm(Exception):
            pass
        def on_alarm(*_):
            raise Alarm
        def on_user(*_):
            os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), b"x")
        path = {str(tmp_path / "handled")!r}
        os.mkfifo(path)
        signal.signal(signal.SIGUSR1, on_user)
        signal.signal(signal.SIGALRM, on_alarm)
        # The child sends them, from inside of the call.
        names = {{"pid": os.getpid(), "path": path}}
        attempt(context.call, exec, "import os, signal, time; os.kill(pid, signal.SIGALRM); time.sleep(60)", names)
        code = '''
        import os, select, signal
        handled = os.open(path, os.O_RDWR)
        os.kill(pid, signal.SIGUSR1)
        print("handled", bool(select.select([handled], [], [], 20)[0]), flush=True)
        '''
        attempt(context.call, exec, textwrap.dedent(code), names)
        context.close()
        """
    ) as session:
        session.expect("ready")
        session.expect("done", "Alarm")
        session.expect("ready")
        session.expect("handled", True)
        session.expect("done", "None")
        session.finish()
