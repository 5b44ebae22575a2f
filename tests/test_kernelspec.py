"""The kernel "Python 3 (isolated)": installed by `python -m ipython_isolation`, and started by Jupyter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernels import event_loop_of_jupyter, start_kernel  # noqa: F401 (fixtures)

from ipython_isolation.install import InstallError, install, uninstall

SOURCE = Path(__file__).parent.parent / "kernelspec"


def command(*arguments):
    """Run the command line, and return its exit status, output and errors."""
    line = [sys.executable, "-m", "ipython_isolation", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def spec_in(directory):
    return json.loads((directory / "kernel.json").read_text())


@pytest.fixture
def start(tmp_path, start_kernel):
    """Start a kernel that is installed below tmp_path, by its name."""
    return lambda name: start_kernel(name=name, specs=tmp_path / "share" / "jupyter" / "kernels")


def test_the_shipped_kernelspec():
    assert {file.name for file in SOURCE.iterdir()} == {
        "kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"
    }  # fmt: skip
    spec = spec_in(SOURCE)
    assert spec["display_name"] == "Python 3 (isolated)"
    assert spec["argv"][0] == "python"  # Jupyter replaces it by its own interpreter
    for size in (32, 64):
        header = (SOURCE / f"logo-{size}x{size}.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert header[16:24] == size.to_bytes(4, "big") * 2


def test_install_writes_a_kernel_for_this_interpreter(tmp_path):
    status, output, errors = command("install", "--prefix", tmp_path, "--isolate", "zoo", "victim_pkg")
    directory = tmp_path / "share" / "jupyter" / "kernels" / "python3-isolated"
    assert (status, errors) == (0, "")
    assert output.splitlines() == [
        f"Installed the kernel python3-isolated in {directory}",
        f"It runs {sys.executable} and isolates zoo, victim_pkg",
        f"Jupyter does not look there by itself: set JUPYTER_PATH={tmp_path / 'share' / 'jupyter'}",
    ]
    shipped, spec = spec_in(SOURCE), spec_in(directory)
    modules = ["--Isolate.modules=zoo", "--Isolate.modules=victim_pkg"]
    assert spec["argv"] == [sys.executable, *shipped["argv"][1:], *modules]
    assert spec["display_name"] == "Python 3 (isolated)"
    assert {file.name for file in directory.iterdir()} == {file.name for file in SOURCE.iterdir()}


def test_name_and_display_name(tmp_path):
    status, output, _ = command("install", "--prefix", tmp_path, "--name", "cv", "--display-name", "CV lab")
    assert status == 0
    assert "isolates what you name with %isolate\n" in output
    assert spec_in(tmp_path / "share/jupyter/kernels/cv")["display_name"] == "CV lab"


def test_install_again_replaces(tmp_path):
    install(prefix=str(tmp_path), modules=["zoo"])
    directory = install(prefix=str(tmp_path))
    assert not [argument for argument in spec_in(directory)["argv"] if "Isolate.modules" in argument]


def test_user(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    status, output, _ = command("install", "--user")
    assert status == 0 and "JUPYTER_PATH" not in output
    assert (tmp_path / "data/kernels/python3-isolated/kernel.json").is_file()
    assert command("uninstall", "--user")[0] == 0
    assert not (tmp_path / "data/kernels/python3-isolated").exists()


def test_uninstall(tmp_path):
    directory = install(prefix=str(tmp_path), name="cv")
    status, output, errors = command("uninstall", "--prefix", tmp_path, "--name", "cv")
    assert (status, output, errors) == (0, f"Removed {directory}\n", "")
    assert not directory.exists()


def test_kernels_of_others_are_left_alone(tmp_path):
    other = tmp_path / "share/jupyter/kernels/python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["python", "-m", "ipykernel_launcher"]}')
    for call in (install, uninstall):
        with pytest.raises(InstallError, match="is not a kernel of ipython_isolation; choose another --name"):
            call(prefix=str(tmp_path), name="python3")
    assert (other / "kernel.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: install|uninstall"),
        (["install"], "one of the arguments --user --sys-prefix --prefix is required"),
        (["install", "--user", "--sys-prefix"], "not allowed with"),
        (["install", "--prefix", "{tmp}", "--isolate", "a-b"], "'a-b' is not a module name"),
        (["install", "--prefix", "{tmp}", "--name", "a b"], "Invalid kernel name 'a b'"),
        (["install", "--prefix", "/proc/nowhere"], "try --user, or a --prefix that you may write to"),
        (["uninstall", "--prefix", "{tmp}"], "no kernel 'python3-isolated' in"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, message):
    status, output, errors = command(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert status != 0 and output == ""
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors


def test_a_kernel_started_by_the_spec(tmp_path, start):
    install(prefix=str(tmp_path), modules=["victim_pkg"])
    kernel = start("python3-isolated")
    here, there = kernel.run("import os, victim_pkg._core\nprint(os.getpid(), victim_pkg._core.pid())").out.split()
    assert int(here) == kernel.pid != int(there)
    pid = kernel.run("from ipython_isolation import default_context\ndefault_context().remote_pid").value
    assert pid == there
    assert kernel.run("%config Isolate.modules").value == "['victim_pkg']"
    assert kernel.run("%isolate").value.split()[8:12] == ["victim_pkg", "default", there, "running"]


def test_a_crash_in_that_kernel(tmp_path, start):
    install(prefix=str(tmp_path), modules=["victim_pkg"])
    kernel = start("python3-isolated")
    kernel.run("import victim_pkg._core as core\nfrom ipython_isolation import import_isolated")
    kernel.run("x = list(range(1000)); core.pid()")
    error = kernel.run_any("import_isolated('os').abort()").error
    assert error["ename"] == "ProcessTerminationError" and "earlier are kept" in error["evalue"]
    cell = kernel.run("print(sum(x), core.add(1, 2))")
    assert cell.out == "499500 3\n"
    assert cell.err == ""


def test_a_failing_load_is_loud(tmp_path):
    """The kernel says why and ends, instead of running without isolation unnoticed."""
    directory = install(prefix=str(tmp_path))
    argv = [argument.replace("{connection_file}", str(tmp_path / "c.json")) for argument in spec_in(directory)["argv"]]
    # Half installed. Not by a package of that name on PYTHONPATH: an editable install is found before it.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ipython_isolation._core'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode != 0
    assert "import of ipython_isolation._core halted" in done.stderr
