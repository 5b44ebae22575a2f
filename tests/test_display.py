"""Rich display: what code of the child shows, and what the session shows of its objects, is as if the module ran here."""

import json
import re

import pytest
from kernels import event_loop_of_jupyter, kernel, start_kernel  # noqa: F401

_PLAIN, _ISOLATED = "import sys, shower", "%load_ext ipython_isolation\n%isolate shower\nimport sys, shower"


def outputs(cell):
    """What a cell has shown, with adjacent texts of a stream in one piece, and without addresses."""
    found = []
    for kind, content in cell.outputs:
        if isinstance(content, str):
            content = re.sub(r"0x[0-9a-f]+", "0x", content)
        if found and found[-1][0] == kind and kind in ("stdout", "stderr"):
            found[-1] = (kind, found[-1][1] + content)
        else:
            found.append((kind, content))
    return found


@pytest.fixture
def both(start_kernel):  # noqa: F811
    """A function that runs cells in a plain kernel and in one where the module is isolated; the latter's last cell,
    once it is seen to have shown the same."""
    kernels = [start_kernel(), start_kernel()]
    kernels[0].run(_PLAIN)
    kernels[1].run(_ISOLATED)
    assert kernels[1].run("import os; shower.threading.get_native_id() != os.getpid()").value == "True"

    def run(*codes, raises=False):
        for code in codes:
            cells = [kernel.run_any(code) if raises else kernel.run(code) for kernel in kernels]
            plain, isolated = (outputs(cell) for cell in cells)
            assert isolated == plain, code
        return cells[1]

    run.plain, run.isolated = kernels
    return run


def test_display(both):
    cell = both("shower.html()")
    assert [kind for kind, _ in outputs(cell)] == ["stdout", "data", "stdout", "data", "stdout", "data"]
    both("shower.many()")
    cell = both("shower.updates()")
    assert [kind for kind, _ in cell.outputs] == ["data", "update", "clear", "data"]


def test_of_a_widget_the_text_is_shown(kernel):  # noqa: F811
    kernel.run("%isolate shower\nimport shower")
    assert outputs(kernel.run("shower.widget()")) == [("data", {"text/plain": "IntSlider(value=7)"})]


def test_figures(both):
    shown = outputs(both("shower.show()"))
    assert [kind for kind, _ in shown] == ["stdout", "data", "stdout"]
    assert "image/png" in shown[1][1]
    # The automatic figure at the end of the cell, also when there is nothing else in it.
    assert "image/png" in outputs(both("shower.draw()"))[-1][1]
    assert outputs(both("shower.draw()\nx = 1"))[-1][0] == "data"
    # A figure as the value of a cell.
    cell = both("shower.figure()")
    assert "image/png" in cell.outputs[-1][1]


@pytest.mark.parametrize(
    "name",
    [
        "Html", "Bundle", "Itself", "Pretty", "OnInstance", "Everything", "WrongTypes", "NotImplementedHere", "Prints",
        "Broken", "BrokenText", "BrokenItself", "BrokenBundle",
    ],
)
def test_objects(both, name):
    """As the value of a cell, given to display(), and in a container."""
    both(f"thing = shower.{name}()\nfrom IPython.display import display")
    raises = name.startswith("Broken")  # which is shown as an error, although the cell goes on
    assert outputs(both("thing", raises=raises))
    both("display(thing, thing)", "display(thing, include=['text/html'])", raises=raises)
    raises = raises and name != "Broken"
    both("display(thing, exclude=['text/html'])", raises=raises)
    both("[thing]" if name not in ("Bundle", "Itself") else "1", raises=raises)


