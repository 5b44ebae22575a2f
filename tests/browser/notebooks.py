"""A notebook in a page, as its user sees it."""

import re

import nbformat
from playwright.sync_api import expect

SECONDS = 60

# Whether the kernel is idle, and code cells have their numbers: "[*]:" until they are done, "[ ]:" before they are run.
# The notebook's own sign says "idle" also before there is a kernel, the status bar right after a run: both must say so.
# There are more prompts than cells in the file once the last one was run, which appends another.
DONE = r"""
([count, cells, kernel]) => {
    const status = document.querySelector(".jp-Notebook-ExecutionIndicator");
    const bar = [...document.querySelectorAll(".jp-StatusBar-TextItem")].map(e => e.textContent);
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(e => e.textContent);
    return status?.dataset.status === "idle" && bar.includes(kernel + " | Idle") &&
        prompts.length >= count && cells.every(n => /^\[\d+\]:$/.test(prompts[n]));
}
"""


def write(path, sources):
    """A notebook of code cells, for the kernel of this Python."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


class Notebook:
    """A notebook that is open in the page; its code cells are counted from 0, without the markdown between them."""

    def __init__(self, page, root, path):
        self.page = page
        self.kernel = "Python 3 (ipykernel)"
        for name in path.split("/"):
            page.locator(".jp-DirListing-itemText").get_by_text(name, exact=True).dblclick()
        document = nbformat.read(root / path, as_version=4)
        self.count = sum(cell.cell_type == "code" for cell in document.cells)
        self.panel = page.locator(".jp-NotebookPanel")
        self.cells = self.panel.locator(".jp-CodeCell")
        expect(self.cells).to_have_count(self.count)
        self.wait_done()

    def menu(self, name, item):
        """Clicks an item of the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(name, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def tool(self, title):
        """Clicks a button of the notebook's toolbar."""
        title = re.compile(rf"^{title}( \(|$)")  # some have a shortcut after it
        self.panel.get_by_role("toolbar").get_by_title(title).click()

    def change_kernel(self, name):
        """Chooses another kernel in the dialog that a click on the present one's name opens."""
        self.tool("Switch kernel")
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("select").select_option(label=name)
        dialog.get_by_role("button", name="Select", exact=False).last.click()
        expect(dialog).to_have_count(0)
        self.kernel = name
        self.wait_done()

    def wait_done(self, *cells):
        """Waits until the kernel is idle and the cells have their numbers."""
        self.page.wait_for_function(DONE, arg=[self.count, cells, self.kernel])

    def run_all(self):
        self.menu("Run", "Run All Cells")
        self.wait_done(*range(self.count))

    def select(self, n):
        """Clicks into the source of a cell."""
        self.cells.nth(n).locator(".cm-content").click()

    def start(self, n):
        """Runs a cell by the button of the toolbar, and does not wait for it."""
        self.select(n)
        self.tool("Run this cell and advance")

    def run(self, n):
        """The text that a cell brings which was not run before."""
        self.start(n)
        self.wait_done(n)
        return self.text(n)

    def outputs(self, n):
        """One place for each output of a cell."""
        return self.cells.nth(n).locator(".jp-OutputArea-output")

    def text(self, n):
        return "".join(self.outputs(n).all_text_contents()).strip()

    def errors(self, n):
        """Where a cell shows an exception."""
        return self.outputs(n).filter(has_text="Traceback (most recent call last)")

    def failed(self):
        """The cells that show an exception."""
        return [n for n in range(self.count) if self.errors(n).count()]
