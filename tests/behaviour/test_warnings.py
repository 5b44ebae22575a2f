"""Warnings of isolated code: shown, filtered, recorded and raised by the session's filters."""

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest
from behaviour.harness import both, lent_strand, raises, worlds  # noqa: F401

import ipython_isolation


@pytest.fixture
def reporter(shared_context):
    """The isolated module alone."""
    return shared_context.load_module("reporter")


def seen(function, *args, action="always", **kwargs):
    """What a call gives of warnings: (class, text, file, line) of each."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter(action)
        function(*args, **kwargs)
    return [(w.category.__name__, str(w.message), w.filename, w.lineno) for w in log]


@both
def test_place_and_category(reporter):
    def here(level):
        reporter.warn("here", stacklevel=level)

    return (
        seen(reporter.warn, "plain"), seen(reporter.warn, "built-in", DeprecationWarning),
        [seen(reporter.warn, "levels", stacklevel=n) for n in range(1, 5)],
        [seen(reporter.warn_below, "deeper", n) for n in range(1, 5)],
        [seen(here, n) for n in range(1, 5)],
    )  # fmt: skip


@both
def test_place_when_calls_alternate(reporter):
    def inner(level):
        reporter.warn_below("alternating", level)

    def outer(level):
        reporter.pass_on(inner, level)

    return [seen(reporter.call_twice, outer, n) for n in range(1, 10)]


@both
def test_place_of_warnings_from_c(reporter):
    def here(level):
        reporter.warn_from_c(UserWarning, b"from C", level)

    return [seen(here, n) for n in (1, 2, 3)], seen(reporter.call, reporter.warn_from_c, UserWarning, b"from C", 1)


@both
def test_explicit_place(reporter):
    return (
        seen(reporter.warn_explicit, "explicit", "some/file.py", 12),
        seen(reporter.warn_explicit, "with module", "some/file.py", 12, "some.module"),
    )


@both
def test_category_of_the_module(reporter):
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("error")
        warnings.filterwarnings("always", category=reporter.CubWarning)
        reporter.warn_cub("young")
        error = raises(reporter.warn, "old")
    [warning] = log
    return (
        warning.category is reporter.CubWarning, isinstance(warning.message, reporter.LionWarning),
        warning.message.age, type(error) is reporter.LionWarning, error,
    )  # fmt: skip


@both
def test_error(reporter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return raises(reporter.warn, "raised"), reporter.caught("caught by the code itself"), raises(
            reporter.warn_from_c, UserWarning, b"from C", 1
        )


@both
def test_each_action(reporter):
    counts = {}
    for action in ("always", "default", "module", "once", "ignore"):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter(action)
            for _ in range(3):
                reporter.warn(f"counted {action}")
                reporter.warn_below(f"counted {action}", 2)
                reporter.warn(f"counted {action}", stacklevel=2)
            counts[action] = [(w.lineno, w.filename) for w in log]
    return counts


@both
def test_filters_by_module_text_and_line(reporter):
    line = seen(reporter.warn, "line")[0][3]
    outcomes = []
    for filtered in (
        {"module": "reporter"}, {"module": "behaviour"}, {"module": __name__}, {"message": "for"}, {"message": "not"},
        {"lineno": line}, {"lineno": line + 1}, {"category": reporter.CubWarning}, {"category": UserWarning},
    ):  # fmt: skip
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", **filtered)
            reporter.warn("for the filter")
            reporter.warn("for the filter", stacklevel=2)
            reporter.warn("for the filter")
            outcomes.append(len(log))
    return outcomes


@both
def test_own_filters_of_the_module(reporter):
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        outcome = reporter.recorded("own"), raises(reporter.as_error, "own error"), reporter.ignored("own ignored")
        reporter.warn("after")
    return outcome, [str(w.message) for w in log]


@both
def test_filters_that_change_during_the_call(reporter):
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("ignore")

        def after(i):
            if i == 2:
                warnings.simplefilter("always")
            if i == 5:
                warnings.simplefilter("error")

        error = raises(reporter.repeat, 10, "changing", after)
        warnings.simplefilter("ignore")
        reporter.repeat(3, "changing")
        warnings.simplefilter("always")
        reporter.repeat(2, "changing")
    return error, len(log)


def test_shown_by_the_session():
    # In a session that nobody records warnings in.
    code = """
import sys, warnings
if sys.argv[1] == "isolated":
    import ipython_isolation
    reporter = ipython_isolation.import_isolated("reporter")
