"""What a user of JupyterLab does and sees, with isolated modules."""

import re
import subprocess
import sys

import pytest
from conftest import wait_until
from jupyter_client.blocking import BlockingKernelClient
from kernels import alive
from playwright.sync_api import expect

from .conftest import Lab

ISOLATE = "%load_ext ipython_isolation\n%isolate {0}\nimport {0}"


def test_the_demo(open_notebook):
    """All cells, by the menu: three crash and say so, every other one works."""
    notebook = open_notebook("docs/demo.ipynb")
    notebook.run_all()
    crashes = notebook.failed()
    assert len(crashes) == 3
    for n, died in zip(crashes, ("gaussian_blur: SIGSEGV", "sobel_edges: SIGSEGV", "connected_components: SIGABRT")):
        assert f"died in cv_module.{died}" in notebook.text(n)
        # The next cell compares checksums of everything.
        assert re.match(r"all \d+ variables unchanged", notebook.text(n + 1))
    assert "3 + 11 crashes survived" in notebook.text(notebook.count - 1)
    # In the order of the notebook, each once.
    prompts = notebook.cells.locator(".jp-InputPrompt").all_text_contents()
    assert prompts == [f"[{n + 1}]:" for n in range(notebook.count)]
    expect(notebook.page.locator(".jp-Dialog")).to_have_count(0)


def test_a_crash(open_notebook):
    """The cell says what died where; the variable is intact, and the module works."""
    notebook = open_notebook(
        "crash.ipynb",
        ISOLATE.format("cv_module") + "\nimport numpy as np, os",
        "photo = np.arange(4096, dtype='uint8').reshape(64, 64)\nos.getpid()",
        "cv_module.sobel_edges(photo[:0])",
        "print(photo.sum(), np.asarray(cv_module.sobel_edges(photo)).shape)\nos.getpid()",
    )
    notebook.run(0)
    pid = notebook.run(1)
    notebook.run(2)
    expect(notebook.errors(2)).to_have_count(1)
    error = notebook.text(2)
    assert "died in cv_module.sobel_edges: SIGSEGV (segmentation fault" in error
    assert re.search(r"^--> cv_sobel_edges  .*cv\.c:\d+", error, re.M), error
    assert notebook.run(3) == f"522240 (64, 64)\n{pid}"
    assert notebook.failed() == [2]


def test_what_c_prints(open_notebook):
    """In the cell that made the call, between what the session prints there."""
    notebook = open_notebook(
        "prints.ipynb",
        ISOLATE.format("talker"),
        "print('before')\ntalker.say_in_c('from C')\nprint('after')",
        "print('the next cell')",
    )
    notebook.run_all()
    assert notebook.text(1).split("\n") == ["before", "from C", "after"]
    assert notebook.text(2) == "the next cell"


def test_the_stop_button(open_notebook):
    """It ends the call, not the child, and the next call works."""
    notebook = open_notebook(
        "stop.ipynb",
        ISOLATE.format("talker") + "\nmine = [1, 2]\ntalker.keep('kept')\ntalker.pid()",
        "talker.work(600)",
        "print(mine, talker.kept)\ntalker.pid()",
    )
    pid = notebook.run(0)
    notebook.start(1)
    expect(notebook.outputs(1)).to_have_text(re.compile("working"))
    notebook.tool("Interrupt the kernel")
    notebook.wait_done(1)
    expect(notebook.errors(1)).to_contain_text("KeyboardInterrupt")
    assert notebook.run(2) == f"[1, 2] ['kept']\n{pid}"
    assert notebook.failed() == [1]


def test_the_stop_button_and_c_code(open_notebook):
    """C code that does not see an interrupt: the cell says what to do, a second click ends the child."""
    notebook = open_notebook(
        "block.ipynb", ISOLATE.format("talker") + "\nmine = [1, 2]", "talker.block()", "(mine, talker.check(2))"
    )
    notebook.run(0)
    notebook.start(1)
    expect(notebook.outputs(1)).to_have_text(re.compile("blocking"))
    notebook.tool("Interrupt the kernel")
    stderr = notebook.cells.nth(1).locator('[data-mime-type="application/vnd.jupyter.stderr"]')
    expect(stderr).to_contain_text("interrupt again to kill")
    notebook.tool("Interrupt the kernel")
    notebook.wait_done(1)
    expect(notebook.errors(1)).to_contain_text("KeyboardInterrupt")
    assert "([1, 2], 4)" in notebook.run(2)


def test_completion(open_notebook):
    """Tab shows the attributes of an isolated module, and puts in the one that is clicked."""
    notebook = open_notebook("completion.ipynb", ISOLATE.format("talker"), "talker.s", "")
    notebook.run(0)
    notebook.select(1)
    notebook.page.keyboard.press("End")
    notebook.page.keyboard.press("Tab")
    items = notebook.page.locator(".jp-Completer-item .jp-Completer-match")
    expect(items.get_by_text("say_in_c", exact=True)).to_be_visible()
    found = {name.removeprefix("talker.") for name in items.all_text_contents()}
    assert {"say", "say_in_c", "say_after", "say_later"} <= found
    items.get_by_text("say_later", exact=True).click()
    expect(notebook.cells.nth(1).locator(".cm-content")).to_have_text("talker.say_later")


