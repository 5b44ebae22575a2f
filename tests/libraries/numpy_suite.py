"""NumPy's own tests with numpy isolated: how many of those that pass in-process also pass behind proxies?

    python numpy_suite.py [FILE ...]       # e.g. _core/tests/test_numeric.py; by default the files in FILES
        --docs                             # ... and write the table into docs/libraries.md
        --show                             # ... and list what is lost, with the error
        -k EXPRESSION                      # only these tests, as pytest takes it

Each test file of the installed numpy is copied, so that it is a module of this process and not part of the isolated
package, and run by pytest in a fresh interpreter with a time limit: first as it is, then with numpy, and nothing else,
isolated. What was not reached when the time is over counts as lost. Results go to build/numpy-suite/.
"""

import argparse
import collections
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "numpy-suite" / ("%d.%d" % sys.version_info[:2])
NUMPY = Path(importlib.util.find_spec("numpy").origin).parent

FILES = """
    _core/tests/test_numeric.py _core/tests/test_multiarray.py _core/tests/test_umath.py _core/tests/test_ufunc.py
    _core/tests/test_dtype.py _core/tests/test_indexing.py _core/tests/test_scalarmath.py _core/tests/test_shape_base.py
    _core/tests/test_einsum.py _core/tests/test_arrayprint.py _core/tests/test_records.py _core/tests/test_numerictypes.py
    _core/tests/test_scalar_methods.py _core/tests/test_scalarinherit.py _core/tests/test_errstate.py
    _core/tests/test_function_base.py _core/tests/test_item_selection.py _core/tests/test_datetime.py
    lib/tests/test_function_base.py lib/tests/test_arraysetops.py lib/tests/test_index_tricks.py
    lib/tests/test_nanfunctions.py lib/tests/test_shape_base.py lib/tests/test_stride_tricks.py lib/tests/test_io.py
    lib/tests/test_twodim_base.py lib/tests/test_type_check.py lib/tests/test_histograms.py lib/tests/test_arraypad.py
    linalg/tests/test_linalg.py fft/tests/test_pocketfft.py random/tests/test_generator_mt19937.py
    random/tests/test_random.py ma/tests/test_core.py polynomial/tests/test_polynomial.py matrixlib/tests/test_defmatrix.py
""".split()


def read(path):
    """The rows of a result file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


class Recorder:
    """The pytest plugin of one run: a JSON line for each test, written as soon as it is known."""

    def __init__(self, path):
        # What an earlier run over the same file had got to, when one of the tests ended it.
        self.done = {row.get("test") or row.get("start") for row in read(path)}
        self.file = open(path, "a")
        self.errors = {}
        self.passed = set()

    def write(self, **row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_logstart(self, nodeid):
        self.write(start=nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", error=str(report.longrepr)[-2000:])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.errors[report.nodeid] = crash.message if crash is not None else str(report.longrepr)[-500:]
        if report.when == "teardown":
            failed = report.nodeid in self.errors
            passed = not failed and report.nodeid in self.passed
            self.write(
                test=report.nodeid,
                outcome="failed" if failed else "passed" if passed else "skipped",
                error=self.errors.get(report.nodeid, "")[:2000],
            )
        elif report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            self.passed.add(report.nodeid)


def run_here(file, result, isolated, arguments):
    """In a process of its own: run pytest over one copied file."""
    import pytest

    requests = None
    if isolated:
        import ipython_isolation

        numpy = ipython_isolation.import_isolated("numpy")
        info = ipython_isolation.default_context().info
        if not ipython_isolation.isproxy(numpy) or info()["pid"] in (None, os.getpid()):
            sys.exit("numpy is not isolated")
        requests = info()["requests"]
    recorder = Recorder(result)
    options = ["-q", "-p", "no:cacheprovider", "-o", "timeout=60", "--tb=short"]
    pytest.main([*options, "--rootdir", str(file.parent), "--confcutdir", str(file.parent), "-c", "/dev/null", *arguments, str(file)], plugins=[recorder])
    recorder.write(requests=None if requests is None else info()["requests"] - requests)
    sys.stdout.flush()
    os._exit(0)


def copied(name):
    """The copy of one of numpy's test files, with the data files and the conftest that it wants beside it."""
    folder = BUILD / "copies" / name.removesuffix(".py").replace("/", ".")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = NUMPY / name
    shutil.copy(source, folder)
    shutil.copy(NUMPY / "conftest.py", folder)
    if (source.parent / "data").is_dir():
        shutil.copytree(source.parent / "data", folder / "data")
    return folder / source.name


