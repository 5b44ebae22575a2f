"""The import hook: what `import` finds, when the child starts, and what is as before after release()."""

import importlib
import os
import subprocess
import sys
import textwrap
import threading
import traceback
import types
from pathlib import Path

import pytest

import ipython_isolation
from ipython_isolation import IsolationContext, importer, isproxy
from ipython_isolation.context import contexts, default_context, named_context
from ipython_isolation.importer import context_for, import_isolated, isolate, isolated, release

VICTIMS = Path(__file__).parent / "victims"


@pytest.fixture(autouse=True)
def nothing_isolated(monkeypatch):
    """Start with no isolated name, and find everything as it was at the end."""
    monkeypatch.syspath_prepend(str(VICTIMS))
    modules, meta_path = dict(sys.modules), list(sys.meta_path)
    yield
    release(*isolated())
    assert sys.meta_path == meta_path
    assert [name for name, module in sys.modules.items() if isproxy(module)] == []
    for context in contexts():
        context.close()
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] in {"victim_pkg", "fails_at_import", "zoo"} or name.startswith("made_"):
            del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write modules, given as {relative path: source}, to a directory that is on sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files):
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return tmp_path

    return write


PID = "import os\ndef pid(): return os.getpid()\n"


def assert_isolated(module):
    assert isproxy(module)
    assert module.pid() == context_for(module.__name__).remote_pid != os.getpid()


# --- Importing -------------------------------------------------------------------------------------------


def test_the_child_starts_at_the_first_import():
    context = isolate("victim_pkg")
    assert context is default_context()
    assert context.info()["state"] == "new"
    spec = importlib.util.find_spec("victim_pkg")
    assert spec.submodule_search_locations == [str(VICTIMS / "victim_pkg")]
    assert context.info()["state"] == "new"

    import victim_pkg._core

    assert context.info()["state"] == "running"
    assert_isolated(victim_pkg._core)


def test_two_imports_give_the_same_object():
    isolate("victim_pkg")
    import victim_pkg
    import victim_pkg._core as core
    from victim_pkg import _core as again

    assert core is again is victim_pkg._core is sys.modules["victim_pkg._core"]
    # Spyder removes a user's modules from sys.modules before each run.
    del sys.modules["victim_pkg._core"], sys.modules["victim_pkg"]
    import victim_pkg as package
    import victim_pkg._core

    assert package is victim_pkg
    assert victim_pkg._core is core


def test_submodules_belong_to_the_package():
    isolate("victim_pkg")
    import victim_pkg.surface
    from victim_pkg.surface import pids, sum_all

    assert sum_all([1, 2, 3]) == 6
    assert len({*pids(), context_for("victim_pkg").remote_pid}) == 1
    assert isproxy(sys.modules["victim_pkg.surface"])
    assert context_for("victim_pkg.surface") is context_for("victim_pkg.not.even.there") is default_context()


def test_only_the_core_of_a_package():
    isolate("victim_pkg._core")
    import victim_pkg.surface

    assert not isproxy(victim_pkg)
    assert_isolated(victim_pkg._core)
    here, there = victim_pkg.surface.pids()
    assert here == os.getpid() != there
    assert victim_pkg.add(1, 2) == 3


@pytest.mark.parametrize(
    "module, names", [("with_all", {"public", "_listed"}), ("without_all", {"public", "add", "function"})]
)
def test_star_import(module, names):
    isolate("victim_pkg")
    namespace = {}
    exec(f"from victim_pkg.{module} import *", namespace)
    assert namespace.keys() - {"__builtins__"} == names
    assert namespace["public"] == 1


def test_a_missing_submodule_and_a_missing_name():
    isolate("victim_pkg")
    with pytest.raises(ModuleNotFoundError, match="victim_pkg.missing"):
        import victim_pkg.missing
    with pytest.raises(ImportError, match="missing"):
        from victim_pkg import missing  # noqa: F401
    assert importlib.util.find_spec("victim_pkg.missing") is None


def test_a_submodule_made_at_run_time(write):
    made = """
        __path__ = []
        sub = sys.modules["made_dynamic.sub"] = types.ModuleType("made_dynamic.sub")
        sub.pid = os.getpid
    """
    write({"made_dynamic.py": "import os, sys, types\n" + textwrap.dedent(made)})
    isolate("made_dynamic")
    import made_dynamic.sub

    assert_isolated(sys.modules["made_dynamic.sub"])


def test_a_stdlib_module():
    context = isolate("colorsys")  # which none of the libraries imports that other tests use
    import colorsys

    before = context.info()["requests"]
    assert colorsys.rgb_to_hsv(0.0, 0.0, 1.0) == (2 / 3, 1.0, 1.0)
    assert context.info()["requests"] > before


