"""The child follows cwd, environment and sys.path of the session; its log records arrive there."""

import contextlib
import logging
import os
import sys

import pytest

from ipython_isolation import ProcessTerminationError


def cwd(context):
    return context.call(os.getcwd)


def environ(context, name):
    return context.call(os.getenv, name)


def test_cwd(context, tmp_path, monkeypatch):
    assert cwd(context) == os.getcwd()
    for name in ("one", "two", "ünïcödé"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert cwd(context) == str(tmp_path / name)
    monkeypatch.chdir("/")
    assert cwd(context) == "/"
    context.call(os.chdir, str(tmp_path))  # the child's own business ...
    assert cwd(context) == str(tmp_path)
    monkeypatch.chdir(tmp_path / "one")  # ... until the session moves
    assert cwd(context) == str(tmp_path / "one")


def test_cwd_that_is_gone(context, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert context.call(abs, -1) == 1
    monkeypatch.chdir(tmp_path)
    assert cwd(context) == str(tmp_path)


def test_environment(context, monkeypatch):
    assert environ(context, "HOME") == os.environ.get("HOME")
    monkeypatch.setenv("ISOLATION_TEST", "first")
    assert environ(context, "ISOLATION_TEST") == "first"
    monkeypatch.setenv("ISOLATION_TEST", "sécond\udcff")
    assert environ(context, "ISOLATION_TEST") == "sécond\udcff"
    monkeypatch.delenv("ISOLATION_TEST")
    assert environ(context, "ISOLATION_TEST") is None
    os.environ["ISOLATION_TEST"] = "direct"
    try:
        assert environ(context, "ISOLATION_TEST") == "direct"
        context.restart()
        assert environ(context, "ISOLATION_TEST") == "direct"
    finally:
        del os.environ["ISOLATION_TEST"]
    assert environ(context, "ISOLATION_TEST") is None
    # C code sees it too, not only os.environ.
    monkeypatch.setenv("ISOLATION_TEST", "for C")
    shell = context.load_module("subprocess").check_output(["sh", "-c", "echo $ISOLATION_TEST"])
    assert shell == b"for C\n"


def test_sys_path(context, tmp_path, monkeypatch):
    (tmp_path / "followed_module.py").write_text("value = 1\n")
    with pytest.raises(ModuleNotFoundError):
        context.load_module("followed_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert context.load_module("followed_module").value == 1
    seen = context.call(eval, "list(__import__('sys').path)")
    assert seen == [p for p in sys.path if isinstance(p, str)]
    sys.path.append("/nowhere")
    try:
        assert context.call(eval, "__import__('sys').path[-1]") == "/nowhere"
    finally:
        sys.path.remove("/nowhere")
    assert context.call(eval, "'/nowhere' in __import__('sys').path") is False


LOGGING = """
import logging, os, threading, warnings
log = logging.getLogger("followed.inner")
def say(level, *args):
    log.log(level, *args)
def fail():
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("it failed")
def from_thread():
    thread = threading.Thread(target=log.warning, args=("from a thread",), name="side")
    thread.start()
    thread.join()
def then_die():
    log.error("last words")
    os._exit(3)
def enabled(level):
    return log.isEnabledFor(level)
"""


class Keep(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@contextlib.contextmanager
def kept(name="followed"):
    logger, handler = logging.getLogger(name), Keep()
    logger.addHandler(handler)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logging.getLogger("followed.inner").setLevel(logging.NOTSET)


def test_log_records(context, tmp_path, caplog):
    (tmp_path / "logging_library.py").write_text(LOGGING)
    library = context.load_module("logging_library", [str(tmp_path)])
    with kept() as records:
        library.say(logging.WARNING, "%s and %d", "one", 2)
        library.say(logging.INFO, "not this one")
        (record,) = records
        assert (record.getMessage(), record.levelname, record.name) == ("one and 2", "WARNING", "followed.inner")
        assert record.funcName == "say" and record.filename == "logging_library.py"
        assert record.process == context.remote_pid
        records.clear()

        # Levels set here hold there.
        logging.getLogger("followed").setLevel(logging.DEBUG)
        library.say(logging.DEBUG, "debug")
        assert [r.getMessage() for r in records] == ["debug"]
        logging.getLogger("followed.inner").setLevel(logging.ERROR)
        library.say(logging.WARNING, "no")
        assert library.enabled(logging.WARNING) is False
        logging.getLogger("followed.inner").setLevel(logging.NOTSET)
        assert library.enabled(logging.DEBUG) is True
        logging.disable(logging.ERROR)
        assert library.enabled(logging.ERROR) is False
        logging.disable(logging.NOTSET)
        assert library.enabled(logging.DEBUG) is True
        assert len(records) == 1
        records.clear()

        library.fail()
        (record,) = records
        assert "ZeroDivisionError" in record.exc_text and record.levelno == logging.ERROR
        records.clear()

        library.from_thread()
        assert [(r.getMessage(), r.threadName) for r in records] == [("from a thread", "side")]
        records.clear()

        # In the middle of a callback, and before a death.
        context.load_module("functools").reduce(lambda a, b: library.say(logging.ERROR, "nested"), [1, 2])
        with pytest.raises(ProcessTerminationError):
            library.then_die()
        assert [r.getMessage() for r in records] == ["nested", "last words"]
    assert "last words" in caplog.text


def test_a_handler_that_raises_harms_nobody(context, tmp_path, capsys):
    (tmp_path / "logging_library.py").write_text(LOGGING)
    library = context.load_module("logging_library", [str(tmp_path)])

    class Broken(logging.Handler):
        def emit(self, record):
            raise ValueError("broken handler")

    logger, handler = logging.getLogger("followed"), Broken()
    logger.addHandler(handler)
    try:
        library.say(logging.ERROR, "x")
        assert library.enabled(logging.ERROR) is True
    finally:
        logger.removeHandler(handler)
