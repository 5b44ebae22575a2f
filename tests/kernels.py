"""Real kernels for tests: started as Jupyter starts them, and what they say told apart by cell."""

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_core.utils import ensure_event_loop
from traitlets.config import Config

from conftest import VICTIMS, children, wait_until

SECONDS = 40  # less than a test may take, so that what is missing is said
#: For a kernel, what the fixture `affordable` is for the tests' own process.
AFFORDABLE = "from ipython_isolation import rollback\nrollback._CHEAP = rollback._CREDIT = 60"


def session_environment(directory, **more):
    """The environment of a session that finds the victims and no configuration of the user's."""
    search = os.pathsep.join([VICTIMS, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search, "IPYTHONDIR": str(Path(directory) / "ipython"), **more}
    environment.pop("PYTEST_CURRENT_TEST", None)  # under it, ipykernel captures nothing that C prints
    return environment


@contextlib.contextmanager
def sockets_of_a_kernel():
    """Configuration of a kernel manager whose kernel listens at sockets in a directory of its own.

    By default it would be at TCP ports, which jupyter_client finds free and the kernel takes only when it runs:
    in between, a kernel of another test may be given the same.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-") as directory:  # a short path: the system allows 107 bytes
        yield Config(KernelManager={"transport": "ipc", "ip": f"{directory}/socket"})
        assert not os.listdir(directory)  # jupyter_client has removed them


@dataclass
class Cell:
    """What one cell has brought so far.

    Attributes
    ----------
    outputs : list of (str, object)
        In order: ("stdout" or "stderr", text), ("data" or "update", MIME bundle), ("clear", whether it waits) or
        ("error", message).
    error : dict or None
        The content of the error message.
    """

    outputs: list = field(default_factory=list)
    error: dict = None
    idle: bool = False

    def text(self, *streams):
        return "".join(text for kind, text in self.outputs if kind in (streams or ("stdout",)))

    @property
    def out(self):
        return self.text("stdout")

    @property
    def err(self):
        return self.text("stderr")

    @property
    def value(self):
        """The repr of the cell's last expression."""
        return next(data["text/plain"] for kind, data in self.outputs if kind == "data")


class Kernel:
    """A running kernel.

    Parameters
    ----------
    directory : path
        For its IPython profile.
    specs : path or None
        Where kernelspecs lie; without it, ipykernel of this interpreter runs, whatever is installed.
    """

    def __init__(self, directory, *, name="python3", specs=None):
        found = KernelSpecManager(kernel_dirs=[] if specs is None else [str(specs)])
        self.sockets = sockets_of_a_kernel()
        self.manager = KernelManager(kernel_name=name, kernel_spec_manager=found, config=self.sockets.__enter__())
        self.cells = {}
        self.manager.start_kernel(
            env=session_environment(directory), cwd=str(directory), extra_arguments=["--log-level=ERROR"]
        )
        self._connect()

    def _connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    @property
    def pid(self):
        return self.manager.provisioner.pid

    def children(self):
        return children(self.pid)

    def send(self, code, allow_stdin=False, silent=False):
        """Queues a cell, or, silent, what a front-end asks by itself between two of them: its id."""
        # ipykernel 6 aborts what comes within moments of a cell that raised, unless it is told not to.
        message = self.client.execute(code, silent=silent, allow_stdin=allow_stdin, stop_on_error=False)
        self.cells[message] = Cell()
        return message

    def _receive(self):
        message = self.client.get_iopub_msg(timeout=SECONDS)
        cell = self.cells.get(message["parent_header"].get("msg_id"))
        if cell is None:
            return
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            cell.outputs.append((content["name"], content["text"]))
        elif kind in ("execute_result", "display_data"):
            cell.outputs.append(("data", content["data"]))
        elif kind == "update_display_data":
            cell.outputs.append(("update", content["data"]))
        elif kind == "clear_output":
            cell.outputs.append(("clear", content["wait"]))
        elif kind == "error":
            cell.error = content
            cell.outputs.append(("error", f"{content['ename']}: {content['evalue']}"))
        elif kind == "status" and content["execution_state"] == "idle":
            cell.idle = True

    def wait(self, message, text=None):
        """Waits until the cell is done or, given a text, until it has been printed: the cell."""
        cell = self.cells[message]
        while not (cell.idle if text is None else text in cell.text("stdout", "stderr")):
            self._receive()
        return cell

    def run_any(self, code):
        """Runs a cell that may raise."""
        return self.wait(self.send(code))

    def run(self, code):
        """Runs a cell that must not raise."""
        cell = self.run_any(code)
        assert cell.error is None, "\n".join(cell.error["traceback"])
        return cell

    def run_asked(self, code, answers):
        """Runs a cell that asks, and answers: the cell. `asked` is then a list of (prompt, whether it is hidden)."""
        message, self.asked = self.send(code, allow_stdin=True), []
        for answer in answers:
            content = self.client.get_stdin_msg(timeout=SECONDS)["content"]
            self.asked.append((content["prompt"], content["password"]))
            self.client.input(answer)
        cell = self.wait(message)
        assert cell.error is None, "\n".join(cell.error["traceback"])
        return cell

    def restart(self):
        self.client.stop_channels()
        self.manager.restart_kernel(now=False)
        self._connect()

    def stop(self, now=True):
        """Ends the kernel; nothing that it started may be left."""
        pids = self.children()
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)
        self.manager.cleanup_resources()
        self.sockets.__exit__(None, None, None)
        assert wait_until(lambda: not alive(pids)), f"left by the kernel: {alive(pids)}"


def alive(pids):
    """Those of the processes that run, zombies not counted."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def without_colors(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(scope="session")
def event_loop_of_jupyter():
    """jupyter_client keeps one event loop for good: made before, and closed after, all leak checks."""
    loop = ensure_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    yield loop
    loop.close()


@pytest.fixture
def start_kernel(tmp_path, event_loop_of_jupyter):
    """A function that starts a `Kernel`."""
    kernels = []

    def start(**options):
        kernels.append(Kernel(tmp_path, **options))
        return kernels[-1]

    yield start
    for kernel in kernels:
        if kernel.manager.has_kernel:
            kernel.stop()


@pytest.fixture
def kernel(start_kernel):
    """A kernel that has loaded the extension."""
    kernel = start_kernel()
    kernel.run("%load_ext ipython_isolation\nimport os, sys")
    return kernel


def run_python(directory, code, *, command=(sys.executable,), **options):
    """Runs code in a process of its own, as `python -c` does: the completed process."""
    import subprocess

    return subprocess.run(
        [*command, "-c", code],
        env=session_environment(directory),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        **options,
    )
