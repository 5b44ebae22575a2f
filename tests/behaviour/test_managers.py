"""Context managers."""

from behaviour.harness import both, raises, worlds  # noqa: F401


@both
def test_events(zoo):
    m = zoo.Manager()
    with m as inner:
        same = inner is m
    return same, list(m.events)


@both
def test_exception_passes(zoo):
    m = zoo.Manager()

    def use():
        with m:
            raise ValueError("inside")

    return raises(use), list(m.events)


@both
def test_exception_is_swallowed(zoo):
    m = zoo.Manager(swallow=True)
    with m:
        raise ValueError("inside")
    return list(m.events)


@both
def test_failing_enter_and_exit(zoo):
    def enter():
        with zoo.FailsOnEnter():
            raise AssertionError("not reached")

    def leave():
        with zoo.FailsOnExit():
            raise KeyError("first")

    return raises(enter), raises(leave), raises(leave).__context__


class Log:
    """By reference, unlike a list: what is kept and changed later is seen here."""

    def __init__(self):
        self.lines = []

    def append(self, line):
        self.lines.append(line)


@both
def test_contextmanager_function(zoo):
    log = Log()
    with zoo.managed(log) as value:
        log.append("inside")
        raise LookupError("swallowed")
    return value, log.lines


@both
def test_contextmanager_function_passes(zoo):
    log = Log()

    def use():
        with zoo.managed(log):
            raise ValueError("passes")

    return raises(use), log.lines


@both
def test_exit_stack(zoo):
    import contextlib

    first, second = zoo.Manager(), zoo.Manager(swallow=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(first)
        stack.enter_context(second)
        raise KeyError("k")
    return list(first.events), list(second.events)


@both
def test_session_manager_in_the_child(zoo):
    log = []

    class Mine(zoo.Manager):
        def __exit__(self, kind, error, traceback):
            log.append((kind, str(error)))
            return super().__exit__(kind, error, traceback)

    m = Mine(True)
    with m:
        raise ValueError("v")
    return log, list(m.events)