def test_import_errors_come_with_the_traceback_of_the_child():
    isolate("fails_at_import")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no backend") as caught:
            import fails_at_import  # noqa: F401
        assert "read_settings" in "".join(traceback.format_exception(caught.value))
        assert isinstance(caught.value.__cause__, KeyError)
        assert "fails_at_import" not in sys.modules


def test_reload(write):
    directory = write({"made_reload.py": "value = 1\n" + PID})
    isolate("made_reload")
    import made_reload

    assert made_reload.value == 1
    (directory / "made_reload.py").write_text("value = 'changed'\n" + PID)
    assert importlib.reload(made_reload) is made_reload
    assert made_reload.value == "changed"
    assert_isolated(made_reload)


def test_reload_of_a_package_and_its_submodule(write):
    directory = write({"made_pkg/__init__.py": "value = 1\n", "made_pkg/sub.py": "value = 1\n"})
    isolate("made_pkg")
    import made_pkg.sub

    (directory / "made_pkg/sub.py").write_text("value = 'changed'\n")
    (directory / "made_pkg/__init__.py").write_text("value = 'changed'\n")
    assert importlib.reload(made_pkg.sub).value == "changed"
    assert importlib.reload(made_pkg).value == "changed"
    assert made_pkg.__package__ == "made_pkg" == made_pkg.sub.__package__


def test_path(write, tmp_path):
    write({})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "made_hidden.py").write_text(PID)
    isolate("made_hidden", path=str(tmp_path / "elsewhere"))
    import made_hidden

    assert_isolated(made_hidden)


def test_a_path_without_the_module_does_not_fall_back_to_this_process(write, tmp_path):
    write({"made_here.py": PID})
    with pytest.warns(UserWarning, match="no module named 'made_here'"):
        isolate("made_here", path=[str(tmp_path / "nowhere")])
    with pytest.raises(ModuleNotFoundError, match="made_here"):
        import made_here  # noqa: F401


def test_threads_that_import_at_once_get_one_module():
    isolate("victim_pkg")
    start = threading.Barrier(8)
    found = []

    def load():
        start.wait()
        found.append(importlib.import_module("victim_pkg._core"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(module) for module in found}) == 1
    assert found[0].imported.count("victim_pkg._core") == 1


# --- The finder ------------------------------------------------------------------------------------------


def test_the_finder_is_first_and_only_there_while_needed():
    others = list(sys.meta_path)
    isolate("victim_pkg")
    isolate("zoo")
    assert sys.meta_path[1:] == others
    release("zoo")
    assert sys.meta_path[1:] == others
    release("victim_pkg")
    assert sys.meta_path == others


def test_finders_put_in_front_stay():
    class Other:
        @staticmethod
        def find_spec(fullname, path=None, target=None):
            return None

    isolate("victim_pkg")
    sys.meta_path.insert(0, Other)
    try:
        import victim_pkg._core

        assert_isolated(victim_pkg._core)
        isolate("zoo")
        assert sys.meta_path[1] is Other
    finally:
        release(*isolated())
        assert sys.meta_path[0] is Other
        sys.meta_path.remove(Other)


# --- Names -----------------------------------------------------------------------------------------------


def test_an_unknown_module_warns_at_once_and_is_not_imported(write):
    write({"made_loud/__init__.py": "raise AssertionError('imported')\n", "made_loud/sub.py": ""})
    with pytest.warns(UserWarning, match="no module named 'made_typo' is found"):
        context = isolate("made_typo")
    with pytest.warns(UserWarning, match="made_loud.typo"):
        isolate("made_loud.typo")
    release(*isolated())
    isolate("made_loud.sub")
    assert context.info()["state"] == "new"
    assert "made_loud" not in sys.modules


@pytest.mark.parametrize("name", ["itertools", "colorsys", "xml.dom.minidom"])
def test_builtin_and_nested_modules_are_known(name):
    assert importer.locate(name) is not None


@pytest.mark.parametrize("name", ["", "a-b", "a..b", ".a", "a b", "1a", None])
def test_what_is_no_module_name(name):
    for call in (isolate, import_isolated):
        with pytest.raises(ValueError, match="is not a module name") as caught:
            call(name)
        assert "\n" not in str(caught.value)
    assert isolated() == {}


@pytest.mark.parametrize("name", ["sys", "builtins", "os.path", "importlib.util", "threading", "ipython_isolation"])
def test_what_the_session_runs_on_is_not_isolated(name):
    with pytest.raises(ValueError, match="this session runs on it"):
        isolate("zoo", name)
    assert isolated() == {}


