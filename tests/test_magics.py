"""%isolate in a real InteractiveShell, with real children."""

import os
import sys
from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from ipython_isolation import ProcessTerminationError, isproxy
from ipython_isolation.context import contexts, named_context
from ipython_isolation.importer import isolated
from ipython_isolation.magics import Isolate

VICTIMS = Path(__file__).parent / "victims"


@pytest.fixture
def shell(monkeypatch):
    """A shell without the extension; everything it changed is undone."""
    monkeypatch.syspath_prepend(str(VICTIMS))
    modules, meta_path, hook = dict(sys.modules), list(sys.meta_path), sys.excepthook
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}), user_ns={})
    yield shell
    shell.extension_manager.unload_extension("ipython_isolation")
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()
    sys.excepthook = hook
    assert sys.meta_path == meta_path
    assert isolated() == {}
    for context in contexts():
        context.close()
    for name in [name for name in sys.modules if name.partition(".")[0] in {"victim_pkg", "zoo"}]:
        del sys.modules[name]
    sys.modules["__main__"] = modules["__main__"]


@pytest.fixture
def ip(shell):
    """A shell with the extension loaded."""
    shell.run_line_magic("load_ext", "ipython_isolation")
    return shell


def run(ip, code):
    """Run a cell, and return its value."""
    result = ip.run_cell(code)
    result.raise_error()
    return result.result


def complete(ip, line):
    with provisionalcompleter():
        return [completion.text for completion in ip.Completer.completions(line, len(line))]


def ours(shell):
    """Everything that loading the extension adds to a shell."""
    hooks = shell.strdispatchers.get("complete_command")
    return (
        [type(configurable).__name__ for configurable in shell.configurables].count("Isolate"),
        "isolate" in shell.magics_manager.magics["line"],
        "Isolate" in shell.magics_manager.registry,
        len(list(hooks.s_matches("%isolate"))) if hooks is not None else 0,
    )


# --- Isolating -------------------------------------------------------------------------------------------


def test_isolate(ip):
    assert run(ip, "%isolate victim_pkg zoo") is None
    assert run(ip, "import victim_pkg._core as core\ncore.pid()") == named_context("default").remote_pid != os.getpid()
    assert list(isolated()) == ["victim_pkg", "zoo"]


def test_commas_between_modules(ip):
    run(ip, "%isolate victim_pkg, zoo,colorsys")
    assert list(isolated()) == ["victim_pkg", "zoo", "colorsys"]


