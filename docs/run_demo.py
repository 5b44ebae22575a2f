"""Runs docs/demo.ipynb in a real kernel, checks what it must show, and saves it as build/demo.html.

The exit code is 0 only if every crash cell raised ProcessTerminationError, no other cell failed, the kernel
lived through all of it, no crash changed a checksum, and what the C code printed is in the cell that called it.
"""

import json
import os
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets import default

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE / "demo.ipynb"
HTML = HERE.parent / "build" / "demo.html"
EXPECTED_CRASHES = 3
# What C code prints must reach the cell that made the call: by cell id, the stream and the text.
EXPECTED_OUTPUT = {
    "edges": ("stdout", "gaussian_blur: 600 rows, radius 5\ngaussian_blur: 512 columns, radius 5\n138 edges"),
    "crash-3": ("stderr", "cv: assertion failed: threshold >= 0 && threshold <= 255 (cv_connected_components, line "),
}


class DemoFailed(Exception):
    """An expectation is broken; the message is for the terminal."""


def kernel_environment(scratch):
    """The user's environment, less what would make the demo depend on it."""
    environment = {**os.environ, "IPYTHONDIR": scratch, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    # Under it, ipykernel does not capture what C code prints.
    environment.pop("PYTEST_CURRENT_TEST", None)
    return environment


class KernelOfThisPython(AsyncKernelManager):
    """Starts ipykernel in this very interpreter, whatever kernels are installed."""

    @default("kernel_spec_manager")
    def _no_installed_kernels(self):
        return KernelSpecManager(kernel_dirs=[], parent=self)


def new_client(notebook):
    return NotebookClient(
        notebook,
        kernel_manager_class=KernelOfThisPython,
        kernel_name="python3",
        timeout=300,
        # No word about a kernel on unencrypted TCP of this machine.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(HERE)}},
    )


def ask(client, expression):
    """The value of an expression in the kernel, by way of JSON; leaves no trace in the notebook."""
    cells = client.nb.cells
    cells.append(nbformat.v4.new_code_cell(f"import json as _json; print(_json.dumps({expression}))"))
    try:
        cell = client.execute_cell(cells[-1], len(cells) - 1, store_history=False)
    finally:
        cells.pop()
    return json.loads("".join(output["text"] for output in cell.outputs if output.output_type == "stream"))


def error_of(cell):
    """The output that shows the cell's exception, or None."""
    return next((output for output in cell.outputs if output.output_type == "error"), None)


def check_output(cell):
    """Checks that a cell shows what the isolated C code printed."""
    if cell.id not in EXPECTED_OUTPUT:
        return
    stream, expected = EXPECTED_OUTPUT[cell.id]
    shown = "".join(output.text for output in cell.outputs if output.get("name") == stream)
    if expected not in shown:
        raise DemoFailed(f"cell {cell.id} must show on {stream}:\n{expected}\nbut shows:\n{shown}")


def run_crash_cell(client, cell, index):
    """Runs a cell that must crash its module and change nothing; returns the error's message."""
    before = ask(client, "checksums()")
    client.execute_cell(cell, index)
    error = error_of(cell)
    if error is None:
        raise DemoFailed(f"cell {cell.id} did not raise")
    if error.ename != "ProcessTerminationError":
        raise DemoFailed(f"cell {cell.id} raised {error.ename}, not ProcessTerminationError: {error.evalue}")
    after = ask(client, "checksums()")
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise DemoFailed(f"cell {cell.id} changed the session's variables: {', '.join(changed)}")
    print(f"\n  crash: {cell.source}")
    print(textwrap.indent(f"{error.ename}: {error.evalue}", "    "))
    print(f"    checksums of {len(before)} variables: equal", flush=True)
    return error.evalue


def run(notebook, scratch):
    """Executes the notebook in place; returns its summary."""
    client = new_client(notebook)
    messages = []
    with client.setup_kernel(env=kernel_environment(scratch)):
        pid = ask(client, "__import__('os').getpid()")
        print(f"{NOTEBOOK.name}: {len(notebook.cells)} cells in a kernel with pid {pid}", flush=True)
        for index, cell in enumerate(notebook.cells):
            if "crash" in cell.metadata.get("tags", ()):
                messages.append(run_crash_cell(client, cell, index))
            else:
                client.execute_cell(cell, index)
            check_output(cell)
        missing = EXPECTED_OUTPUT.keys() - {cell.id for cell in notebook.cells}
        if missing:
            raise DemoFailed(f"the notebook has no cell {', '.join(sorted(missing))}")
        if len(messages) != EXPECTED_CRASHES:
            raise DemoFailed(f"{len(messages)} crash cells ran, {EXPECTED_CRASHES} are expected")
        if ask(client, "__import__('os').getpid()") != pid:
            raise DemoFailed("the kernel is another process than at the beginning")
        return ask(client, "summary")


def save_html(notebook):
    HTML.parent.mkdir(exist_ok=True)
    body, _ = HTMLExporter().from_notebook_node(notebook)
    HTML.write_text(body, encoding="utf-8")


def without_colors(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def main():
    start = time.monotonic()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if any(cell.get("outputs") for cell in notebook.cells):
        print(f"note: {NOTEBOOK.name} is stored with outputs; clear them before a commit")
    failure = None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            summary = run(notebook, scratch)
    except DemoFailed as error:
        failure = str(error)
    except DeadKernelError:
        failure = "the kernel died"
    except CellExecutionError as error:
        failure = f"a cell failed that must not\n{without_colors(str(error))}"
    save_html(notebook)  # most useful when something failed
    shown = os.path.relpath(HTML)
    if failure is not None:
        print(f"\ndemo FAILED: {failure}\n(as far as it came: {shown})", file=sys.stderr)
        return 1

    height, width, _ = summary["photo"]
    crashed = summary["crashed"]
    print(
        f"\n  photograph of {width} x {height} pixels: {summary['edges']} edges found"
        f"\n  loop over {summary['sizes']} inputs: {len(crashed)} crashed, at sizes "
        f"{', '.join(map(str, crashed))}; all others have results"
        f"\n  at the end: the same kernel, {summary['variables']} variables with equal checksums, "
        f"{summary['bytes'] / 1e6:.0f} MB of arrays"
        f"\n  {time.monotonic() - start:.1f} s; the executed notebook: {shown}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
