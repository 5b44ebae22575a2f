"""The extension loaded from an IPython profile, in terminal IPython and in a kernel."""

import subprocess
import sys

import pytest
from kernels import event_loop_of_jupyter, session_environment, start_kernel  # noqa: F401 (fixtures)

#: How a session starts; each takes long under the sanitizer, and runs no C that other tests do not.
pytestmark = pytest.mark.no_asan

NO_TITLE = "--TerminalInteractiveShell.term_title=False"  # IPython 8.5 writes it into a pipe too
PIDS = "import os, victim_pkg._core; print('pids', os.getpid(), victim_pkg._core.pid())"


@pytest.fixture
def environment(tmp_path):
    """The environment of a session whose default profile is empty; write_profile() fills it."""
    return session_environment(tmp_path)


@pytest.fixture
def write_profile(tmp_path):
    def write_profile(*lines):
        profile = tmp_path / "ipython" / "profile_default"
        profile.mkdir(parents=True, exist_ok=True)
        lines = ["c = get_config()", "c.InteractiveShellApp.extensions = ['ipython_isolation']", *lines]
        (profile / "ipython_config.py").write_text("\n".join(lines) + "\n")

    return write_profile


def ipython(environment, code):
    """Run code in terminal IPython; return its output and its errors."""
    line = [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", NO_TITLE, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def pids_in(output):
    """Return what PIDS printed."""
    (line,) = [line for line in output.splitlines() if line.startswith("pids ")]
    return line.split()[1:]


def test_terminal(environment, write_profile):
    write_profile("c.Isolate.modules = ['victim_pkg']")
    output, errors = ipython(environment, PIDS)
    here, there = pids_in(output)
    assert here != there
    assert errors == ""


def test_terminal_typed_into(environment, write_profile):
    write_profile()
    cells = f"%isolate victim_pkg\n{PIDS}\n%isolate\n%unload_ext ipython_isolation\n%isolate\n"
    line = [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", NO_TITLE, "--simple-prompt"]
    done = subprocess.run(line, env=environment, input=cells, capture_output=True, text=True, timeout=60)
    here, there = pids_in(done.stdout.replace("In [2]: ", ""))
    assert here != there
    assert "module      context  pid" in done.stdout
    assert "`%isolate` not found" in done.stdout + done.stderr


def test_a_module_that_does_not_exist_warns_and_the_session_starts(environment, write_profile):
    write_profile("c.Isolate.modules = ['not_there', 'a-b', 'victim_pkg']")
    output, errors = ipython(environment, PIDS)
    here, there = pids_in(output)
    assert here != there
    assert "%isolate: no module named 'not_there' is found here" in errors
    assert "%isolate: a-b is not isolated: " in errors
    assert "Traceback" not in errors


def test_the_command_line_names_modules_too(environment, write_profile):
    write_profile()
    line = [sys.executable, "-m", "IPython", "--no-banner", NO_TITLE, "--Isolate.modules=victim_pkg", "-c", PIDS]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    here, there = pids_in(done.stdout)
    assert here != there


def test_kernel(tmp_path, write_profile, start_kernel):
    write_profile("c.Isolate.modules = ['victim_pkg', 'not_there']")
    here, there = pids_in(start_kernel().run(PIDS).out)
    assert here != there


#: What a profile may have instead: its configuration, its startup file.
WAYS = {
    "a startup file": ([], "%load_ext ipython_isolation\n%isolate victim_pkg\n"),
    "a startup file that isolates": (["c.InteractiveShellApp.extensions = ['ipython_isolation']"], "%isolate victim_pkg\n"),
    "exec_lines": (["c.InteractiveShellApp.exec_lines = ['%load_ext ipython_isolation', '%isolate victim_pkg']"], None),
}


def _write_way(directory, way, module="victim_pkg"):
    lines, startup = WAYS[way]
    profile = directory / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    text = "\n".join(["c = get_config()", *lines]) + "\n"
    (profile / "ipython_config.py").write_text(text.replace("victim_pkg", module))
    if startup is not None:
        (profile / "startup" / "50-isolate.ipy").write_text(startup.replace("victim_pkg", module))


@pytest.mark.parametrize("way", WAYS)
def test_other_ways(tmp_path, environment, start_kernel, way):  # noqa: F811
    _write_way(tmp_path, way)
    output, errors = ipython(environment, PIDS)
    here, there = pids_in(output)
    assert here != there and errors == ""
    here, there = pids_in(start_kernel().run(PIDS).out)
    assert here != there


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_does_not_exist_there(tmp_path, environment, start_kernel, way):  # noqa: F811
    _write_way(tmp_path, way, "not_there")
    output, errors = ipython(environment, "print('started')")
    assert "started" in output
    assert "no module named 'not_there'" in output + errors
    assert start_kernel().run("1 + 1").value == "2"