def test_an_error_of_the_module_is_no_usage_error(ip, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_breaks.py").write_text("")
    run(ip, "import made_breaks")
    (tmp_path / "made_breaks.py").write_text("raise ValueError('broken since')")
    with pytest.raises(ValueError, match="broken since"):
        run(ip, "%isolate made_breaks")
    assert isolated() == {}
    del sys.modules["made_breaks"]


def test_a_context_of_its_own(ip):
    run(ip, "%isolate victim_pkg --context mine\n%isolate zoo")
    assert {name: context.name for name, context in isolated().items()} == {"victim_pkg": "mine", "zoo": "default"}


def test_an_imported_module_is_isolated_all_the_same(ip, capsys):
    run(ip, "import victim_pkg._core as core\nfrom victim_pkg import add")
    assert not isproxy(ip.user_ns["core"])
    capsys.readouterr()
    run(ip, "%isolate victim_pkg")
    assert run(ip, "core.pid()") != os.getpid()
    assert capsys.readouterr().err == "%isolate: victim_pkg was imported before; still un-isolated: add\n"


def test_an_unknown_module_warns_at_once(ip, capsys):
    run(ip, "%isolate cv_modul")
    expected = "%isolate: no module named 'cv_modul' is found here: check the name, or sys.path\n"
    assert capsys.readouterr().err == expected


def test_off(ip):
    run(ip, "import zoo as here\n%isolate victim_pkg zoo\nimport victim_pkg")
    assert isproxy(ip.user_ns["here"])
    run(ip, "%isolate --off zoo")
    assert list(isolated()) == ["victim_pkg"]
    assert not isproxy(ip.user_ns["here"])
    run(ip, "%isolate --off\nimport victim_pkg")
    assert isolated() == {}
    assert not isproxy(ip.user_ns["victim_pkg"])


def test_off_for_one_context(ip):
    run(ip, "%isolate victim_pkg --context mine\n%isolate zoo\n%isolate --off --context mine")
    assert list(isolated()) == ["zoo"]


def test_restart(ip):
    run(ip, "%isolate victim_pkg\n%isolate zoo --context other\nimport victim_pkg._core as core, zoo")
    pid, other = run(ip, "core.pid()"), named_context("other").remote_pid
    run(ip, "%isolate --restart victim_pkg")
    assert run(ip, "core.pid()") == named_context("default").remote_pid != pid
    assert named_context("other").remote_pid == other
    run(ip, "%isolate --restart")
    assert named_context("other").remote_pid != other


def test_restart_of_what_has_not_started(ip):
    run(ip, "%isolate zoo\n%isolate --restart")
    assert named_context("default").info()["state"] == "new"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--frobnicate", "unrecognized arguments: --frobnicate; %isolate? shows the usage"),
        ("zoo --context", "argument --context: expected one argument; %isolate? shows the usage"),
        ("'zoo", "No closing quotation; %isolate? shows the usage"),
        ("cv-2", "'cv-2' is not a module name; give one as in `import`, such as cv2 or scipy.linalg"),
        ("sys", "sys cannot be isolated, this session runs on it; import_isolated('sys') returns an isolated copy"),
        ("--off colorsys", "colorsys is not isolated; isolated are: zoo"),
        ("--restart --context mine", "there is no context 'mine'; there are: default"),
        ("--off --restart", "--off and --restart exclude each other: run them one after the other"),
        ("--context mine", "name the modules that should run there: %isolate cv2 --context NAME"),
    ],
)
def test_usage_errors_are_one_line_and_say_what_to_do(ip, arguments, message):
    run(ip, "%isolate zoo")
    with pytest.raises(UsageError) as caught:
        ip.run_line_magic("isolate", arguments)
    assert str(caught.value) == message
    assert list(isolated()) == ["zoo"]


# --- The table -------------------------------------------------------------------------------------------


def test_the_table(ip):
    run(ip, "%isolate zoo\n%isolate victim_pkg --context <mine>\nimport victim_pkg")
    table = run(ip, "%isolate")
    lines = repr(table).splitlines()
    assert lines[0].split() == ["module", "context", "pid", "state", "calls", "crashes", "memory", "roll-back"]
    assert lines[1].split()[:3] == ["zoo", "default", "new"]
    name, context, pid, state, calls, crashes, memory, unit, rollback = lines[2].split(maxsplit=8)
    assert (name, context, state, crashes, unit) == ("victim_pkg", "<mine>", "running", "0", "MB")
    assert rollback == "on"
    assert lines[1].endswith("off: there is nothing to keep yet")
    assert int(pid) == named_context("<mine>").remote_pid
    assert int(calls) > 0 and float(memory) > 1
    page = table._repr_html_()
    assert page.count("<tr>") == 3 and "&lt;mine&gt;" in page and "<mine>" not in page


def test_a_context_without_modules_is_in_the_table(ip):
    run(ip, "%isolate zoo --context idle\n%isolate --off zoo")
    assert run(ip, "%isolate").rows[0][:2] == ("", "idle")


def test_the_empty_table(ip):
    table = run(ip, "%isolate")
    assert repr(table) == "Nothing is isolated. Try: %isolate MODULE"
    assert table._repr_html_() == "Nothing is isolated. Try: <code>%isolate MODULE</code>"


# --- Completion and help ---------------------------------------------------------------------------------


@pytest.mark.parametrize("jedi", [True, False])
def test_completion(ip, jedi):
    ip.Completer.use_jedi = jedi
    run(ip, "%isolate zoo --context mine")
    # With jedi there are more, which take the line for Python.
    assert {"--context", "--off", "--restart"} <= set(complete(ip, "%isolate --"))
    assert "victim_pkg" in complete(ip, "%isolate vic")
    assert "itertools" in complete(ip, "%isolate zoo, itert")
    assert "victim_pkg._core" in complete(ip, "%isolate victim_pkg._c")
    assert "mine" in complete(ip, "%isolate victim_pkg --context m")
    assert "zoo" in complete(ip, "%isolate --off z")
    assert "colorsys" not in complete(ip, "%isolate --off c")
    assert "victim_pkg" not in sys.modules


