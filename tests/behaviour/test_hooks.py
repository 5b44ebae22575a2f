"""Exceptions that nobody can catch arrive in the session's hooks."""

import logging
import sys
import threading

import pytest
from behaviour.harness import both, lent_strand, raises, worlds  # noqa: F401


@pytest.fixture
def unraisable(monkeypatch):
    """What sys.unraisablehook is called with, and an event for it."""
    seen, came = [], threading.Event()

    def hook(report):
        seen.append((report.exc_type, str(report.exc_value), report.err_msg, getattr(report.object, "__name__", None),
                     functions(report.exc_traceback), type(report).__name__))  # fmt: skip
        came.set()

    monkeypatch.setattr(sys, "unraisablehook", hook)
    return seen, came


def taken(unraisable):
    seen, unraisable[0][:] = unraisable[0][:], []
    return seen


def functions(traceback):
    names = []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    return names


@both
def test_finaliser(reporter, unraisable):
    reporter.bury(ValueError, "buried")
    return taken(unraisable)


@both
def test_callback_from_c(reporter, unraisable):
    def failing():
        raise LookupError("from the session")

    reporter.callback_from_c(failing)
    return [report[:4] for report in taken(unraisable)]


@both
def test_the_default_hook(reporter, capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    reporter.bury(ValueError, "printed")
    err = capsys.readouterr().err
    return err.partition("<function")[0], "Grave.__del__" in err, "ValueError: printed" in err, "reporter.py" in err


@both
def test_own_hook_of_the_module(reporter, unraisable):
    return reporter.own_hook("own"), taken(unraisable)


def test_after_the_last_reference_went(context, unraisable):
    reporter = context.load_module("reporter")
    grave = reporter.Grave(ValueError, "late")
    del grave
    assert unraisable[1].wait(10)
    assert [report[:4] for report in unraisable[0]] == [(ValueError, "late", None, "__del__")]


def test_a_finaliser_that_logs_after_the_last_reference_went(context):
    """It runs in the service thread of the child, which must not wait for a strand that it is to take itself."""
    reporter = context.load_module("reporter")
    came = threading.Event()

    class Keep(logging.Handler):
        def emit(self, record):
            came.set()

    handler = Keep()
    logging.getLogger("reporter").addHandler(handler)
    try:
        diary = reporter.Diary("the end")
        del diary
        assert came.wait(10)
        # The child's service thread still lends and takes strands.
        result = []
        thread = threading.Thread(target=lambda: result.append(reporter.call(len, "abc")))
        thread.start()
        thread.join(10)
        assert result == [3]
    finally:
        logging.getLogger("reporter").removeHandler(handler)


@both
def test_thread(reporter, monkeypatch):
    seen = []

    def hook(report):
        seen.append((report.exc_type, str(report.exc_value), functions(report.exc_traceback)[-1], report.thread.name,
                     type(report).__name__))  # fmt: skip

    monkeypatch.setattr(threading, "excepthook", hook)
    reporter.in_thread(reporter.fail, ValueError, "in a thread")
    reporter.in_thread(reporter.fail, SystemExit, "silent by default")
    return seen


@both
def test_the_default_hook_of_threads(reporter, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    reporter.in_thread(reporter.fail, SystemExit, "silent")
    silent = capsys.readouterr().err
    reporter.in_thread(reporter.fail, ValueError, "in a thread")
    err = capsys.readouterr().err
    return silent, err.startswith("Exception in thread den:\n"), err.endswith("ValueError: in a thread\n")


@both
def test_excepthook(reporter, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: seen.append((*args[:2], functions(args[2]))))
    reporter.top_level_hook("by the module's wish")
    return seen


@both
def test_hook_that_fails(reporter, monkeypatch):
    def hook(report):
        raise LookupError("in the hook")

    monkeypatch.setattr(sys, "unraisablehook", hook)
    reporter.bury(ValueError, "the hook fails")
    return reporter.call(len, "the module goes on")


@both
def test_hook_that_calls_the_module(reporter, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: seen.append(reporter.call(len, str(report.exc_value))))
    reporter.bury(ValueError, "four")
    return seen, raises(reporter.fail, KeyError, "after")
