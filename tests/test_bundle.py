"""Crash bundles: the call that killed a child, written down, and made again."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ipython_isolation import IsolationContext, ProcessTerminationError, bundle

VICTIMS = str(Path(__file__).with_name("victims"))


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHON_ISOLATION_BUNDLES", str(tmp_path / "crashes"))
    return tmp_path / "crashes"


@pytest.fixture
def context(where):
    with IsolationContext(restart="auto", name="test") as made:
        yield made


def die(call, *args, **kwargs):
    with pytest.raises(ProcessTerminationError) as caught:
        call(*args, **kwargs)
    return caught.value


def command(*args):
    environment = {**os.environ, "PYTHONPATH": VICTIMS}
    return subprocess.run(
        [sys.executable, "-m", "ipython_isolation", "replay", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )


def test_a_function_with_arrays_as_they_were_before(context, where):
    np = pytest.importorskip("numpy")
    victim = context.load_module("deaths")
    array = np.arange(10.0)
    error = die(victim.spoil_and_die, array, "word", twice=True)
    assert list(array) == list(range(10))  # what the call had done to it is not here
    assert Path(error.bundle).parent == where and error.unreplayable is None
    assert error.bundle in str(error) and "replay FILE" in error.report()
    content = bundle.read(error.bundle)
    assert (content["name"], content["method"], content["reason"]) == ("deaths.spoil_and_die", None, None)
    (saved, word), kwargs = pickle.loads(content["arguments"])
    assert list(saved) == list(range(10)) and (word, kwargs) == ("word", {"twice": True})
    assert error.summary in content["report"]
    again = die(bundle.replay, error.bundle)
    assert (again.signal, again.operation, again.arguments) == (error.signal, error.operation, error.arguments)


def test_the_command(context, where):
    error = die(context.load_module("deaths").spoil_and_die, bytearray(4), "word")
    done = command(error.bundle)
    assert done.returncode == 1 and "SIGSEGV" in done.stdout and "deaths.spoil_and_die" in done.stdout, done
    done = command("--here", error.bundle)
    assert done.returncode == -11 and "Segmentation fault" in done.stderr, done
    done = command("--show", error.bundle)
    assert done.returncode == 0 and "replay: possible" in done.stdout and error.summary in done.stdout, done


@pytest.mark.no_asan  # the tools themselves would run under it
@pytest.mark.parametrize("tool", ["gdb", "valgrind"])
def test_under_a_tool(context, tool, where):
    import shutil

    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    error = die(context.load_module("_deaths").segfault)
    environment = {**os.environ, "PYTHONPATH": VICTIMS, "PAGER": "cat"}
    done = subprocess.run(
        [sys.executable, "-m", "ipython_isolation", "replay", f"--{tool}", error.bundle],
        capture_output=True,
        text=True,
        env=environment,
        input="bt 2\nkill\nquit\n",
        timeout=120,
    )
    assert "deaths_segfault" in done.stdout + done.stderr, done


@pytest.mark.usefixtures("affordable")
def test_a_method_of_an_object_of_the_child(context, where):
    """The frozen copy tells what the object was; the file is there once it has taken over."""
    victim = context.load_module("deaths")
    fragile = victim.Fragile([1, 2])
    fragile.add(3)
    error = die(fragile.die, 5)
    assert error.bundle is not None and not os.path.exists(error.bundle)
    assert fragile.items[2] == 3  # the copy takes over
    content = bundle.read(error.bundle)
    assert (content["name"], content["method"], content["reason"]) == ("deaths.Fragile.die", "die", None)
    again = die(bundle.replay, error.bundle)
    assert again.exit_code == 5 + 3


def test_an_import(context, where):
    error = die(context.load_module, "dies_at_import")
    assert bundle.read(error.bundle)["name"] == "dies_at_import"
    done = command(error.bundle)
    assert done.returncode == 1 and "SIGSEGV" in done.stdout, done


def test_a_call_that_does_not_die_again(context, where, tmp_path):
    marker = tmp_path / "marker"
    marker.touch()
    error = die(context.load_module("deaths").die_if_there, str(marker))
    marker.unlink()
    done = command(error.bundle)
    assert (done.returncode, done.stdout.strip()) == (0, "replay: deaths.die_if_there returned")


@pytest.mark.parametrize(
    "argument, reason",
    [
        (lambda: (lambda: 1), "cannot be pickled"),
        (lambda: bytes(bundle.SIZE_MOST + 1), "take more than 32 MB"),
    ],
    ids=["lambda", "big"],
)
def test_what_cannot_be_replayed_says_why(context, where, argument, reason):
    error = die(context.load_module("deaths").spoil_and_die, argument(), "word")
    assert reason in error.unreplayable and reason in error.report() and error.bundle not in str(error)
    done = command(error.bundle)
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, done


@pytest.mark.parametrize("kind", ["none", "text", "code", "version"])
def test_files_that_are_no_bundles(tmp_path, kind):
    path = tmp_path / "x.crash"
    content = {
        "text": b"hello",
        "code": pickle.dumps(os.system),
        "version": pickle.dumps({"report": "", "version": 0}),
    }
    if kind in content:
        path.write_bytes(content[kind])
    done = command(path)
    assert done.returncode == 2 and done.stderr.startswith(f"replay: {path}") and done.stderr.count("\n") == 1, done


def test_only_the_newest_are_kept(context, where, monkeypatch):
    monkeypatch.setattr(bundle, "COUNT_MOST", 3)
    deaths = context.load_module("_deaths")
    paths = [Path(die(deaths.segfault).bundle) for _ in range(5)]
    assert sorted(where.iterdir()) == paths[2:]
    assert where.stat().st_mode & 0o077 == 0


def test_switched_off(where):
    with IsolationContext(restart="auto", bundles="off") as context:
        error = die(context.load_module("_deaths").segfault)
    assert error.bundle is None and not where.exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with IsolationContext(restart="auto", bundles=tmp_path / "file" / "crashes") as context:
        error = die(context.load_module("_deaths").segfault)
    assert error.bundle is None and "no crash bundle could be written" in error.unreplayable