def run(name, isolated, limit, arguments=()):
    """Run one file in a fresh interpreter.

    Parameters
    ----------
    name : str
        The test file, below the package's directory.
    isolated : bool
    limit : float
        Seconds.
    arguments : sequence of str
        For pytest.

    Returns
    -------
    tests : dict of str to dict
        ``outcome`` and ``error`` of each test that was run.
    ended : str or None
        How the run ended before its end, if it did.
    """
    file = copied(name)
    result = file.with_name("result.jsonl")
    command = [sys.executable, str(Path(__file__).resolve()), "--here", str(file), str(result), str(int(isolated)), *arguments]
    log = file.with_name("log-isolated" if isolated else "log-plain")
    log.write_text("")
    ended, deadline, done = None, time.monotonic() + limit, -1
    while True:
        with open(log, "a") as output:
            process = subprocess.Popen(
                command, cwd=file.parent, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            status = process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            status, ended = 0, f"{limit:.0f} s are over"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        rows = read(result)
        if status == 0:
            break
        # The interpreter died in a test: that one is lost, the run goes on with the next.
        if len(rows) == done or not rows:
            ended = f"exit status {status}"
            break
        done = len(rows)
        last = [row["start"] for row in rows if "start" in row][-1:]
        if last and last[0] not in {row.get("test") for row in rows}:
            with open(result, "a") as file_:
                error = f"the interpreter ended: {status}"
                file_.write(json.dumps(dict(test=last[0], outcome="failed", error=error)) + "\n")
    tests = {row["test"].rpartition(".py::")[2]: row for row in rows if "test" in row}
    requests = [row["requests"] for row in rows if "requests" in row]
    if isolated and ended is None and done == -1 and requests and requests[0] < len(tests) / 2:
        sys.exit(f"{name}: {requests[0]} requests for {len(tests)} tests; not run in the child")
    return tests, ended


def compare(name, limit, arguments=()):
    """Both runs of one file.

    Returns
    -------
    dict
        ``file``, ``total`` (passing in-process), ``kept``, ``lost`` (dict of test to error) and ``ended``.
    """
    cache = BUILD / "plain" / (name.replace("/", ".") + ".json")
    if cache.exists() and not arguments:
        base = set(json.loads(cache.read_text()))
    else:
        tests, _ = run(name, False, limit, arguments)
        base = {test for test, row in tests.items() if row["outcome"] == "passed"}
        if base and not arguments:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(sorted(base)))
    tests, ended = run(name, True, limit, arguments)
    lost = {}
    collected = [row["error"] for row in tests.values() if row["test"].endswith(".py")]
    for test in sorted(base):
        row = tests.get(test)
        if row is None:
            lost[test] = ended or (f"not collected: {collected[0]}" if collected else "not collected under this name")
        elif row["outcome"] != "passed":
            lost[test] = row["error"] or row["outcome"]
    return dict(file=name, total=len(base), kept=len(base) - len(lost), lost=lost, ended=ended)


def reason(error):
    """An error without what differs from test to test."""
    lines = error.strip().splitlines()
    last = lines[0] if lines else "?"
    return re.sub(r"0x[0-9a-f]+|\d+", "N", last)[:150]


def write_docs(rows):
    """The table of docs/libraries.md, from the rows of all files."""
    page = ROOT / "docs" / "libraries.md"
    kept, total = sum(row["kept"] for row in rows), sum(row["total"] for row in rows)
    lines = ["| file | kept | of |", "| --- | ---: | ---: |"]
    lines += [f"| `{row['file']}` | {row['kept']} | {row['total']} |" for row in rows]
    lines += [f"| **all** ({kept / max(total, 1):.1%}) | {kept} | {total} |"]
    before, mark, rest = page.read_text().partition("<!-- numpy-suite -->\n")
    after = rest.partition("<!-- end -->")[2]
    page.write_text(before + mark + "\n".join(lines) + "\n<!-- end -->" + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("-k", default=None)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    rows, reasons = [], collections.Counter()
    for name in options.files or FILES:
        row = compare(name, options.limit, ["-k", options.k] if options.k else ())
        rows.append(row)
        reasons.update(map(reason, row["lost"].values()))
        print(f"{name:45s} {row['kept']:5d} / {row['total']:5d}  {row['ended'] or ''}", flush=True)
        (BUILD / "lost").mkdir(parents=True, exist_ok=True)
        (BUILD / "lost" / (name.replace("/", ".") + ".json")).write_text(json.dumps(row, indent=1))
        if options.show:
            for test, error in row["lost"].items():
                print(f"    {test}: {reason(error)}")
    kept, total = sum(row["kept"] for row in rows), sum(row["total"] for row in rows)
    for text, n in reasons.most_common(25):
        print(f"{n:6d}  {text}")
    if options.docs:
        write_docs(rows)
    print(f"numpy-suite: {kept} of {total} kept = {kept / max(total, 1):.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        run_here(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1", sys.argv[5:])
    else:
        main()
