"""A thousand inputs in one try/except loop, of which some crash: in a script and in a cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VICTIMS = str(Path(__file__).with_name("victims"))

SETUP = f"""
import os, sys
sys.path.insert(0, {VICTIMS!r})
"""

LOOP = """
import cv_module, _deaths
import numpy as np
from ipython_isolation import ProcessTerminationError
rng = np.random.default_rng(3)
inputs = [rng.integers(0, 255, (12 + i % 5, 14, 3), dtype=np.uint8) for i in range(1000)]
crashing = set(rng.choice(1000, 50, replace=False).tolist())
kinds = ("segfault", "abort", "stack_overflow", "fpe", "exit", "empty")
results, failed = {}, {}
for i, image in enumerate(inputs):
    try:
        if i in crashing:
            kind = kinds[i % len(kinds)]
            if kind == "empty":
                cv_module.grayscale(np.zeros((0, 0, 3), np.uint8)); cv_module.sobel_edges(np.zeros((0, 0), np.uint8))
                _deaths.abort()
            elif kind == "exit":
                _deaths.exit(3)
            else:
                getattr(_deaths, kind)()
        results[i] = np.asarray(cv_module.grayscale(image))
    except ProcessTerminationError as error:
        failed[i] = str(error)
right = 0
for i, result in results.items():
    want = (inputs[i].astype(int) @ [77, 150, 29] + 128) >> 8
    right += bool(np.array_equal(np.asarray(result), want))
summary = {"failed": sorted(failed) == sorted(crashing), "results": len(results), "right": right}
"""

SCRIPT = (
    SETUP
    + "import json\nfrom ipython_isolation import isolate\nisolate('cv_module', '_deaths')\n"
    + LOOP
    + "print('SUMMARY', json.dumps(summary))\n"
)

CELL = (
    SETUP
    + f"""
import json
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
shell.run_line_magic("load_ext", "ipython_isolation")
shell.run_line_magic("config", f"Isolate.rollback = {{os.environ['IPYTHON_ISOLATION_ROLLBACK']!r}}")
shell.run_line_magic("isolate", "cv_module _deaths")
outcome = shell.run_cell({LOOP!r})
outcome.raise_error()
print('SUMMARY', json.dumps(shell.user_ns["summary"]))
"""
)


# Without roll-back: two crashes without an object between them may share a line; a cell says it once.
@pytest.mark.parametrize(
    "program, rollback, said",
    [(SCRIPT, "off", range(45, 51)), (CELL, "off", range(1, 2)), (SCRIPT, "auto", [0]), (CELL, "auto", [0])],
    ids=["script", "cell", "script-rollback", "cell-rollback"],
)
def test_exactly_the_crashing_inputs_fail(program, rollback, said):
    pytest.importorskip("numpy")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "IPYTHON_ISOLATION_ROLLBACK": rollback},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(next(l for l in done.stdout.splitlines() if l.startswith("SUMMARY"))[8:])
    assert summary == {"failed": True, "results": 950, "right": 950}
    resets = [line for line in done.stderr.splitlines() if "was restarted" in line]
    assert len(resets) in said