def test_the_interpreter_is_known():
    """All that a bare interpreter has loaded is out of bounds, in this version of Python too."""
    code = "import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in loaded.stdout.split()} <= importer._INTERPRETER


def test_a_name_in_a_package_of_another_context():
    isolate("victim_pkg")
    for call in (isolate, import_isolated):
        with pytest.raises(ValueError, match="victim_pkg._core belongs to victim_pkg.*release victim_pkg first"):
            call("victim_pkg._core", context=named_context("other"))
    isolate("victim_pkg._core")  # the same context: it is isolated already
    assert list(isolated()) == ["victim_pkg"]


def test_a_package_takes_over_its_submodules():
    isolate("victim_pkg._core", context="core")
    import victim_pkg

    assert not isproxy(victim_pkg)
    isolate("victim_pkg", context="all")
    import victim_pkg._core

    assert isolated() == {"victim_pkg": named_context("all")}
    assert_isolated(victim_pkg._core)
    release("victim_pkg")
    assert not isproxy(sys.modules["victim_pkg"])


def test_context_by_name_and_options():
    context = isolate("zoo", context="animals", arrays="copy")
    assert context is named_context("animals")
    assert isolated() == {"zoo": context}
    with pytest.raises(TypeError, match="arrays"):
        isolate("victim_pkg", context=context, arrays="copy")
    assert list(isolated()) == ["zoo"]


# --- Modules that are imported here already --------------------------------------------------------------


def test_an_imported_module_is_isolated_all_the_same(write):
    write({"made_user.py": "import victim_pkg._core as c\nfrom victim_pkg import add\n"})
    import made_user
    import victim_pkg._core

    namespace = {"core": victim_pkg._core, "pkg": victim_pkg, "add": victim_pkg._core.add, "other": 1}
    report = importer.isolate_with_report(["victim_pkg"], default_context(), namespace=namespace)

    assert_isolated(namespace["core"])
    assert isproxy(namespace["pkg"])
    assert namespace["core"] is sys.modules["victim_pkg._core"]
    assert report.rebound == {"core": "victim_pkg._core", "pkg": "victim_pkg"}
    assert {"add", "made_user.c", "made_user.add"} <= set(report.leftovers["victim_pkg"])
    (line,) = report.lines()
    assert line.startswith("victim_pkg was imported before; still un-isolated: add, ")
    assert not isproxy(made_user.c)


def test_what_this_package_holds_is_not_named():
    script = (
        "import ctypes, ipython_isolation.reload\nfrom ipython_isolation import importer\n"
        "from ipython_isolation.context import default_context\n"
        "holders = importer.isolate_with_report(['ctypes'], default_context(), namespace={}).leftovers\nprint(holders)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "_ctypes.ArgumentError" in done.stdout and "ipython_isolation" not in done.stdout


def test_the_parent_package_is_updated():
    import victim_pkg

    here = victim_pkg._core
    with pytest.warns(UserWarning, match=r"victim_pkg._core was imported before; still un-isolated: .*surface\._core"):
        isolate("victim_pkg._core")
    assert_isolated(victim_pkg._core)
    assert victim_pkg._core is sys.modules["victim_pkg._core"]
    release("victim_pkg._core")
    assert victim_pkg._core is sys.modules["victim_pkg._core"] is here


def test_nothing_is_imported_if_nobody_holds_it():
    import zoo

    del zoo
    context = isolate("zoo", namespace={})
    assert context.info()["state"] == "new"
    assert "zoo" not in sys.modules


def test_the_session_is_main_by_default(monkeypatch):
    import zoo

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "animals", zoo, raising=False)
    isolate("zoo")
    assert isproxy(main.animals)
    release("zoo")
    assert main.animals is zoo


def test_the_scan_runs_no_code_of_what_it_looks_at(monkeypatch):
    class Lazy(types.ModuleType):
        def __getattribute__(self, name):
            raise AssertionError(name)

    class NoModule:
        def __getattribute__(self, name):
            raise AssertionError(name)

    import zoo

    context = named_context("loaded")
    proxy = context.load_module("victim_pkg")
    before = context.info()["requests"]
    with monkeypatch.context() as patch:
        for name, module in dict(lazy=Lazy("lazy"), no_module=NoModule(), none=None, proxy=proxy).items():
            patch.setitem(sys.modules, f"made_{name}", module)
        isolate("zoo", namespace={"lazy": NoModule(), "zoo": zoo})
    assert isproxy(sys.modules["zoo"])
    assert context.info()["requests"] == before


def test_a_failure_leaves_the_imported_module_in_place(write):
    directory = write({"made_breaks.py": "value = 1\n"})
    import made_breaks

    (directory / "made_breaks.py").write_text("raise LookupError('broken since')\n")
    namespace = {"made_breaks": made_breaks}
    with pytest.raises(LookupError, match="broken since"):
        isolate("made_breaks", namespace=namespace)
    assert isolated() == {}
    assert namespace["made_breaks"] is sys.modules["made_breaks"] is made_breaks


