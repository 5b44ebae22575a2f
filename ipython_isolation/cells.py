"""``%%isolate``: a whole cell that runs in the child of a context. What the child does is in `cellspace`."""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import tokenize
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from . import cellspace
from .context import IsolationContext
from .registry import contexts

COMMAND = "%%isolate"
_NAMES_OF_FLAGS = {"-i": "-i", "--input": "-i", "-o": "-o", "--output": "-o", "--context": "--context"}
_IGNORED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
_numbers = itertools.count(1)


class Cell:
    """The source of a cell, checked.

    Parameters
    ----------
    line : str
        What follows ``%%isolate``.
    body : str
        The lines below.

    Attributes
    ----------
    filename : str
        Its name in tracebacks; no two cells of a session have the same.
    text : str
        The cell with its first line, so that line numbers are those of the notebook.
    silent : bool
        Whether it ends with a semicolon.

    Raises
    ------
    SyntaxError
        When it is not Python, with the line in the notebook's cell.
    UsageError
        When it awaits something outside of a function.
    """

    def __init__(self, line: str, body: str) -> None:
        self.filename = f"<isolated cell {next(_numbers)}>"
        self.text = f"{f'{COMMAND} {line}'.rstrip()}\n{body}"
        cellspace.remember(self.filename, self.text)
        self._check()
        self.silent = _ends_with_semicolon(body)

    def _check(self) -> None:
        source = cellspace.source_of(self.text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the child will give them, where it compiles this again
            warnings.simplefilter("ignore", DeprecationWarning)
            code = compile(source, self.filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            raise UsageError(f"{COMMAND}: no await outside of a function; asyncio.run(...) runs a coroutine there")

    def run(
        self, context: IsolationContext, inputs: Mapping[str, object], outputs: Iterable[str] = (), show: bool = True
    ) -> tuple[object, dict[str, object]]:
        """Run the cell in the child of a context.

        Parameters
        ----------
        context : IsolationContext
            It is started if it does not run.
        inputs : mapping of str to object
            Variables that the cell gets; they cross as the arguments of a call.
        outputs : iterable of str
            Variables of the cell that are wanted; they cross as the arguments of a callback.
        show : bool
            Whether the value of the last expression is wanted.

        Returns
        -------
        (object, dict)
            The value of the last expression, or None; the outputs by name.

        Raises
        ------
        NameError
            When one of the outputs does not exist after the cell.
        ProcessTerminationError
            When the cell killed the child.
        BaseException
            What the cell raised.
        """
        __tracebackhide__ = True
        context.load_module("__main__")  # where the names of cells are; so it is part of a frozen copy
        outputs, received = tuple(outputs), []

        def store(*values: object) -> None:
            received.extend(values)

        show = show and not self.silent
        value, missing = context._peer.host_call(
            "run_cell", self.filename, self.text, show, tuple(inputs), tuple(inputs.values()), outputs, store
        )
        if missing:
            raise _missing(missing)
        return value, dict(zip(outputs, received))


@magics_class
class IsolatedCells(Magics):
    """``%%isolate``.

    Parameters
    ----------
    shell : InteractiveShell
    context_named : callable
        Makes the context of a name (None: the default one).
    """

    def __init__(self, shell: InteractiveShell, context_named: Callable[[str | None], IsolationContext]) -> None:
        super().__init__(shell=shell)
        self._context_named = context_named

    @magic_arguments("%isolate")
    @argument(
        "-i", "--input", nargs="+", action="append", default=[], metavar="VAR",
        help="variables of the session that the cell gets, with commas or spaces between them",
    )  # fmt: skip
    @argument(
        "-o", "--output", nargs="+", action="append", default=[], metavar="VAR",
        help="variables of the cell that the session gets when it has run",
    )  # fmt: skip
    @argument("--context", metavar="NAME", help="the child process to run in; by default the one of %%isolate MODULE")
    @cell_magic("isolate")
    def isolate_cell(self, line: str, cell: str) -> object:
        """Run this cell in a child process, so that a crash there raises instead of ending the session.

        ::

            %%isolate -i photo -o edges
            import cv_module
            edges = cv_module.sobel_edges(photo)
            edges.mean()

        The value of the last expression is shown, unless a semicolon follows it. The names of the cell are those of the
        child: the next ``%%isolate`` cell finds them, the session gets those that ``-o`` names. Containers and arrays
        are copied both ways, and what the cell changes in place of those given by ``-i`` is changed here too; other
        objects are shared by proxies.

        When the cell crashes, `ProcessTerminationError` is raised. The names of earlier cells are still there where the
        child could be rolled back; after a restart they are gone.
        """
        __tracebackhide__ = True
        try:
            args = parse_argstring(self.isolate_cell, line)
        except (UsageError, ValueError) as error:  # shlex raises ValueError for an open quote
            raise UsageError(f"{error}; {COMMAND}? shows the usage") from None
        inputs, outputs = self._inputs(_split(args.input)), _checked(_split(args.output))
        checked = Cell(line, cell)
        show = self.shell.ast_node_interactivity != "none"
        value, received = checked.run(self._context(args.context), inputs, outputs, show)
        self.shell.push(received)
        return value

    def _inputs(self, names: list[str]) -> dict[str, object]:
        missing = [name for name in names if name not in self.shell.user_ns]
        if missing:
            raise UsageError(f"-i {','.join(missing)}: there is no such variable in this session")
        return {name: self.shell.user_ns[name] for name in names}

    def _context(self, name: str | None) -> IsolationContext:
        known = (context for context in contexts() if context.name == (name or "default"))
        return next(known, None) or self._context_named(name)


def complete(shell: InteractiveShell, event: SimpleNamespace) -> list[str]:
    """Complete flags, context names and variables after ``%%isolate``.

    Parameters
    ----------
    shell : InteractiveShell
    event : SimpleNamespace
        Of the hook ``complete_command``.

    Returns
    -------
    list of str
    """
    words = event.text_until_cursor.split()
    before = words[:-1] if event.symbol else words
    if event.symbol.startswith("-"):
        return list(_NAMES_OF_FLAGS)
    flag = next((_NAMES_OF_FLAGS[word] for word in reversed(before) if word in _NAMES_OF_FLAGS), None)
    if flag == "--context":
        return [context.name for context in contexts() if context.name]
    if flag == "-i":
        return [name for name in shell.user_ns if name not in shell.user_ns_hidden and not name.startswith("_")]
    return [] if flag == "-o" else list(_NAMES_OF_FLAGS)


def register(shell: InteractiveShell, context_named: Callable[[str | None], IsolationContext]) -> None:
    """Add ``%%isolate`` to a session.

    Parameters
    ----------
    shell : InteractiveShell
    context_named : callable
        As for `IsolatedCells`.
    """
    shell.register_magics(IsolatedCells(shell, context_named))
    shell.set_hook("complete_command", complete, str_key=COMMAND)


def unregister(shell: InteractiveShell) -> None:
    """Undo `register`.

    Parameters
    ----------
    shell : InteractiveShell
    """
    magics = shell.magics_manager.registry.pop(IsolatedCells.__name__, None)
    shell.magics_manager.magics["cell"].pop("isolate", None)
    shell.configurables[:] = [configurable for configurable in shell.configurables if configurable is not magics]
    shell.strdispatchers["complete_command"].strs.pop(COMMAND, None)


def _missing(names: Iterable[str]) -> NameError:
    text = f"the isolated cell has not made {', '.join(names)}, which -o names; nothing was assigned"
    error = NameError(text)
    error._render_traceback_ = lambda: [f"NameError: {text}"]  # IPython shows this: no stack helps here
    return error


def _split(groups: Iterable[Iterable[str]]) -> list[str]:
    """Return the names in words such as ``"a,b"``, each once."""
    return list(dict.fromkeys(name for words in groups for word in words for name in word.split(",") if name))


def _checked(names: list[str]) -> list[str]:
    wrong = [name for name in names if not name.isidentifier()]
    if wrong:
        raise UsageError(f"-o {wrong[0]}: that is not the name of a variable")
    return names


def _ends_with_semicolon(source: str) -> bool:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [token.string for token in tokens if token.type not in _IGNORED]
    return kept[-1:] == [";"]
