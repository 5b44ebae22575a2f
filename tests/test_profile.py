"""The extension loaded from an IPython profile, in terminal IPython and in a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

VICTIMS = Path(__file__).parent / "victims"

PIDS = "import os, victim_pkg._core; print('pids', os.getpid(), victim_pkg._core.pid())"


@pytest.fixture
def environment(tmp_path):
    """The environment of a session whose default profile is empty; write_profile() fills it."""
    search = os.pathsep.join([str(VICTIMS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": search, "IPYTHONDIR": str(tmp_path)}


@pytest.fixture
def write_profile(tmp_path):
    def write_profile(*lines):
        profile = tmp_path / "profile_default"
        profile.mkdir(exist_ok=True)
        lines = ["c = get_config()", "c.InteractiveShellApp.extensions = ['ipython_isolation']", *lines]
        (profile / "ipython_config.py").write_text("\n".join(lines) + "\n")

    return write_profile


def ipython(environment, code):
    """Run code in terminal IPython; return its output and its errors."""
    line = [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", "-c", code]
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
    line = [sys.executable, "-m", "IPython", "--colors=NoColor", "--no-banner", "--simple-prompt"]
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
    line = [sys.executable, "-m", "IPython", "--no-banner", "--Isolate.modules=victim_pkg", "-c", PIDS]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    here, there = pids_in(done.stdout)
    assert here != there


def test_kernel(environment, write_profile):
    write_profile("c.Isolate.modules = ['victim_pkg', 'not_there']")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment, stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        output = []
        reply = client.execute_interactive(
            PIDS, output_hook=lambda message: output.append(message["content"].get("text", "")), timeout=60
        )
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
    here, there = pids_in("".join(output))
    assert here != there
