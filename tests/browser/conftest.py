"""A JupyterLab server, and pages of it in a headless Chromium, for tests that click as a user does.

`make test` does not collect these tests, since it must work without a browser: norecursedirs in pyproject.toml
has this directory, so that only one who names it (`pytest tests/browser`) gets them. `make browser` installs what
they need, and runs them. Where something is missing then, they fail; they are not skipped.

What is waited for are conditions of the page; nothing sleeps, and nothing is tried twice. A condition that does not
come within SECONDS fails the test, and build/browser/ has a picture of the page.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import VICTIMS, children, wait_until
from kernels import alive, session_environment
from playwright.sync_api import expect, sync_playwright

from .notebooks import SECONDS, Notebook, write

ROOT = Path(__file__).resolve().parents[2]
PICTURES_OF_FAILURES = ROOT / "build" / "browser"


def pytest_addoption(parser):
    parser.addoption(
        "--screenshots", action="store_true", help="only write the pictures of the documentation, docs/images/*.png"
    )


def pytest_ignore_collect(collection_path, config):
    """With --screenshots, what takes them and nothing else; without, all but that."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        if (collection_path.name == "test_screenshots.py") != config.getoption("--screenshots"):
            return True
    return None


# --- Processes -------------------------------------------------------------------------------------------


class Marked:
    """A variable for the environment of a program, by which all that it starts is found, orphans too."""

    def __init__(self, name):
        self.name, self.value = f"IPYTHON_ISOLATION_TEST_{name}", secrets.token_hex(8)

    def environment(self, environment):
        return {**environment, self.name: self.value}

    def processes(self):
        entry, found = f"{self.name}={self.value}".encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if entry in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                    found.append(int(pid))
            except OSError:
                continue
        return alive(found)


def commands(pids):
    """The command lines of the processes, for a message."""
    found = {}
    for pid in pids:
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def nothing_is_left_at_the_end():
    """The server, Chromium and what drives it, and all they have started, are gone after the last test."""
    before, before_shm = set(children()), set(os.listdir("/dev/shm"))
    yield
    gone = wait_until(lambda: not alive(set(children()) - before))
    assert gone, f"processes left: {commands(set(children()) - before)}"
    assert set(os.listdir("/dev/shm")) <= before_shm


@pytest.fixture(autouse=True)
def nothing_is_left(lab):
    """In place of the check of tests/conftest.py: after every test, its kernels end, and nothing is left of them.
    The server and Chromium live on, which starts helpers when it likes; these are looked at when all ends."""
    gone = wait_until(lambda: not lab.processes())  # a server that has just started looks for programs
    assert gone, f"started by the server: {commands(lab.processes())}"
    yield
    lab.end_kernels()


# --- The server ------------------------------------------------------------------------------------------


def read_json(path):
    """What a file holds, or None while it is not there or not complete."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Lab:
    """A running JupyterLab with directories and settings of its own.

    Attributes
    ----------
    work : Path
        What its file browser shows.
    prefix : Path
        Below it kernels may be installed.
    runtime : Path
        Where its kernels' connection files are.
    """

    def __init__(self, directory, *options):
        self.work = directory / "work"
        self.work.mkdir()
        self.prefix = directory / "prefix"
        self.log = directory / "server.log"
        self.token = secrets.token_hex(16)
        self.mark = Marked("SERVER")
        own = {
            f"{name}_DIR": str(directory / name.lower())
            for name in (
                *("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME"),
                *("JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES"),
            )
        }
        news = Path(own["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab/apputils-extension/notification.jupyterlab-settings")
        news.parent.mkdir(parents=True)
        news.write_text('{"checkForUpdates": false, "fetchNews": "false"}')
        environment = self.mark.environment(session_environment(directory, **own, NO_PROXY="127.0.0.1"))
        for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JUPYTER_TOKEN"):
            environment.pop(name, None)
        environment["JUPYTER_PATH"] = str(self.prefix / "share" / "jupyter")
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={self.work}"),
            f"--IdentityProvider.token={self.token}",
            # Nothing is asked of the network.
            *("--LabApp.extension_manager=readonly", "--LabApp.news_url=None"),
            "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
            *options,
        ]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.work, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.runtime = Path(own["JUPYTER_RUNTIME_DIR"])
        info = self.runtime / f"jpserver-{self.process.pid}.json"
        wait_until(lambda: read_json(info) or self.process.poll() is not None, SECONDS)
        if self.process.poll() is not None or not read_json(info):
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server does not start:\n{self.log.read_text()}")
        port = read_json(info)["port"]  # which is chosen by then, and listened to a little later
        assert wait_until(lambda: listens(port), SECONDS)
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, method="GET"):
        """The answer of the server's REST API."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return json.loads(answer.read() or "null")

    def processes(self):
        """The kernels and their children, orphans too: all that the server has started and that runs."""
        return [pid for pid in self.mark.processes() if pid != self.process.pid]

    def end_kernels(self):
        """As "Shut Down All Kernels" does it."""
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")
        gone = wait_until(lambda: not self.processes())
        assert gone, f"left by a kernel: {commands(self.processes())}"

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=SECONDS)
        gone = wait_until(lambda: not self.mark.processes())
        assert gone, f"left by the server: {commands(self.mark.processes())}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory, nothing_is_left_at_the_end):
    """A `Lab` with the demo notebook, which finds its library where it lies in the sources."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        (lab.work / "docs").mkdir()
        shutil.copy(ROOT / "docs" / "demo.ipynb", lab.work / "docs")
        (lab.work / "tests").mkdir()
        (lab.work / "tests" / "victims").symlink_to(VICTIMS)
        yield lab
    finally:
        lab.stop()


# --- The browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium(nothing_is_left_at_the_end):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "no chromium in PATH: `make browser` installs it, or says how"
    expect.set_options(timeout=SECONDS * 1000)
    mark = Marked("CHROMIUM")
    with sync_playwright() as playwright:
        # Its sandbox is not to be had as root.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"], env=mark.environment(os.environ)
        )
        yield browser
        browser.close()
    gone = wait_until(lambda: not mark.processes())
    assert gone, f"left by Chromium: {commands(mark.processes())}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "call":
        item.has_failed = report.failed
    return report


@pytest.fixture
def page(chromium, request):
    """A page that is blank; no script of JupyterLab may fail in it."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(SECONDS * 1000)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    if getattr(request.node, "has_failed", False):
        PICTURES_OF_FAILURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES_OF_FAILURES / f"{request.node.name}.png")
    context.close()
    assert not errors


@pytest.fixture
def open_notebook(lab, page):
    """A function that opens a notebook by clicks in the file browser; with sources, writes it before."""

    def open_one(path, *sources):
        if sources:
            write(lab.work / path, sources)
        page.goto(f"{lab.url}/lab?reset&token={lab.token}")
        return Notebook(page, lab.work, path)

    return open_one