else:
    import reporter
reporter.repeat(2, "shown once")
reporter.warn("of the session", stacklevel=2)
reporter.warn("ignored by default", DeprecationWarning)
warnings.simplefilter("always")
reporter.repeat(2, "shown each time")
"""
    plain, isolated = (
        subprocess.run([sys.executable, "-c", code, way], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                       capture_output=True, text=True, check=True).stderr
        for way in ("plain", "isolated")
    )  # fmt: skip
    assert plain.count("shown once") == 1 and plain.count("shown each time") == 2
    assert isolated == plain


@both
def test_replaced_showwarning(reporter, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args, **kwargs: shown.append((str(args[0]), *args[1:4])))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        reporter.warn("to a function")
        monkeypatch.setattr(warnings, "showwarning", failing)
        error = raises(reporter.warn, "to one that fails")
    return shown, error


def failing(*args, **kwargs):
    raise LookupError("showwarning")


@both
def test_captured_by_logging(reporter, caplog):
    caplog.clear()
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            reporter.warn("logged")
    finally:
        logging.captureWarnings(False)
    return [(r.name, r.levelname, "logged" in r.getMessage()) for r in caplog.records]


@both
def test_in_a_thread_of_the_module(reporter):
    return seen(reporter.in_thread, reporter.warn, "thread"), seen(reporter.in_thread, reporter.warn, "up", LionLike, 9)


class LionLike(Warning):
    pass


@both
def test_in_threads_of_the_session(reporter):
    def several():
        threads = [threading.Thread(target=reporter.warn, args=("parallel",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return seen(several)


@both
def test_resource_warning(reporter, tmp_path):
    path = tmp_path / "open"
    path.touch()
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        reporter.leave_open(str(path))
    [warning] = log
    return warning.category, "unclosed file" in str(warning.message), warning.filename, warning.source is not None


@both
def test_context_of_what_is_raised(reporter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            raise KeyError("handled here")
        except KeyError:
            return raises(reporter.warn, "while another is handled").__context__


def test_while_a_module_is_imported(context):
    ipython_isolation.isolate("warns_at_import", context=context)

    def importing():
        import warns_at_import

        assert ipython_isolation.isproxy(warns_at_import)

    log = seen(importing)
    line = importing.__code__.co_firstlineno + 1
    assert [(text, filename.rpartition("/")[2], lineno) for _, text, filename, lineno in log] == [
        ("of itself", "warns_at_import.py", 5), ("of the importer", "test_warnings.py", line)
    ]  # fmt: skip


def test_an_error_while_a_module_is_imported(context):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match="of itself"):
            context.load_module("warns_at_import")
    assert [text for _, text, _, _ in seen(context.load_module, "warns_at_import")] == ["of itself", "of the importer"]


def test_ignored_in_a_hot_loop_is_reported_rarely(reporter, shared_context, monkeypatch):
    reports, count = [], 3000
    session = shared_context._host.reports
    warn = session.warn
    monkeypatch.setattr(session, "warn", lambda *args: (reports.append(args), warn(*args))[1])
    for action in ("ignore", "default"):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter(action)
            reporter.repeat(count, f"hot {action}")
        assert len(log) == (action == "default")
        assert 1 <= len(reports) < count / 10
        reports.clear()


def test_once_more_in_the_next_life(context):
    reporter = context.load_module("reporter")
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("default")
        reporter.warn("in each life")
        context.restart()
        reporter.warn("in each life")
    assert len(log) == 2


def test_while_the_child_ends(context, tmp_path):
    reporter = context.load_module("reporter")
    marker = tmp_path / "marker"
    reporter.at_exit(str(marker))
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        context.close()
    assert marker.read_text() == "went on"
    assert log == []


def test_in_a_fork_of_the_child(context, tmp_path, capfd):
    context.load_module("reporter")
    marker = tmp_path / "marker"
    code = f"""
import os, reporter, warnings
pid = os.fork()
if pid == 0:
    try:
        reporter.warn("in a fork", DeprecationWarning)
        reporter.bury(ValueError, "in a fork")
        reporter.in_thread(reporter.fail, ValueError, "in a fork")
        open({str(marker)!r}, "w").write("went on")
    finally:
        os._exit(0)
os.waitpid(pid, 0)
"""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        context.call(exec, code, {})
    assert marker.read_text() == "went on"
    assert [w for w in log if "in a fork" in str(w.message)] == []  # 3.12 warns of the fork itself
