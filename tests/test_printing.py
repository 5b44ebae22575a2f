"""Objects are shown with the text that IPython shows without isolation, and with one request each."""

import json
import re

import pytest
from kernels import event_loop_of_jupyter, kernel, run_python, start_kernel  # noqa: F401
from test_display import outputs


def shown(cell):
    """Without addresses."""
    return [re.sub("0x[0-9a-f]+", "0x", repr(output)) for output in outputs(cell)]


SHOW = """
from IPython.display import display
asked = {}
for name in shown.names():
    thing = shown.thing(name)
    before = requests()
    display(thing)
    if requests() - before > 1:
        asked[name] = requests() - before
"""
REQUESTS = (
    "from ipython_isolation.context import contexts\n[context] = contexts()\n"
    "def requests(): return context.info()['requests']"
)


def test_every_type_in_a_notebook(start_kernel):  # noqa: F811
    plain, isolated = start_kernel(), start_kernel()
    plain.run("import shown\ndef requests(): return 0")
    isolated.run(f"%load_ext ipython_isolation\n%isolate shown\nimport shown\n{REQUESTS}")
    expected, got = shown(plain.run_any(SHOW)), shown(isolated.run_any(SHOW))
    assert len(expected) > 80
    assert [one for one in zip(got, expected) if one[0] != one[1]] == [] and len(got) == len(expected)
    assert isolated.run("asked").value == "{}"


SCRIPT = """
import json, re, sys
from IPython.{shell} import {shell_class} as Shell
from IPython.utils.capture import capture_output
shell = Shell.instance()
format = shell.display_formatter.format
setup, after = {setup!r}, {after!r}

def show(shown):
    found = {{}}
    for name in shown.names():
        thing = shown.thing(name)
        before = requests()
        with capture_output():
            data, _ = format(thing)
        count = requests() - before
        found[name] = [re.sub("0x[0-9a-f]+", "0x", repr(data)), count]
    return found

def requests():
    return 0

texts = shell.display_formatter.formatters["text/plain"]
format(None)
import shown
exec(setup)
plain = show(shown)
exec(after)
del sys.modules["shown"]
shell.run_line_magic("load_ext", "ipython_isolation")
shell.run_line_magic("isolate", "shown")
import shown
from ipython_isolation.context import contexts
[context] = contexts()
def requests():
    return context.info()["requests"]
format = shell.display_formatter.format
exec(setup)
isolated = show(shown)
print(json.dumps([plain, isolated]))
"""
SHELLS = {"core.interactiveshell": "InteractiveShell", "terminal.interactiveshell": "TerminalInteractiveShell"}


def both(tmp_path, shell="core.interactiveshell", setup="", after=""):
    """What a shell shows of each thing, plain and isolated: text and number of requests."""
    code = SCRIPT.format(shell=shell, shell_class=SHELLS[shell], setup=setup, after=after)
    done = run_python(tmp_path, code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(plain, isolated, most=1):
    different = {name: (isolated[name][0], plain[name][0]) for name in plain if isolated[name][0] != plain[name][0]}
    assert different == {}
    assert {name: n for name, (_, n) in isolated.items() if n > most and name != "broken"} == {}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_type_in_a_shell(tmp_path, shell):
    assert_same(*both(tmp_path, shell))


@pytest.mark.parametrize(
    "setup",
    [
        "texts.max_width = 20",
        "texts.max_seq_length = 2",
        "texts.verbose = True",
        "texts.newline = '; '",
        "texts.float_precision = '%.2e'",
        "texts.pprint = False",
        "texts.pop(dict, None); texts.pop('collections.OrderedDict', None)",
    ],
)
def test_settings(tmp_path, setup):
    """They hold in the child too, at no cost."""
    assert_same(*both(tmp_path, setup=setup))


@pytest.mark.parametrize(
    "setup",
    [
        "texts.for_type(dict, lambda o, p, cycle: p.text(f'mine {len(o)}'))",
        "texts.for_type(shown.Plain, lambda o, p, cycle: p.text('mine'))",
        "texts.for_type_by_name('shown', 'Plain', lambda o, p, cycle: p.text('mine'))",
        "texts.for_type_by_name('collections', 'deque', lambda o, p, cycle: p.pretty(['mine', *o]))",
        "texts.for_type(int, lambda o, p, cycle: p.text(hex(o)))",
        "texts.for_type(str, lambda o, p, cycle: p.text('cycle' if cycle else o.upper()))",
        "texts.for_type(set, texts.type_printers[list])",
    ],
)
def test_printers_of_the_session(tmp_path, setup):
    """They are used for the object, and for what is in it; each use of one there asks back."""
    assert_same(*both(tmp_path, setup=setup), most=10**6)


def test_printers_of_the_child(tmp_path):
    """What a library registers with the shell that it finds holds for its objects, as in the session."""
    taken_back = "texts.type_printers.pop(shown.Plain); texts.type_printers.pop(bytearray)"
    plain, isolated = both(tmp_path, setup="shown.register()", after=taken_back)
    assert "Plain of its library" in isolated["plain"][0] and "bytes of its library" in isolated["bytearray"][0]
    assert_same(plain, isolated)


def test_a_formatter_that_is_another(tmp_path):
    """As Rich's: the session asks that."""
    setup = (
        "class Other(type(texts)):\n    def __call__(self, o): return 'other ' + type(o).__name__\n"
        "shell.display_formatter.formatters['text/plain'] = Other(parent=shell.display_formatter)"
    )
    plain, isolated = both(tmp_path, setup=setup)
    assert_same(plain, isolated, most=10)
    assert "other dict" in isolated["dict"][0]


def test_after_a_restart(kernel):  # noqa: F811
    """The source of the printer is sent to each life once."""
    kernel.run(f"%isolate shown\nimport shown\n{REQUESTS}\nthing = shown.thing('OrderedDict')")
    text = kernel.run("thing").value
    for again in ("context.restart()", "import os; os.kill(context.remote_pid, 9)"):
        kernel.run(again)
        kernel.run_any("shown.names()")
        kernel.run("thing = shown.thing('OrderedDict'); before = requests()")
        assert kernel.run("thing").value == text
        assert kernel.run("requests() - before").value == "1"


def test_the_child_need_not_have_ipython(kernel):  # noqa: F811
    kernel.run("%isolate shown\nimport shown")
    assert kernel.run("shown.thing('Counter')").value.startswith("Counter({")
    kernel.run("from ipython_isolation.context import contexts\n[context] = contexts()\nmodules = context.load_module('sys').modules")
    assert kernel.run("'IPython' in modules").value == "False"