def test_a_failure_leaves_a_module_in_its_context(write):
    directory = write({"made_pkg/__init__.py": "", "made_pkg/sub.py": PID})
    isolate("made_pkg.sub", context="one")
    import made_pkg.sub as sub

    (directory / "made_pkg/__init__.py").write_text("raise LookupError('broken since')\n")
    namespace = {"sub": sub}
    for call in (isolate, import_isolated):
        options = {"namespace": namespace} if call is isolate else {}
        with pytest.raises(LookupError, match="broken since"):
            call("made_pkg", context=named_context("two"), **options)
        assert isolated() == {"made_pkg.sub": named_context("one")}
        assert namespace["sub"] is sys.modules["made_pkg.sub"] is sub
        assert not isproxy(sys.modules["made_pkg"])
        assert sys.modules["made_pkg"].sub is sub


def test_moving_to_another_context():
    import zoo

    namespace = {"zoo": zoo}
    isolate("zoo", context="one", namespace=namespace)
    first = namespace["zoo"]
    isolate("zoo", context="two", namespace=namespace)
    assert isolated() == {"zoo": named_context("two")}
    assert namespace["zoo"] is sys.modules["zoo"] is not first
    release("zoo", namespace=namespace)
    assert namespace["zoo"] is sys.modules["zoo"] is zoo


# --- release() -------------------------------------------------------------------------------------------


def test_release_imports_here_again():
    isolate("victim_pkg")
    import victim_pkg._core as there

    release("victim_pkg")
    import victim_pkg._core as here

    assert here.pid() == os.getpid()
    assert there.pid() == default_context().remote_pid  # the child goes on running


def test_release_of_what_is_not_isolated():
    isolate("victim_pkg", "zoo")
    with pytest.raises(ValueError, match="colorsys is not isolated; isolated are: victim_pkg, zoo"):
        release("zoo", "colorsys")
    with pytest.raises(ValueError, match="victim_pkg._core is isolated as part of victim_pkg"):
        release("victim_pkg._core")
    assert list(isolated()) == ["victim_pkg", "zoo"]


# --- import_isolated() -----------------------------------------------------------------------------------


def test_import_isolated_is_found_by_import():
    package = import_isolated("victim_pkg")
    import victim_pkg
    import victim_pkg.surface

    assert victim_pkg is package is import_isolated("victim_pkg")
    assert isproxy(sys.modules["victim_pkg.surface"])
    assert isolated() == {"victim_pkg": default_context()}


def test_import_isolated_of_a_submodule_does_not_import_its_package():
    core = import_isolated("victim_pkg._core")
    assert_isolated(core)
    assert "victim_pkg" not in sys.modules
    import victim_pkg

    assert not isproxy(victim_pkg)
    assert victim_pkg._core is core


def test_import_isolated_updates_an_imported_package():
    import victim_pkg

    core = import_isolated("victim_pkg._core")
    assert victim_pkg._core is core is sys.modules["victim_pkg._core"]


@pytest.mark.parametrize("name", ["sys", "os", "os.path", "builtins", "threading", "importlib.util"])
def test_import_isolated_of_what_the_session_runs_on(name):
    here = importlib.import_module(name)
    module = import_isolated(name)
    assert isproxy(module)
    assert sys.modules[name] is here
    assert isolated() == {}


def test_import_isolated_of_os_runs_elsewhere():
    assert import_isolated("os").getpid() == default_context().remote_pid != os.getpid()


def test_import_isolated_in_two_contexts():
    with IsolationContext() as one, IsolationContext() as two:
        first, second = (import_isolated("victim_pkg._core", context=context) for context in (one, two))
        assert first.pid() == one.remote_pid != second.pid() == two.remote_pid
        assert import_isolated("victim_pkg._core") is second
    # Its context is closed: a new import goes to the default one.
    assert import_isolated("victim_pkg._core").pid() == default_context().remote_pid


def test_import_isolated_of_what_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="made_nowhere") as caught:
        import_isolated("made_nowhere")
    assert caught.value.name == "made_nowhere"
    assert isolated() == {}
    assert "made_nowhere" not in sys.modules


def test_import_isolated_with_a_path(tmp_path):
    (tmp_path / "made_jailed.py").write_text(PID)
    assert_isolated(import_isolated("made_jailed", path=[str(tmp_path)]))


def test_the_public_names():
    for name in ("import_isolated", "isolate"):
        assert getattr(ipython_isolation, name) is getattr(importer, name)
