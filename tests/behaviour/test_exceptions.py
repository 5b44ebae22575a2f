"""Exceptions: real classes, all their parts, and where they came from."""

import pickle
import traceback

from behaviour.harness import both, raises, worlds, zoo  # noqa: F401


@both
def test_builtin(zoo):
    return [raises(zoo.fail, kind, "text", 1) for kind in (ValueError, KeyError, RuntimeError, LookupError, BaseException)]


@both
def test_caught_by_class(zoo):
    try:
        zoo.fail_with_attributes()
    except zoo.CageError as error:
        caught = error
    return (
        type(caught) is zoo.CageError, isinstance(caught, LookupError), isinstance(caught, zoo.ZooError),
        issubclass(zoo.CageError, LookupError), [c.__name__ for c in zoo.CageError.__mro__],
        caught.code, caught.detail["since"][1], str(caught), repr(caught), caught.args,
    )  # fmt: skip


@both
def test_cause_context_notes(zoo):
    names = ["fail_with_cause", "fail_with_context", "fail_from_none", "fail_with_notes", "fail_with_group"]
    return [raises(getattr(zoo, name)) for name in names]


@both
def test_fields(zoo):
    os_error, unicode_error = raises(zoo.fail_with_os_error), raises(zoo.fail_with_unicode)
    stop, syntax = raises(zoo.fail_with_stop), raises(zoo.fail_with_syntax)
    name, attribute = raises(lambda: zoo.call(eval, "undefined")), raises(lambda: zoo.identity(zoo).nothing)
    return (
        os_error.errno, os_error.strerror, os_error.filename, type(os_error), unicode_error.object, unicode_error.start,
        unicode_error.reason, stop.value, syntax.lineno, syntax.text, syntax.filename, name.name, attribute.name,
        raises(zoo.call, exit_with, 3).code,
    )  # fmt: skip


def exit_with(code):
    raise SystemExit(code)


@both
def test_group(zoo):
    seen = []
    try:
        zoo.fail_with_group()
    except* ValueError as group:
        seen.append([str(e) for e in group.exceptions])
    except* zoo.ZooError as group:
        seen.append([e.code for e in group.exceptions])
    return seen


@both
def test_odd_constructors(zoo):
    return (
        raises(zoo.fail, zoo.NoArguments), raises(zoo.fail, zoo.StrictError, 1, 2), raises(zoo.fail, zoo.ZooError),
        raises(zoo.fail, zoo.ZooError, "m", 3),
    )  # fmt: skip


@both
def test_identity(zoo):
    first, second = raises(zoo.raise_held), raises(zoo.raise_held)
    return first is second, first is zoo.raised_once, first == second


@both
def test_session_exception_through_the_child(zoo):
    class Mine(Exception):
        pass

    error = Mine("mine", 1)

    def stop():
        raise error

    caught = raises(zoo.call, stop)
    return caught is error, type(caught) is Mine, raises(zoo.fail, Mine, 5), raises(zoo.call_and_translate, stop).__cause__ is error


@both
def test_session_subclass_of_an_isolated_exception(zoo):
    class Mine(zoo.CageError):
        pass

    def stop():
        raise Mine("mine", 9, detail="d")

    caught = raises(zoo.call, stop)
    return type(caught) is Mine, caught.code, caught.detail, str(caught), zoo.call_and_catch(stop)


@both
def test_made_in_the_session(zoo):
    error = zoo.CageError("open", 4, detail=[1])
    try:
        raise error
    except zoo.ZooError as caught:
        same = caught is error
    return same, error.code, list(error.detail), str(error), error.args, zoo.identity(error) is error


@both
def test_as_a_value(zoo):
    error = zoo.return_error()
    return error, error.code, isinstance(error, zoo.CageError), raises(zoo.call, raise_it, error) is error


def raise_it(error):
    raise error


@both
def test_attributes_set_here(zoo):
    error = zoo.return_error()
    error.extra = 5
    error.add_note("seen")
    return error.extra, error.__notes__


@both
def test_finally_and_else(zoo):
    log = []
    for f in (zoo.fresh_list, zoo.fail_with_attributes):
        try:
            f()
        except zoo.ZooError:
            log.append("except")
        else:
            log.append("else")
        finally:
            log.append("finally")
    return log


@both
def test_catch_in_the_child(zoo):
    return zoo.catch(zoo.fail_with_attributes), zoo.catch(zoo.fail, KeyError, "k"), zoo.catch(zoo.identity, 1)


@both
def test_pickled(zoo):
    return pickle.loads(pickle.dumps(raises(zoo.fail, ValueError, 1, "x")))


@both
def test_traceback_shows_file_line_and_source(zoo):
    try:
        zoo.fail_deep(3)
    except zoo.ZooError as error:
        frames = traceback.extract_tb(error.__traceback__)
        text = "".join(traceback.format_exception(error))
    last = frames[-4:]
    return (
        [(f.filename.rpartition("/")[2], f.lineno, f.name, f.line) for f in last], 'raise ZooError("deep")' in text,
        frames[0].name, text.splitlines()[-1],
    )  # fmt: skip


@both
def test_traceback_of_the_cause(zoo):
    error = raises(zoo.fail_with_cause)
    text = "".join(traceback.format_exception(error))
    return '{}["missing"]' in text, "direct cause" in text, text.splitlines()[-1]


def test_traceback_alternates(zoo):  # noqa: F811
    def stop():
        raise LookupError("here")

    try:
        zoo.call_many(lambda i: zoo.call(stop), 1)
    except LookupError as error:
        names = [f.name for f in traceback.extract_tb(error.__traceback__)]
    for name in ("call_many", "<lambda>", "call", "stop"):
        assert name in names, names
    assert names.index("call_many") < names.index("<lambda>") < names.index("call") < names.index("stop")


@both
def test_errors_in_special_methods(zoo):
    class Bad:
        def __len__(self):
            raise zoo.ZooError("len", 1)

        def __repr__(self):
            raise KeyError("repr")

        def __eq__(self, other):
            raise ValueError("eq")

    b = Bad()
    return raises(zoo.call, len, b), raises(zoo.call, repr, b), raises(zoo.call, lambda: b == 1), raises(zoo.use, b)


@both
def test_failing_len_bool_hash(zoo):
    v = zoo.VectorLike(1)
    return raises(bool, v), raises(hash, v), raises(lambda: v[0]), raises(int, v)


@both
def test_attributes_that_init_sets(zoo):
    """Of a session class that derives from an isolated exception, and of one with an ordinary isolated base too."""

    class Plain(zoo.ZooError):
        pass

    class More(zoo.ZooError):
        def __init__(self, message):
            super().__init__(message, 5, detail=[1])
            self.extra = self.code + 1

    class Mixed(zoo.Animal, ValueError):
        pass

    plain, more, mixed = Plain("p", 3), More("m"), Mixed("rex")
    try:
        raise mixed
    except ValueError as error:
        same = error is mixed
    return (
        plain.code, plain.detail, plain.args, str(plain), more.code, more.detail, more.extra, more.args,
        mixed.name, mixed.legs, mixed.args, same, isinstance(mixed, zoo.Animal), raises(zoo.call, raise_it, more) is more,
    )  # fmt: skip


def raise_it(error):
    raise error
