"""Works on what it is given: for tests of objects that are not isolated, but passed to what is."""

kept = []


class Thing:
    """An object that is no value."""


def is_real(o):
    """Whether `o` is an object of this process."""
    from ipython_isolation import isproxy

    return not isproxy(o)


def identity(o):
    return o


def keep(o):
    kept[:] = [o]


def is_kept(o):
    return kept[0] is o


def do(source, o=None, f=None):
    """Runs statements on `o`, which may call `f`, and returns what they call `r`."""
    names = {"o": o, "f": f, "r": None}
    exec(source, names)
    return names["r"]
