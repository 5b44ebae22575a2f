"""IPython's pretty printer, run where the objects are.

The session sends the source of its ``IPython.lib.pretty``, so that the text is what that prints. A child need not have
IPython, which would take it half a second and 30 MB to import.
"""

import builtins
import io
import sys
import types

#: Whose printers these are, and the file that its code is said to be in.
MODULE = "IPython.lib.pretty"
#: Stands for the printer of floats that every shell has, by its format.
FLOAT = "float"


def load(source, constants):
    """The module, as it is before anybody registers anything.

    Parameters
    ----------
    source : str
        Of ``IPython.lib.pretty``.
    constants : tuple of (str, object)
        What it imports from other modules of IPython, but for decorators, which are not needed.

    Returns
    -------
    module

    Raises
    ------
    Exception
        When this version of the module needs more of IPython than that.
    """
    others = types.SimpleNamespace(**dict(constants))

    class Others(types.ModuleType):
        def __getattr__(self, name):
            return getattr(others, name, lambda decorated: decorated)

    def import_(name, *args):
        return Others(name) if name.partition(".")[0] == "IPython" else builtins.__import__(name, *args)

    made = types.ModuleType(MODULE)
    made.__builtins__ = {**vars(builtins), "__import__": import_}
    exec(compile(source, MODULE, "exec", dont_inherit=True), vars(made))
    return made


def key(cls):
    """(module, name): what printers that are registered by name are found by."""
    return cls.__module__, cls.__name__


def _origin(function):
    """What tells functions of ``IPython.lib.pretty`` apart: those of the module itself are as good as a copy's."""
    if getattr(function, "__module__", None) != MODULE:
        return function
    cells = getattr(function, "__closure__", None) or ()
    return function.__qualname__, tuple(cell.cell_contents for cell in cells)


def changes(formatter, pretty):
    """What somebody has registered with a shell's formatter of texts.

    Parameters
    ----------
    formatter : PlainTextFormatter
    pretty : module
        As `load` makes it.

    Returns
    -------
    tuple of ((str, str), callable, str or None)
        Keys of classes, and their printers; `FLOAT`; None: it was taken away. None where singletons have other printers.
    """
    if formatter.singleton_printers.keys() != pretty._singleton_pprinters.keys():
        return None
    own = {key(cls): function for cls, function in pretty._type_pprinters.items()} | pretty._deferred_type_pprinters
    theirs = dict(formatter.deferred_printers)
    theirs.update((key(cls), function) for cls, function in formatter.type_printers.items())
    found = []
    for name, function in theirs.items():
        if getattr(function, "__qualname__", "").startswith("PlainTextFormatter._type_printers_default."):
            found.append((name, FLOAT))
        elif name not in own or _origin(function) != _origin(own[name]):
            found.append((name, function))
    return (*found, *((name, None) for name in own if name not in theirs))


class Printers:
    """Which printer is used for which class.

    Parameters
    ----------
    pretty : module
        As `load` makes it.
    float_format : str
        With ``%``.
    """

    def __init__(self, pretty, float_format):
        self._pretty = pretty
        self._float_format = float_format
        self._types = pretty._type_pprinters.copy()
        self._named = pretty._deferred_type_pprinters.copy()

    def change(self, changed):
        """Does what `changes` has found."""
        for name, function in changed:
            for cls in [cls for cls in self._types if key(cls) == name]:
                del self._types[cls]
            self._named.pop(name, None)
            if type(function) is str:  # FLOAT; anything else may be an object of the other process
                self._named[name] = lambda o, p, cycle: p.text(self._float_format % o)
            elif function is not None:
                self._named[name] = function

    def known(self, o):
        """Whether there is one for the class of `o`, or a base of it."""
        cls = getattr(o, "__class__", None) or type(o)
        return any(base in self._types or key(base) in self._named for base in cls.__mro__)

    def print(self, o, verbose, max_width, newline, max_seq_length):
        """The text that IPython shows of `o`: str."""
        stream = io.StringIO()
        printer = self._pretty.RepresentationPrinter(
            stream,
            verbose,
            max_width,
            newline,
            type_pprinters=self._types,
            deferred_pprinters=self._named,
            max_seq_length=max_seq_length,
        )
        printer.pretty(o)
        printer.flush()
        return stream.getvalue()


class Kept:
    """The module that the session has sent to this process, or its own."""

    def __init__(self):
        self._pretty = None

    def get(self, sent):
        """
        Parameters
        ----------
        sent : tuple or None
            As for `load`; None: it was sent before.

        Returns
        -------
        module
        """
        if sent is not None:
            self._pretty = load(*sent)
        return self._pretty


def of_session():
    """What is sent: (source, constants) of this process's ``IPython.lib.pretty``. None where that is not known."""
    module = sys.modules[MODULE]
    try:
        source = module.__spec__.loader.get_source(MODULE)
    except Exception:  # whatever keeps modules
        return None
    constants = tuple((name, value) for name, value in vars(module).items() if isinstance(value, bool))
    return None if source is None else (source, constants)