def test_tables(both):
    both("import pandas")
    for kernel in (both.plain, both.isolated):
        kernel.run("del pandas; import sys; [sys.modules.pop(n) for n in list(sys.modules) if n.split('.')[0] == 'pandas']")
    both.isolated.run("%isolate pandas")
    both("import pandas as pd")
    cell = both("pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
    assert "<table" in cell.outputs[-1][1]["text/html"]
    both("pd.DataFrame({'a': range(100)})", "pd.Series([1.5, 2.5])", "pd.DataFrame({'a': [1]}).style.format('{:.2f}').to_html()[:6]")


def test_progress_bars(both):
    """Each state in its place, over the last one; times differ, and so does the room that they leave for the bar."""
    bars = []
    for kernel in (both.plain, both.isolated):
        cell = kernel.run("len(shower.progress(20))")
        bars.append([re.findall(r"\d+%|\d+/20", state) for state in cell.out.split("\r")])
        assert cell.value == "20"
    assert bars[0] == bars[1] and bars[0][-1] == ["100%", "20/20"] and len(bars[0]) > 20


def test_objects_that_are_lost(kernel):  # noqa: F811
    kernel.run("%config Isolate.rollback = 'off'\n%isolate shower\nimport shower; thing = shower.Html()")
    kernel.run("from ipython_isolation.context import contexts\ncontexts()[0].close()")
    for code in ("thing", "[thing]", "from IPython.display import display; display(thing)"):
        assert "<lost Html object of context 'default'>" in kernel.run(code).value


def test_capture(both):
    both("%%capture got\nshower.html()", "got.stdout", "[sorted(o.data) for o in got.outputs]", "got.show()")


def test_a_formatter_of_the_session(both):
    both("get_ipython().display_formatter.formatters['text/html'].for_type(shower.Html, lambda o: '<p>mine</p>')\nNone")
    assert both("shower.Html()").outputs[-1][1]["text/html"] == "<p>mine</p>"


def test_one_request_for_an_object(both):
    kernel = both.isolated
    kernel.run("from ipython_isolation.context import contexts\n[context] = contexts()")
    for name in ("Html", "Bundle", "OnInstance", "Itself", "Broken", "BrokenText", "BrokenItself", "BrokenBundle"):
        # Without the end of the cell, where a child that has drawn is asked for figures.
        code = f"thing = shower.{name}()\nn = context.info()['requests']\ndisplay(thing)\nn = context.info()['requests'] - n"
        kernel.run_any(code)
        assert (name, kernel.run("n").value) == (name, "1")


def test_late_display_belongs_to_its_cell(kernel):  # noqa: F811
    """To that of the call, as what is printed."""
    kernel.run("%isolate shower\nimport shower; event = shower.threading.Event()")
    first = kernel.send("shower.later(event)")
    kernel.wait(first)
    assert kernel.run("print('here')\nevent.set()").out == "here\n"
    cell = kernel.wait(first, "late text")
    assert [kind for kind, _ in outputs(cell)] == ["data", "stdout"]
    assert kernel.run("shower.html()").out.split() == ["before", "between", "after"]


VIEW = """
def described(value):
    return type(value).__name__, hasattr(value, "__len__"), hasattr(value, "__dict__"), repr(value)[:9]
shown = {name: described(value) for name, value in dict(globals()).items() if name in ("text", "thing", "figure")}
print(__import__("json").dumps(shown))
"""


def test_a_view_of_the_variables(kernel):  # noqa: F811
    """VS Code asks for them by silent code after each cell: it sees what they are, and no cell is disturbed."""
    kernel.run("%isolate shower\nimport shower; event = shower.threading.Event(); text = 'a'")
    first = kernel.send("thing = shower.Html(); figure = shower.figure(); shower.later(event)")
    kernel.wait(first)
    seen = kernel.wait(kernel.send(VIEW, silent=True))
    assert json.loads(seen.out) == {
        "text": ["str", True, False, "'a'"],
        "thing": ["Html", False, True, "Html()"],
        "figure": ["Figure", False, True, "<Figure s"],
    }
    assert seen.err == "" and [kind for kind, _ in outputs(seen)] == ["stdout"]
    kernel.run("event.set()")
    assert [kind for kind, _ in outputs(kernel.wait(first, "late text"))][-2:] == ["data", "stdout"]
    drawn = kernel.run("shower.draw()")
    assert "image/png" in outputs(drawn)[-1][1]
    assert kernel.wait(kernel.send(VIEW, silent=True)).outputs == seen.outputs


def test_late_display_is_not_captured_by_another_cell(kernel):  # noqa: F811
    kernel.run("%isolate shower\nimport shower; event = shower.threading.Event()")
    first = kernel.send("shower.later(event)")
    kernel.wait(first)
    kernel.run("%%capture captured\nevent.set()\nshower.threading.enumerate()[-1].join(30)")
    assert kernel.run("captured.outputs").value == "[]"
    assert ("data", {"text/plain": "<IPython.core.display.HTML object>", "text/html": "<p>late</p>"}) in kernel.cells[first].outputs


def test_questions(both):
    for kernel in (both.plain, both.isolated):
        assert kernel.run_asked("shower.ask()", ["one"]).value == "'one'"
        cell = kernel.run_asked("shower.ask('which? ')", ["two"])
        assert (cell.value, kernel.asked) == ("'two'", [("which? ", False)])
        cell = kernel.run_asked("shower.ask_hidden()", ["three"])
        assert (cell.value, kernel.asked) == ("'three'", [("secret: ", True)])
        cell = kernel.run_asked("shower.ask_then_print()", ["you"])
        assert cell.out == "asking\nhello you\n"
    # A front-end that cannot ask, as nbclient.
    both.isolated.run("shower.html()")
    error = both.isolated.run_any("shower.ask()").error
    assert error["ename"] == "StdinNotImplementedError"


def test_a_crash_amid_display(both):
    kernel = both.isolated
    kernel.run("%isolate _deaths\nimport _deaths\nshower.draw()")
    error = kernel.run_any("shower.draw()\n_deaths.segfault()").error
    assert error["ename"] == "ProcessTerminationError"
    assert outputs(kernel.run("shower.show()"))[1][0] == "data"


def test_getpass_that_was_looked_for_before(kernel):  # noqa: F811
    """A finder that is asked for a module, which is then not imported, asks in the cell all the same later."""
    kernel.run("%isolate shower\nimport shower\nfrom ipython_isolation.context import contexts\n[context] = contexts()")
    assert kernel.run("context.find_module('getpass')").value == "True"
    assert kernel.run_asked("shower.ask_hidden()", ["four"]).value == "'four'"


def test_a_death_at_the_end_of_a_cell_is_the_next_ones(kernel):  # noqa: F811
    """The end of the cell, where figures are shown, leaves it alone; it is said once, by the next use."""
    kernel.run("%config Isolate.rollback = 'off'\n%isolate shower\nimport os, shower; shower.html()")
    cell = kernel.run(
        "from ipython_isolation.context import contexts\n[context] = contexts()\nshower.Html()\n"
        "os.kill(context.remote_pid, 9)\nwhile context.info()['state'] != 'dead': pass"
    )
    assert cell.err == "" and cell.out == ""
    error = kernel.run_any("shower.html()").error
    assert error["ename"] == "ProcessTerminationError" and "SIGKILL" in error["evalue"]
    first, second = outputs(kernel.run("shower.html()"))[:2]
    assert first[0] == "stderr" and "was restarted" in first[1] and second == ("stdout", "before\n")


def test_mute(kernel):  # noqa: F811
    kernel.run("%isolate shower --context quiet --mute\n%isolate talker\nimport shower, talker")
    cell = kernel.run("shower.html()\nshower.draw()\nshower.updates()\ntalker.say('heard')\n1")
    assert outputs(cell) == [("stdout", "heard\n"), ("data", {"text/plain": "1"})]
    kernel.run("%isolate shower --context quiet --mute off")
    assert outputs(kernel.run("shower.html()"))[0] == ("stdout", "before\n")
    kernel.run("%isolate --mute --context quiet")
    assert outputs(kernel.run("shower.html();")) == []


def test_mute_of_one_module(kernel):  # noqa: F811
    """What is shown during its calls, whoever shows it, is not seen; that of others in the same child is."""
    kernel.run("%isolate shower talker zoo\nimport shower, talker, zoo\nthing = talker.Thing('a')")
    kernel.run("%isolate talker --mute")
    assert outputs(kernel.run("talker.say('a')\ntalker.say_in_c('b')\ntalker.warn('c')\ntalker.say_after(shower.html, 'd', 'e')")) == []
    cell = kernel.run("shower.html()\ntalker.say('x')")
    assert [kind for kind, _ in outputs(cell)] == ["stdout", "data", "stdout", "data", "stdout"]
    assert outputs(cell)[-1][1] == "after\n"
    # What the outermost call does belongs to its module, also where it calls the others through the session.
    kernel.run("%isolate shower --mute")
    assert outputs(kernel.run("shower.html();")) == []
    cell = kernel.run("%isolate talker --mute off\ntalker.say_after(shower.html, 'one', 'two')")
    assert outputs(cell)[0] == ("stdout", "one\nbefore\n") and outputs(cell)[-1] == ("stdout", "after\ntwo\n")
    # Another thread's call has a module of its own.
    cell = kernel.run(
        "import threading\nthread = threading.Thread(target=talker.say, args=('of a thread',))\n"
        "thread.start(); thread.join()\nshower.html();"
    )
    assert cell.out == "of a thread\n"
    # All of the child.
    kernel.run("%isolate --mute")
    assert outputs(kernel.run("talker.say('x')\nshower.html();")) == []
    kernel.run("%isolate --mute off")
    assert kernel.run("talker.say('x')\nshower.html();").out.startswith("x\nbefore\n")


def test_what_muted_code_prints_is_in_the_report(kernel):  # noqa: F811
    kernel.run("%isolate talker zoo\nimport talker\n%isolate talker --mute")
    cell = kernel.run_any("talker.die('last words')")
    assert cell.out == "" and "last words in C" in "\n".join(cell.error["traceback"])


def test_libraries_see_a_notebook(both):
    assert both("shower.shell()").value == "'ZMQInteractiveShell'"


def test_unload(both):
    kernel = both.isolated
    kernel.run("%unload_ext ipython_isolation")
    assert kernel.run("'format' in vars(get_ipython().display_formatter)").value == "False"
    kernel.run("import shower")
    assert outputs(kernel.run("shower.Html()"))[-1][1]["text/html"] == "<em>html</em>"
