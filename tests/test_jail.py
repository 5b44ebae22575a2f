"""A child whose root directory is another (README, "A jail") does all that others do: nothing is imported too late."""

import os

import pytest
from kernels import event_loop_of_jupyter, kernel, start_kernel  # noqa: F401

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser may call chroot()")


@pytest.fixture
def jailed(kernel, tmp_path):  # noqa: F811
    """A kernel, and in it a context named "jail" in an empty directory."""
    (tmp_path / "jail").mkdir()
    kernel.run(
        "from ipython_isolation.context import named_context\ncontext = named_context('jail')\n"
        f"context.call(os.chroot, {str(tmp_path / 'jail')!r})\ncontext.call(os.chdir, '/')"
    )
    return kernel


def use(kernel):  # noqa: F811
    cell = kernel.run("%%isolate --context jail\nimport os\nprint('in a jail')\n(os.getcwd(), os.listdir('/'))")
    assert (cell.out, cell.value) == ("in a jail\n", "('/', [])")
    error = kernel.run_any("%%isolate --context jail\nvalue = 1\nvalue / 0").error
    assert error["ename"] == "ZeroDivisionError" and "value / 0" in "\n".join(error["traceback"])
    cell = kernel.run_asked("%%isolate --context jail\ninput('who? ')", ["me"])
    assert cell.value == "'me'" and kernel.asked == [("who? ", False)]
    cell = kernel.run_asked("%%isolate --context jail\nimport getpass\ngetpass.getpass('secret: ')", ["x"])
    assert cell.value == "'x'" and kernel.asked == [("secret: ", True)]
    kernel.run(
        "%%isolate -o thing,ordered,function --context jail\nimport collections\n"
        "class Html:\n    def _repr_html_(self): return '<b>thing</b>'\n    def __repr__(self): return 'Html()'\n"
        "class Ordered(collections.OrderedDict): pass\nthing, ordered = Html(), Ordered(a=1)\ndef function(a, b=2): pass"
    )
    for name, text in (("thing", "Html()"), ("ordered", "Ordered([('a', 1)])"), ("function", "<function __main__.function(a, b=2)>")):
        kernel.run("before = context.info()['requests']")
        assert kernel.run(name).value == text
        assert kernel.run("context.info()['requests'] - before").value == "1"
    assert ("data", {"text/plain": "Html()", "text/html": "<b>thing</b>"}) in kernel.run("thing").outputs
    assert kernel.run("from ipython_isolation import isolated\n@isolated(context=context)\ndef f(x): return x + 1\nf(1)").value == "2"


def test_whole_cells_display_and_questions(jailed):
    use(jailed)


def test_the_same_after_a_restart(jailed):
    jailed.run("context.restart()")
    use(jailed)
    jailed.run("pid = context.remote_pid; os.kill(pid, 9)")
    jailed.run_any("%%isolate --context jail\n1")
    use(jailed)


def test_set_up_by_a_function(kernel, tmp_path):  # noqa: F811
    kernel.run(
        "from ipython_isolation import IsolationContext\n"
        f"def init():\n    context.call(os.chroot, {str(tmp_path)!r})\n    context.call(os.chdir, '/')\n"
        "context = IsolationContext(restart='auto', init=init, name='jail')"
    )
    assert kernel.run("%%isolate --context jail\nimport os\n'ipython' in os.listdir('/')").value == "True"
