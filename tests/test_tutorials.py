"""Tutorials of libraries, as notebooks: isolated they show what they show plain. Run by nbclient; and by papermill."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import children, wait_until
from kernels import event_loop_of_jupyter, session_environment, sockets_of_a_kernel  # noqa: F401
from nbclient import NotebookClient
from papermill import execute_notebook

#: Whole libraries under the sanitizer take minutes, and are not ours.
pytestmark = pytest.mark.no_asan

TUTORIALS = Path(__file__).with_name("tutorials")
#: Which module is isolated.
ISOLATED = {"opencv": "cv2", "sqlite": "sqlite3", "pandas_tables": "pandas", "scipy_oscillator": "scipy", "skimage_cells": "skimage"}


def notebook(name, first=""):
    """The cells of a file that marks them by ``# %%``, with one more before them."""
    made = nbformat.v4.new_notebook()
    made.cells.append(nbformat.v4.new_code_cell(first))
    for kind, text in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", (TUTORIALS / f"{name}.py").read_text(), re.M):
        cell = nbformat.v4.new_markdown_cell if "markdown" in kind else nbformat.v4.new_code_cell
        made.cells.append(cell(text.strip()))
    return made


def joined(outputs):
    """With adjacent texts of a stream in one piece: where ipykernel cuts them depends on the time they took."""
    found = []
    for output in outputs:
        if found and output.output_type == "stream" and (found[-1].output_type, found[-1].get("name")) == ("stream", output.name):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def run(made, directory):
    """Executes it: the outputs of each code cell but the first, without addresses and counts."""
    before = set(children())
    with sockets_of_a_kernel() as config:
        client = NotebookClient(made, timeout=60, kernel_name="python3", config=config)
        client.execute(env=session_environment(directory), cwd=str(directory))
    assert wait_until(lambda: set(children()) <= before)
    shown = []
    for cell in made.cells[1:]:
        if cell.cell_type != "code":
            continue
        shown.append((cell.source, []))
        for output in joined(cell.outputs):
            output = {key: value for key, value in output.items() if key not in ("execution_count", "metadata")}
            shown[-1][1].append(re.sub(r"0x[0-9a-f]+", "0x", repr(sorted(output.items()))))
    return shown


@pytest.mark.parametrize("name", ISOLATED)
def test_tutorial(name, tmp_path, event_loop_of_jupyter):  # noqa: F811
    plain = run(notebook(name), tmp_path)
    made = notebook(name, f"%load_ext ipython_isolation\n%isolate {ISOLATED[name]}")
    last = (
        "from ipython_isolation.context import contexts\n[info] = [context.info() for context in contexts()]\n"
        "info['requests'] > 20, info['crashes']"
    )
    made.cells.append(nbformat.v4.new_code_cell(last))
    isolated = run(made, tmp_path)
    assert "(True, 0)" in str(isolated.pop())
    for (source, expected), (_, got) in zip(plain, isolated, strict=True):
        assert got == expected, source
    assert sum(len(outputs) for _, outputs in plain) >= 8


def test_papermill(tmp_path, monkeypatch, event_loop_of_jupyter):  # noqa: F811
    """A batch run: parameters that it puts in, inputs that kill, what is shown in the file that it writes."""
    for name, value in session_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    made = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    made.cells = [
        nbformat.v4.new_code_cell("%load_ext ipython_isolation\n%isolate talker\nimport talker"),
        nbformat.v4.new_code_cell("last = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from ipython_isolation import ProcessTerminationError\nresults, crashed = {}, []\nfor n in range(last):\n"
            "    try:\n        results[n] = talker.check(n)\n    except ProcessTerminationError as error:\n"
            "        crashed.append(n)"
        ),
        nbformat.v4.new_code_cell("talker.say_in_c('from C')\nlen(results), crashed"),
    ]
    nbformat.write(made, tmp_path / "in.ipynb")
    before = set(children())
    with sockets_of_a_kernel() as config:
        execute_notebook(
            tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"last": 200}, kernel_name="python3", progress_bar=False,
            cwd=tmp_path, config=config,
        )  # fmt: skip
    assert wait_until(lambda: set(children()) <= before)
    text, value = joined(nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs)
    assert (text.text, value.data["text/plain"]) == ("from C\n", "(198, [3, 128])")
