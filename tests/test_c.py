"""The C tests: every program of build/c-tests/, which `make c-tests` builds."""

import os
import re
import subprocess
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).resolve().parent.parent / "build" / "c-tests"
# A name with a leading underscore is a helper of the tests, such as _supervisor.
PROGRAMS = sorted(
    path
    for path in (DIRECTORY.iterdir() if DIRECTORY.is_dir() else ())
    if path.is_file() and os.access(path, os.X_OK) and not path.name.startswith(("_", "."))
)


def test_there_are_c_tests():
    assert PROGRAMS, f"no programs in {DIRECTORY}: run `make c-tests`"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_c(program):
    # To a file, not a pipe: a process left behind would hold a pipe open, and hide the failure.
    result_path = program.with_name(f".{program.name}.{os.getpid()}.log")
    try:
        with result_path.open("w") as output:
            status = subprocess.run(
                [program], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=300
            ).returncode
        text = result_path.read_text(errors="replace")
    finally:
        result_path.unlink(missing_ok=True)
    assert status == 0, f"exit status {status}\n{text}"
    summary = re.search(r"^(\d+) passed, 0 failed$", text, re.MULTILINE)
    assert summary and int(summary[1]) > 0, text
