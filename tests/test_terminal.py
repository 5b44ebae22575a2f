"""Terminal IPython, typed into through a pseudo-terminal."""

import os
import re
import signal
import sys

import pexpect
import pytest
from conftest import wait_until
from kernels import session_environment, without_colors

SECONDS = 40
PROMPT = re.compile(r"In \[(\d+)\]: ")


class Terminal:
    """An IPython that has loaded the extension."""

    def __init__(self, directory):
        environment = session_environment(directory, TERM="dumb")
        command = ["-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor"]
        self.spawned = pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=SECONDS)
        self.spawned.expect(PROMPT)
        self.run("%load_ext ipython_isolation")

    def run(self, line, until=PROMPT):
        """Types a line: what appears until the next prompt."""
        self.spawned.sendline(line)
        return self.wait(until)

    def wait(self, until=PROMPT):
        self.spawned.expect(until)
        return without_colors(self.spawned.before)

    def close(self):
        self.spawned.sendline("exit()")
        self.spawned.expect(pexpect.EOF)
        self.spawned.close()


@pytest.fixture
def terminal(tmp_path):
    made = Terminal(tmp_path)
    yield made
    made.close()


def test_a_crash(terminal):
    terminal.run("%isolate talker")
    terminal.run("import talker; kept = [1, 2]")
    text = terminal.run("talker.die()")
    assert re.search(r"^-+> 1 talker\.die\(\)", text, re.M)
    assert "ProcessTerminationError: the isolated process (pid " in text and "SIGSEGV" in text
    assert "string_at" in text
    assert terminal.run("kept, talker.check(2)").split("\n")[-3].strip().endswith("([1, 2], 4)")


def test_the_table(terminal):
    terminal.run("%isolate talker")
    terminal.run("import talker; talker.check(1)")
    lines = terminal.run("%isolate").splitlines()
    header = next(line for line in lines if "module" in line)
    assert "roll-back" in header
    assert any(line.strip().startswith("talker") and "running" in line for line in lines)


def test_the_debugger_shows_the_childs_frames(terminal):
    terminal.run("%isolate statistics")
    terminal.run("import statistics")
    assert "StatisticsError" in terminal.run("statistics.mean([])")
    first = terminal.run("%debug", "ipdb> ")
    assert "statistics.py" in first and "mean requires at least one data point" in first  # its line of source
    stack = terminal.run("w", "ipdb> ")
    assert stack.index("statistics.mean([])") < stack.rindex("raise StatisticsError")
    assert "statistics.mean([])" in terminal.run("u", "ipdb> ")
    terminal.run("q")


def test_questions(terminal):
    terminal.run("%isolate shower")
    terminal.run("import shower")
    terminal.run("shower.ask('who? ')", r"who\? $")
    assert "'me'" in terminal.run("me")
    terminal.run("shower.ask_hidden()", "secret: ")
    text = terminal.run("hidden")
    assert text.count("hidden") == 1  # the value of the cell, and no echo


def test_control_c(terminal):
    terminal.run("%isolate talker")
    terminal.run("import talker")
    terminal.run("talker.work(1000)", "working")
    terminal.spawned.sendintr()
    assert "KeyboardInterrupt" in terminal.wait()
    assert re.search(r"Out\[\d+\]: 4\b", terminal.run("talker.check(2)"))


def test_display(terminal):
    terminal.run("%isolate shower")
    terminal.run("import shower")
    text = terminal.run("shower.html()")
    assert re.search(r"before\s+<IPython.core.display.HTML object>\s+between", text)
    assert "Html()" in terminal.run("shower.Html()")


def test_the_terminal_goes_away(tmp_path):
    made = Terminal(tmp_path)
    made.run("%isolate talker")
    made.run("import talker; talker.check(1)")
    child = int(re.findall(r"\b\d+\b", made.run("talker.pid()").split("Out")[-1])[-1])
    os.kill(made.spawned.pid, signal.SIGHUP)
    made.spawned.expect(pexpect.EOF)
    made.spawned.close()
    assert wait_until(lambda: not os.path.exists(f"/proc/{child}"))