def test_help(ip, capsys):
    run(ip, "%isolate?")
    text = capsys.readouterr().out
    assert "%isolate [--context NAME] [--off] [--restart]" in text and "[module ...]" in text
    assert "import cv2" in text


# --- Loading, configuration, unloading -------------------------------------------------------------------


def test_configured_modules(shell, capsys):
    shell.config.Isolate.modules = ["zoo", "not_there", "cv-2", "sys", "victim_pkg._core"]
    shell.run_line_magic("load_ext", "ipython_isolation")
    assert list(isolated()) == ["zoo", "not_there", "victim_pkg._core"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert errors[0] == "%isolate: no module named 'not_there' is found here: check the name, or sys.path"
    assert errors[1].startswith("%isolate: cv-2 is not isolated: 'cv-2' is not a module name")
    assert errors[2].startswith("%isolate: sys is not isolated: sys cannot be isolated")


def test_configured_at_run_time(ip):
    run(ip, "%config Isolate.modules = ['zoo', 'victim_pkg']")
    assert list(isolated()) == ["zoo", "victim_pkg"]
    run(ip, "%config Isolate.modules = ['victim_pkg', 'colorsys']")
    assert list(isolated()) == ["victim_pkg", "colorsys"]


def test_traits_have_help():
    for name, trait in Isolate.class_own_traits(config=True).items():
        assert trait.help, name


def test_unload_undoes_everything(shell):
    before, meta_path = ours(shell), list(sys.meta_path)
    assert before == (0, False, False, 0)
    run(shell, "import zoo")
    zoo = shell.user_ns["zoo"]
    shell.run_line_magic("load_ext", "ipython_isolation")
    assert ours(shell) == (1, True, True, 1)
    run(shell, "%isolate zoo\n%isolate victim_pkg --context mine\nimport victim_pkg")
    made = contexts()
    assert {context.name for context in made} == {"default", "mine"}

    shell.run_line_magic("unload_ext", "ipython_isolation")
    assert ours(shell) == before
    assert sys.meta_path == meta_path
    assert isolated() == {}
    assert shell.user_ns["zoo"] is sys.modules["zoo"] is zoo
    assert "victim_pkg" not in sys.modules
    assert {context.info()["state"] for context in made} == {"closed"}


def test_unload_leaves_the_contexts_of_others(shell):
    other = named_context("other")
    shell.run_line_magic("load_ext", "ipython_isolation")
    run(shell, "%isolate victim_pkg --context other\nimport victim_pkg")
    shell.run_line_magic("unload_ext", "ipython_isolation")
    assert isolated() == {}
    assert other.info()["state"] == "running"


def test_reload_does_not_stack(ip):
    for _ in range(3):
        run(ip, "%isolate zoo")
        ip.run_line_magic("reload_ext", "ipython_isolation")
        assert ours(ip) == (1, True, True, 1)
        assert isolated() == {}
    assert run(ip, "%isolate zoo\nimport zoo\nzoo.CONSTANT") == 42


# --- Crash bundles ---------------------------------------------------------------------------------------


def test_replay(ip, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHON_ISOLATION_BUNDLES", str(tmp_path / "my crashes"))
    run(ip, "%isolate _deaths\nimport _deaths")
    with pytest.raises(ProcessTerminationError) as caught:
        run(ip, "_deaths.segfault()")
    path = caught.value.bundle
    with pytest.raises(ProcessTerminationError) as again:
        run(ip, f"%isolate --replay '{path}'")
    assert again.value.context == "replay" and again.value.signal == caught.value.signal
    assert "replay" not in [context.name for context in contexts()]
    assert run(ip, "_deaths.allocate(0)") == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("--replay /nowhere/x.crash", "/nowhere/x.crash: No such file or directory"),
        ("zoo --replay x", "--replay FILE stands alone: it makes one call again, in a child process of its own"),
        ("--replay", "expected one argument"),
    ],
)
def test_replay_says_what_is_wrong(ip, line, message):
    with pytest.raises(UsageError) as caught:
        run(ip, f"%isolate {line}")
    assert message in str(caught.value) and "\n" not in str(caught.value)
