"""The pictures of the documentation; only `make browser ARGS=--screenshots` runs this."""

import os
import subprocess
import sysconfig

import pytest
from conftest import VICTIMS

from .conftest import ROOT

IMAGES = ROOT / "docs" / "images"
WIDTH = 960


@pytest.fixture(scope="module")
def library():
    """The library once more, compiled where its path is short, and no other on the machine that takes the pictures."""
    directory = "/tmp/vision"
    os.mkdir(directory)
    try:
        subprocess.run(["cp", "-r", f"{VICTIMS}/cv_module", f"{directory}/src"], check=True)
        module = "cv_module" + sysconfig.get_config_var("EXT_SUFFIX")
        command = ["gcc", "-O1", "-g", "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}", "-o", module]
        sources = [f"{directory}/src/{name}" for name in ("cv_module.c", "cv.c")]
        subprocess.run([*command, *sources, "-lm"], check=True, cwd=directory)
        yield directory
    finally:
        subprocess.run(["rm", "-r", directory], check=True)


def show_notebook_alone(notebook):
    """Puts the file browser away, and makes the page so wide and high that the notebook is all of it."""
    page = notebook.page
    page.get_by_role("tab", name="File Browser").click()
    page.set_viewport_size({"width": WIDTH + 60, "height": 6000})


def picture(notebook, first, last, name):
    """Code cells, with all that is between them, and nothing of JupyterLab around them."""
    page = notebook.page
    page.mouse.move(0, 0)
    top = notebook.cells.nth(first).bounding_box()
    bottom = notebook.cells.nth(last).bounding_box()
    clip = {
        "x": top["x"], "width": top["width"],
        "y": top["y"] - 4, "height": bottom["y"] + bottom["height"] - top["y"] + 4,
    }  # fmt: skip
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / name, clip=clip)


def test_crash(open_notebook, library):
    notebook = open_notebook(
        "crash.ipynb",
        f"import sys\nsys.path.insert(0, {library!r})",
        "%load_ext ipython_isolation\n%isolate cv_module\nimport cv_module\nimport numpy as np\n\n"
        "photo = np.arange(4096, dtype='uint8').reshape(64, 64)",
        "cv_module.sobel_edges(photo[:0])",
        "edges = np.asarray(cv_module.sobel_edges(photo))\nphoto.sum(), edges.shape",
        "",
    )
    show_notebook_alone(notebook)
    for n in range(4):
        notebook.run(n)
    assert notebook.failed() == [2]
    picture(notebook, 1, 3, "crash.png")


def test_demo(open_notebook):
    notebook = open_notebook("docs/demo.ipynb")
    show_notebook_alone(notebook)
    notebook.run_all()
    picture(notebook, 3, 4, "demo.png")
