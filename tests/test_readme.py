"""Every example of the README, executed in a fresh interpreter beside the victims it names.

```python and ```ipython blocks run; a ```text block after one is what it must print (`...` stands for anything).
Of ```sh blocks, make's targets must exist and the installation of the kernel is run.
"""

import ctypes
import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import VICTIMS

libc = ctypes.CDLL(None)
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
NOT_ROOT = "This script must be run with superuser privileges\n"

# Cells are separated by blank lines, and a cell that raises does not end the session.
RUN_CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("xmode", "Minimal")
sys.stdout.flush()
print("=" * 20)
for cell in open(sys.argv[1]).read().split("\\n\\n"):
    shell.run_cell(cell)
shell.run_line_magic("unload_ext", "ipython_isolation")
"""


def blocks():
    """(language, code, following text block or None, line) for each fenced block of the README."""
    found = [
        (m[1], m[2], README[: m.start()].count("\n") + 1) for m in re.finditer(r"(?ms)^```(\w+)\n(.*?)^```$", README)
    ]
    for (language, code, line), (after, expected, _) in zip(found, [*found[1:], ("", None, 0)]):
        if language != "text":
            yield language, code, expected if after == "text" else None, line


def examples(*languages):
    return [
        pytest.param(code, expected, id=f"line {line}")
        for language, code, expected, line in blocks()
        if language in languages and "get_config()" not in code
    ]


def run(arguments, tmp_path, preexec_fn=None):
    environ = os.environ | {"IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path), "NO_COLOR": "1"}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=VICTIMS,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        preexec_fn=preexec_fn,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(expected, got):
    checker = doctest.OutputChecker()
    assert checker.check_output(expected, got, doctest.ELLIPSIS), f"expected\n{expected}\ngot\n{got}"


def test_all_languages_are_handled():
    assert {language for language, *_ in blocks()} == {"python", "ipython", "sh"}
    assert README.count("```") == 2 * len(re.findall(r"(?m)^```\w+$", README))
    assert len(examples("python")) >= 6


@pytest.mark.parametrize("code, expected", examples("python"))
def test_python(code, expected, tmp_path):
    if "os.chroot" in code and os.geteuid() != 0:
        expected = NOT_ROOT
    assert expected is not None, "an example says what it prints"
    check(expected, run(["-c", code], tmp_path))


@pytest.mark.parametrize("code, expected", examples("ipython"))
def test_ipython(code, expected, tmp_path):
    (tmp_path / "cells").write_text(code)
    got = run(["-c", RUN_CELLS, str(tmp_path / "cells")], tmp_path).partition("=" * 20 + "\n")[2]
    got = re.sub(r"\x1b\[[\d;]*m", "", got)
    assert got.count("Error") == 1, got
    check(expected, got)


def without_chroot():
    """In a process about to be executed: root, too, may not call chroot(). Others may not anyway."""
    PR_CAPBSET_DROP, CAP_SYS_CHROOT = 24, 18
    libc.prctl(PR_CAPBSET_DROP, CAP_SYS_CHROOT, 0, 0, 0)


def test_the_jail_without_privileges(tmp_path):
    (code,) = [code for _, code, *_ in blocks() if "os.chroot" in code]
    assert run(["-c", code], tmp_path, without_chroot) == NOT_ROOT


def test_configuration(tmp_path):
    (code,) = [code for _, code, *_ in blocks() if "get_config()" in code]
    profile = tmp_path / "profile_default"
    profile.mkdir()
    (profile / "ipython_config.py").write_text(code)
    program = "import zlib, ipython_isolation; print(ipython_isolation.isproxy(zlib), zlib.crc32(b'a'))"
    got = run(["-m", "IPython", "--simple-prompt", "--no-banner", "-c", program], tmp_path)
    assert got.splitlines()[-1] == "True 3904355907"


def test_commands(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    for language, code, *_ in blocks():
        for line in code.splitlines() if language == "sh" else ():
            match shlex.split(line):
                case ["make", target]:
                    assert re.search(rf"(?m)^([\w -]+ )?{target}( [\w -]+)?:", makefile), line
                case ["python", "-m", "ipython_isolation", "replay", "FILE", *options]:
                    usage = run(["-m", "ipython_isolation", "replay", "--help"], tmp_path)
                    assert all(option in usage for option in options)
                case ["python", *arguments]:
                    assert "python3-isolated" in run(arguments, tmp_path)
                case ["pip", "install", "."]:
                    pass  # what the wheel holds is tested with the kernelspec
                case _:
                    pytest.fail(f"no check for {line!r}")


def test_the_figures_are_those_of_the_benchmark():
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    try:
        import readme_table
    finally:
        sys.path.pop(0)
    assert readme_table.table() in README


def test_the_protocol_document_lists_the_operations():
    table = (ROOT / "ext" / "ops.def").read_text()
    rows = re.findall(r'(?m)^(REQUEST|EVENT)\(\w+, "(\w+)".*?/\* (.*?) \*/', table)
    assert len(rows) > 10
    document = (ROOT / "docs" / "protocol.md").read_text()
    for number, (kind, name, body) in enumerate(rows):
        assert f"| {number} | `{name}` | {kind.lower()} | {body} |" in document