def test_help(open_notebook):
    """Shift+Tab shows the signature and the docstring of an isolated function."""
    notebook = open_notebook("help.ipynb", ISOLATE.format("talker"), "talker.write")
    notebook.run(0)
    notebook.select(1)
    notebook.page.keyboard.press("End")
    notebook.page.keyboard.press("Shift+Tab")
    tooltip = notebook.page.locator(".jp-Tooltip")
    expect(tooltip).to_contain_text("talker.write(*chunks)")
    expect(tooltip).to_contain_text("Each chunk is a system call of its own")


def test_a_figure(open_notebook):
    """Matplotlib in the session draws what came from the child."""
    notebook = open_notebook(
        "figure.ipynb",
        ISOLATE.format("cv_module") + "\nimport numpy as np\nimport matplotlib.pyplot as plt",
        "edges = cv_module.sobel_edges(np.eye(64, dtype='uint8') * 255)\nplt.imshow(edges);",
    )
    notebook.run_all()
    assert notebook.failed() == []
    image = notebook.cells.nth(1).locator(".jp-RenderedImage img")
    expect(image).to_be_visible()
    # Decoded by the browser, and with more than one colour in the middle, where the edges are.
    width, colours = image.evaluate("""async image => {
        await image.decode();
        const [width, height] = [image.naturalWidth, image.naturalHeight];
        const canvas = new OffscreenCanvas(width, height).getContext("2d");
        canvas.drawImage(image, 0, 0);
        const data = new Uint32Array(canvas.getImageData(width / 4, height / 4, width / 2, height / 2).data.buffer);
        return [width, new Set(data).size];
    }""")
    assert width > 200 and colours > 1


@pytest.mark.parametrize("state", ["idle", "in a call"])
def test_restart(open_notebook, lab, state):
    """The button and its dialog; what the old kernel had is gone, and the notebook runs again."""
    sources = [ISOLATE.format("talker") + "\ntalker.keep(1)", "import os\nos.getpid(), talker.pid()"]
    notebook = open_notebook(f"restart {state}.ipynb", *sources, *(["talker.block()"] if state == "in a call" else []))
    for n in range(2):
        notebook.run(n)
    before, pids = lab.processes(), notebook.text(1)
    assert len(before) >= 3  # the kernel, the supervisor, the child at least
    if state == "in a call":
        notebook.start(2)
        expect(notebook.outputs(2)).to_have_text(re.compile("blocking"))
        before = lab.processes()
    notebook.tool("Restart the kernel")
    notebook.page.get_by_role("dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    assert wait_until(lambda: not alive(before)), alive(before)
    notebook.wait_done()
    notebook.menu("Edit", "Clear Outputs of All Cells")
    expect(notebook.cells.locator(".jp-OutputArea-output")).to_have_count(0)
    assert notebook.run(0) == "1"
    assert re.fullmatch(r"\(\d+, \d+\)", notebook.run(1)) and notebook.text(1) != pids
    assert notebook.failed() == []


def test_the_isolated_kernel(lab, open_notebook):
    """"Python 3 (isolated)" is chosen in the dialog: its modules are isolated from the first cell on."""
    command = [sys.executable, "-m", "ipython_isolation", "install", "--prefix", str(lab.prefix), "--isolate", "talker"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    notebook = open_notebook(
        "isolated.ipynb",
        "import os, talker\nmine = [1, 2]\nprint(talker.pid() != os.getpid())\nos.getpid()",
        "talker.die()",
        "print(mine, talker.check(2))\nos.getpid()",
    )
    notebook.change_kernel("Python 3 (isolated)")
    told, pid = notebook.run(0).split()
    assert told == "True"
    notebook.run(1)
    expect(notebook.errors(1)).to_have_count(1)
    assert "died in talker.die: SIGSEGV" in notebook.text(1)
    assert notebook.run(2) == f"[1, 2] 4\n{pid}"
    assert notebook.failed() == [1]


def test_an_idle_kernel_is_culled(tmp_path):
    """A server that ends kernels which do nothing sees no activity in a child that does nothing, and it ends too."""
    options = (("cull_idle_timeout", 3), ("cull_interval", 1), ("cull_connected", True))
    server = Lab(tmp_path, *(f"--MappingKernelManager.{name}={value}" for name, value in options))
    try:
        kernel = server.ask("kernels", "POST")["id"]
        client = BlockingKernelClient(connection_file=str(server.runtime / f"kernel-{kernel}.json"))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=30)
            reply = client.execute_interactive(ISOLATE.format("zoo") + "\nanimal = zoo.Animal('rex')", timeout=30)
            assert reply["content"]["status"] == "ok"
            assert len(server.processes()) >= 3  # the kernel, the supervisor, the child
            assert wait_until(lambda: server.ask("kernels") == [], 30)
            assert wait_until(lambda: not server.processes())
        finally:
            client.stop_channels()
    finally:
        server.stop()
