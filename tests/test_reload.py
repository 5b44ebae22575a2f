"""Edit C, rebuild, call: the new code runs, and the session has kept everything."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import threading

import pytest
from conftest import wait_until
from test_magics import ip, run, shell  # noqa: F401: fixtures

from ipython_isolation import IsolationContext, StaleProxyError, isolate, reload
from ipython_isolation.context import named_context

LIBRARY = "int lib_value(void) { return %d; }\n"
BINDING = r"""
#include <Python.h>
extern int lib_value(void);
%(declare)s
static PyObject *value(PyObject *self, PyObject *none) { return PyLong_FromLong(lib_value()); }
static PyObject *version(PyObject *self, PyObject *none) { return PyLong_FromLong(%(version)d); }
static PyObject *apply(PyObject *self, PyObject *function) { return PyObject_CallNoArgs(function); }
static PyObject *store(PyObject *self, PyObject *o)
{
    static PyObject *last;
    PyObject *old = last ? last : Py_NewRef(Py_None);
    last = Py_NewRef(o);
    return old;
}
static PyMethodDef methods[] = {
    {"value", value, METH_NOARGS}, {"version", version, METH_NOARGS}, {"apply", apply, METH_O},
    {"store", store, METH_O}, %(more)s {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "rebuilt", NULL, 0, methods};
PyMODINIT_FUNC PyInit_rebuilt(void) { %(body)s return PyModuleDef_Init(&module); }
"""


class Project:
    """A C library, and a module `rebuilt` that is linked to it; as a user has them, in one directory."""

    def __init__(self, directory):
        self.directory = directory
        self.library = directory / "libreb.so"
        self.module = directory / f"rebuilt{sysconfig.get_config_var('EXT_SUFFIX')}"

    def _link(self, source, out, *arguments):
        subprocess.run(["gcc", "-shared", "-fPIC", "-O0", source, "-o", out, *arguments], check=True, cwd=self.directory)

    def build_library(self, value, out=None):
        (self.directory / "reb.c").write_text(LIBRARY % value)
        self._link("reb.c", out or self.library)
        return out or self.library

    def build_module(self, version, more="", body="", declare=""):
        text = BINDING % {"version": version, "more": more, "body": body, "declare": declare}
        (self.directory / "rebuilt.c").write_text(text)
        include = f"-I{sysconfig.get_path('include')}"
        self._link("rebuilt.c", self.module, include, "-L.", "-lreb", "-Wl,-rpath,$ORIGIN")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Project(tmp_path)
    made.build_library(1)
    made.build_module(1)
    yield made
    for name in ("rebuilt", "edited"):
        sys.modules.pop(name, None)


@pytest.fixture
def rebuilt(project, context):
    return context.load_module("rebuilt")


# --- Asked for -----------------------------------------------------------------------------------------


def test_reload_a_rebuilt_module(project, context, rebuilt):
    OrderedDict = context.load_module("collections").OrderedDict
    kept, lost, function, pid = list(range(1000)), OrderedDict(a=1), rebuilt.version, context.remote_pid
    assert (rebuilt.version(), rebuilt.value()) == (1, 1)
    project.build_module(2)
    assert rebuilt.version() == 1  # not by itself
    context.reload()
    assert context.remote_pid != pid
    assert (rebuilt.version(), rebuilt.value(), function()) == (2, 1, 2)
    assert sum(kept) == 499500
    assert context.info()["crashes"] == 0
    with pytest.raises(StaleProxyError):
        lost["a"]
    assert "lost" in repr(lost)
    assert context.info()["modules"] == ["collections", "rebuilt"]


def test_functions_come_and_go(project, context, rebuilt):
    store = rebuilt.store
    project.build_module(2, more='{"added", version, METH_NOARGS},')
    assert not hasattr(rebuilt, "added")
    context.reload()
    assert rebuilt.added() == 2
    project.build_module(3)
    context.reload()
    assert not hasattr(rebuilt, "added")
    assert store("x") is None and store("y") == "x"


def test_importlib_reload_sees_a_linked_library(project):
    """The module's own file is as it was."""
    isolate("rebuilt")
    import rebuilt

    context = named_context("default")
    assert rebuilt.value() == 1
    pid = context.remote_pid
    project.build_library(2)
    assert importlib.reload(rebuilt) is rebuilt
    assert rebuilt.value() == 2
    assert context.remote_pid != pid


def test_importlib_reload_of_what_has_not_changed_keeps_the_process(project):
    isolate("rebuilt")
    import rebuilt

    pid = named_context("default").remote_pid
    assert rebuilt.store("kept") is None
    assert importlib.reload(rebuilt) is rebuilt
    assert named_context("default").remote_pid == pid
    assert rebuilt.store(None) == "kept"


def test_reload_runs_init_and_set_up_again(project):
    calls = []
    with IsolationContext(init=lambda: calls.append("init")) as context:
        context.call(os.umask, 0o27)
        rebuilt = context.load_module("rebuilt")
        project.build_library(2)
        context.reload()
        assert calls == ["init"] * 2
        assert rebuilt.value() == 2
        assert context.call(os.umask, 0o27) == 0o27


def test_reload_of_a_file_that_stays_incomplete(project, context, rebuilt, monkeypatch):
    monkeypatch.setattr(reload.Watch.await_finished, "__defaults__", (0.2,))
    pid, whole = context.remote_pid, project.module.read_bytes()
    replace(project.module, whole[:5000])
    with pytest.raises(ImportError, match="not complete.*the old one runs on"):
        context.reload()
    assert context.remote_pid == pid and rebuilt.version() == 1


def test_reload_before_anything_runs(project):
    with_nothing = IsolationContext()
    with_nothing.reload()
    assert with_nothing.info()["state"] == "new"


# --- By itself -----------------------------------------------------------------------------------------


def replace(path, data):
    """As `ninja`, `pip` and most editors do it."""
    new = path.with_name("new.tmp")
    new.write_bytes(data)
    shutil.copymode(path, new)
    os.replace(new, path)


def age(path):
    """Makes a file look as if it had been written a while ago: then nothing has to wait for it to be stable."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 10**9))


def test_autoreload(project, context, rebuilt, capfd):
    context.autoreload = True
    for value in (2, 3):
        pid = context.remote_pid
        project.build_library(value)
        assert rebuilt.value() == value
        assert context.remote_pid != pid
    project.build_module(4)
    assert (rebuilt.version(), rebuilt.value()) == (4, 3)
    said = capfd.readouterr().err
    assert said.count("libreb.so changed: context 'test' runs a new process; objects made in it before are lost") == 2
    assert said.count("changed") == 3
    pid = context.remote_pid
    for _ in range(100):
        assert rebuilt.value() == 3
    assert context.remote_pid == pid


def test_autoreload_sees_it_at_once(project, context, rebuilt):
    """Between two calls, whatever time there is between them."""
    context.autoreload = True
    versions = [project.build_library(n, project.directory / f"libreb.so.{n}") for n in (5, 6)]
    for path in versions:
        age(path)
    for value, path in zip((5, 6), versions):
        rebuilt.version()
        os.replace(path, project.library)
        assert rebuilt.value() == value


def test_autoreload_where_inotify_says_nothing(project, context, rebuilt, monkeypatch):
    monkeypatch.setattr(reload._Directories, "_EVENTS", 0x2000)  # IN_UNMOUNT, which is not to be asked for
    monkeypatch.setattr(reload, "_ALWAYS", 0.05)
    context.autoreload = True
    rebuilt.version()
    project.build_library(2)
    assert wait_until(lambda: rebuilt.value() == 2)


def test_autoreload_overwritten_in_place(project, context, rebuilt):
    """By a copy, which keeps the inode. (A loaded library that is written to may do anything: here it is as big, and
    nothing of it is called meanwhile.)"""
    context.autoreload = True
    rebuilt.version()
    other = project.build_library(7, project.directory / "other.so")
    data = other.read_bytes()
    assert len(data) == project.library.stat().st_size
    inode = project.library.stat().st_ino
    project.library.write_bytes(data)
    assert project.library.stat().st_ino == inode
    assert rebuilt.value() == 7


def test_off_by_default_and_off_again(project, context, rebuilt):
    assert context.autoreload is False and context.info()["autoreload"] is False
    project.build_library(2)
    assert rebuilt.value() == 1
    context.autoreload = True
    assert rebuilt.value() == 2  # what it missed meanwhile
    context.autoreload = False
    project.build_library(3)
    assert rebuilt.value() == 2


@pytest.mark.parametrize("cut", [0, 10, 64, 4096, -4000, -1])
def test_a_file_that_is_being_written_waits(project, context, rebuilt, cut):
    context.autoreload = True
    pid = context.remote_pid
    whole = project.build_library(2, project.directory / "other.so").read_bytes()
    replace(project.library, whole[:cut])
    age(project.library)
    for _ in range(3):
        assert rebuilt.value() == 1
    assert context.remote_pid == pid
    with open(project.library, "ab") as file:
        file.write(whole[cut:] if cut else whole)
    assert wait_until(lambda: rebuilt.value() == 2)
    assert context.remote_pid != pid


def test_a_file_that_is_away_waits(project, context, rebuilt):
    """A linker removes the old one first."""
    context.autoreload = True
    whole = project.build_library(2, project.directory / "other.so").read_bytes()
    project.library.unlink()
    assert rebuilt.value() == 1
    project.library.write_bytes(whole)
    assert rebuilt.value() == 2


def test_not_while_a_call_is_under_way(project, context, rebuilt):
    """A function of the session that the call calls back rebuilds the library, and calls it."""
    context.autoreload = True
    pid = context.remote_pid

    def rebuild():
        project.build_library(2)
        age(project.library)
        return rebuilt.value(), context.remote_pid

    assert rebuilt.apply(rebuild) == (1, pid)
    assert rebuilt.value() == 2


def test_not_within_a_transaction(project, context, rebuilt):
    """Its checkpoint would go with the process."""
    context.autoreload = True
    rebuilt.value()
    with context.transaction():
        pid = context.remote_pid
        project.build_library(2)
        assert rebuilt.value() == 1
        assert context.remote_pid == pid
    assert wait_until(lambda: rebuilt.value() == 2)


def test_a_new_build_that_cannot_be_loaded(project, context, rebuilt):
    context.autoreload = True
    project.build_module(2, declare="extern int not_there(void);", body="not_there();")
    for _ in range(2):
        with pytest.raises(ImportError, match="not_there"):
            rebuilt.version()
    project.build_module(3)
    assert rebuilt.version() == 3


def test_a_new_build_that_crashes_is_rebuilt(project, context, rebuilt):
    """The library that is fixed after a crash needs no autoreload: another process loads it."""
    project.build_module(2, body="*(volatile int *)0 = 0;")
    with pytest.raises(Exception, match="SIGSEGV"):
        context.reload()
    project.build_module(3)
    assert rebuilt.version() == 3
    context.autoreload = True
    project.build_module(4)
    assert rebuilt.version() == 4


def test_only_the_context_that_runs_it(project, context, rebuilt):
    with IsolationContext(restart="auto", autoreload=True) as other:
        zlib, pid = other.load_module("zlib"), other.remote_pid
        context.autoreload = True
        project.build_library(2)
        assert rebuilt.value() == 2
        assert zlib.crc32(b"") == 0 and other.remote_pid == pid


def test_source_is_watched_too(project, context, capfd):
    source = project.directory / "edited.py"
    source.write_text("class Thing:\n    def old(self):\n        return 1\n")
    edited = context.load_module("edited")
    Thing = edited.Thing
    context.autoreload = True
    assert Thing().old() == 1
    source.write_text("class Thing:\n    def new(self):\n        return 22\n")
    assert edited.Thing().new() == 22
    assert Thing().new() == 22 and not hasattr(Thing, "old")
    capfd.readouterr()
    pid = context.remote_pid
    source.write_text("class Thing:\n    def new(self) ->\n")
    for _ in range(3):
        assert Thing().new() == 22
    assert context.remote_pid == pid
    said = capfd.readouterr().err
    assert said.count("edited.py has changed, but the old one runs on: SyntaxError") == 1


def test_a_file_that_a_package_imports(project, context):
    package = project.directory / "edited"
    package.mkdir()
    (package / "__init__.py").write_text("from .part import value\n")
    (package / "part.py").write_text("def value():\n    return 1\n")
    edited = context.load_module("edited")
    context.autoreload = True
    assert edited.value() == 1
    (package / "part.py").write_text("def value():\n    return 'two'\n")
    assert edited.value() == "two"


def test_threads_see_it_too(project, context, rebuilt):
    context.autoreload = True
    project.build_library(2)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(rebuilt.value()))
    thread.start()
    thread.join()
    assert seen == [2]


# --- %isolate ------------------------------------------------------------------------------------------


def test_the_magic_reloads(project, ip):  # noqa: F811
    run(ip, "%isolate rebuilt\nimport rebuilt")
    run(ip, "kept = 5\nfirst = rebuilt.value()")
    project.build_library(2)
    assert run(ip, "rebuilt.value()") == 1
    run(ip, "%isolate --reload rebuilt")
    assert run(ip, "rebuilt.value(), first, kept") == (2, 1, 5)


def test_the_magic_reloads_by_itself(project, ip, capsys):  # noqa: F811
    run(ip, "%isolate --autoreload rebuilt\nimport rebuilt\nrebuilt.value()")
    assert named_context("default").autoreload
    project.build_library(2)
    assert run(ip, "rebuilt.value()") == 2
    # All in one cell.
    out = project.directory / "libreb.so"
    code = f"!sed -i 's/2/3/' {project.directory}/reb.c && gcc -shared -fPIC {project.directory}/reb.c -o {out}\nrebuilt.value()"
    assert run(ip, code) == 3
    run(ip, "%isolate --autoreload off")
    project.build_library(4)
    assert run(ip, "rebuilt.value()") == 3
    run(ip, "%isolate --autoreload on")
    assert run(ip, "rebuilt.value()") == 4
    # It holds for contexts to come.
    run(ip, "%isolate zoo --context other")
    assert named_context("other").autoreload


def test_the_magic_says_what_is_not_isolated(ip):  # noqa: F811
    from IPython.core.error import UsageError

    with pytest.raises(UsageError, match="not_isolated is not isolated"):
        run(ip, "%isolate --reload not_isolated")
    with pytest.raises(UsageError, match="exclude each other"):
        run(ip, "%isolate --reload --restart")


# --- Files ---------------------------------------------------------------------------------------------


def test_a_cut_library_is_never_complete(project):
    data = project.library.read_bytes()
    assert reload.flaw(str(project.library)) is None
    assert reload.flaw(str(project.module)) is None
    cut = project.directory / "cut.so"
    for size in [*range(0, len(data), 97), len(data) - 1]:
        cut.write_bytes(data[:size])
        assert reload.flaw(str(cut)) is not None, size
    # As it is while the linker has not come to the header.
    cut.write_bytes(bytes(64) + data[64:])
    assert "no ELF" in reload.flaw(str(cut))
    assert "No such file" in reload.flaw(str(project.directory / "away.so"))


def test_libraries_of_this_machine_are_complete():
    for path in reload_candidates():
        assert reload.flaw(path) is None, path


def reload_candidates():
    with open("/proc/self/maps") as maps:
        return {line.split(None, 5)[5].strip() for line in maps if ".so" in line and "(deleted)" not in line}


def test_a_file_that_still_grows_is_not_stable(project, monkeypatch):
    monkeypatch.setattr(reload, "_STABLE", 1.0)  # in which the thread comes to write, however busy the machine is
    growing, stop = project.directory / "growing.so", threading.Event()
    growing.write_bytes(project.library.read_bytes())

    def grow():
        with open(growing, "ab") as file:
            while not stop.wait(0.005):
                file.write(b"x")
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        assert reload.unfinished(str(growing)) == "it is still being written"
    finally:
        stop.set()
        thread.join()
    assert reload.unfinished(str(growing)) is None


def test_a_file_of_the_future_is_complete_once_it_stands_still(project):
    os.utime(project.library, (2**33, 2**33))
    assert reload.unfinished(str(project.library)) is None


@pytest.mark.parametrize(
    "path, system",
    [
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", True),
        ("/lib64/ld-linux-x86-64.so.2", True),
        ("/usr/local/lib/libcv.so", False),
        ("/home/me/build/libcv.so", False),
        ("/opt/conda/lib/libpython3.12.so.1.0", True),
        ("/usr/lib/python3/dist-packages/numpy/core/_multiarray.so", False),
        (sysconfig.get_path("purelib") + "/numpy/linalg/lapack_lite.so", False),
        (os.path.realpath(sysconfig.get_path("stdlib")) + "/lib-dynload/_struct.so", True),
        (os.path.dirname(reload.__file__) + "/_core.so", True),
        (os.path.realpath(sys.executable), True),
    ],
)
def test_what_is_the_systems(path, system):
    assert reload.is_system(path) is system


def test_what_is_mapped(project, context, rebuilt):
    mapped = reload.mapped_libraries(context.remote_pid)
    assert {str(project.library), str(project.module)} <= mapped.keys()
    assert all(mapped.values())
    project.library.unlink()
    assert reload.mapped_libraries(context.remote_pid)[str(project.library)] is False
    assert not any("libc.so" in path for path in mapped)


def test_not_asked_for_nothing_is_looked_at(project, context, rebuilt):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context._host, "files_changed", lambda: pytest.fail("looked"))
        for _ in range(10):
            rebuilt.value()
