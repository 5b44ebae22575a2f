"""The IPython extension: ``%isolate``, its configuration and its completion.

What it does to modules is in `ipython_isolation.importer`; here is only what IPython and the user see.
"""

from __future__ import annotations

import html
import os
import pkgutil
import sys
from argparse import Namespace
from collections.abc import Iterable
from types import SimpleNamespace

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from traitlets import Any, Bool, Bunch, Enum, List, TraitError, Unicode, validate

from . import _core, bundle, cells, completion, display, importer, limits, output
from .context import IsolationContext, close_each, named_context
from .registry import contexts
from .session_cells import cell_began, cell_ended, cell_executed

_COMMAND = "%isolate"
_ACTIONS = ("off", "restart", "reload", "attach", "release")
_SWITCHES = ("hold", "spare", "autoreload", "mute")
_VALUES = ("timeout", "memory", "cpu", "nice", "env", "wrapper")
_FLAGS = tuple(f"--{name}" for name in ("context", "replay", *_ACTIONS, *_SWITCHES, *_VALUES))


@magics_class
class Isolate(Magics):
    """``%isolate``. Traits are configured by this class's name: ``c.Isolate.modules = ["cv2"]``."""

    modules = List(
        Unicode(),
        help="""Modules that are isolated when the extension is loaded, such as ["cv2", "scipy.linalg"].
        One that is not found is reported and does not keep the session from starting.""",
    ).tag(config=True)
    arrays = Enum(
        ["copy", "shared"],
        default_value="copy",
        help="""How arrays cross into the children that %isolate makes from now on. "copy": the child works
        on copies and its changes are written back after the call, so a call that dies has changed nothing.
        "shared": big arrays made from now on are in memory that both processes have, and cross without a copy.""",
    ).tag(config=True)

    rollback = Enum(
        ["auto", "off"],
        default_value="auto",
        help="""Whether what earlier cells made in a child outlives its death, in the children that %isolate makes
        from now on. "auto": yes, by a frozen copy of the child at the beginning of each cell that uses it,
        where that is cheap and safe. "off": never.""",
    ).tag(config=True)

    timeout = Any(
        None,
        allow_none=True,
        help="""Seconds that a call may take in the children that %isolate makes from now on; then it is interrupted,
        and if that does not help, the child is killed. None: no limit.""",
    ).tag(config=True)
    memory = Any(
        None,
        allow_none=True,
        help="""Bytes that such a child may use for data, or a text such as "2G". None: no limit.""",
    ).tag(config=True)
    cpu = Any(
        None,
        allow_none=True,
        help="""Seconds of processor time after which such a child is killed. None: no limit.""",
    ).tag(config=True)
    nice = Any(
        None,
        allow_none=True,
        help="""What is added to the nice value of such a child: 10 leaves the processor to others.""",
    ).tag(config=True)
    env = Any(
        None,
        allow_none=True,
        help="""Environment variables of such a child alone, such as {"LD_PRELOAD": "libasan.so.8"}.""",
    ).tag(config=True)
    wrapper = Any(
        None,
        allow_none=True,
        help="""A command that such a child is started with, such as ["valgrind", "-q"].""",
    ).tag(config=True)
    hold = Bool(
        False,
        help="""Whether a child that crashes stands still for a debugger; see %isolate --attach and --release.""",
    ).tag(config=True)
    spare = Bool(
        False,
        help="""Whether a second interpreter is started in advance, so that a restart takes milliseconds.""",
    ).tag(config=True)
    mute = Bool(
        False,
        help="""Whether what such a child prints and displays is not shown.""",
    ).tag(config=True)
    autoreload = Bool(
        False,
        help="""Whether a new child starts by itself, before the next call, once a module or a library that it uses
        was rebuilt.""",
    ).tag(config=True)

    @validate(*_VALUES)
    def _valid(self, proposal: Bunch) -> object:
        try:
            return limits.READ[proposal.trait.name](proposal.value)
        except (TypeError, ValueError) as error:
            raise TraitError(f"Isolate.{proposal.trait.name}: {error}") from None

    def __init__(self, shell: InteractiveShell, **kwargs: object) -> None:
        super().__init__(shell=shell, **kwargs)
        self._made: list[IsolationContext] = []  # contexts that exist because of us; closed by undo()
        self._names: set[str] = set()  # names that we isolated; released by undo()
        self._skipped: set[str] = set()  # modules that %autoreload skips because of us

    @magic_arguments()
    @argument("modules", nargs="*", metavar="module", help="modules, as in `import`: cv2, scipy.linalg")
    @argument("--context", metavar="NAME", help="a child process of its own; by default all share one")
    @argument("--off", action="store_true", help="import these modules (or all) in this process again")
    @argument("--restart", action="store_true", help="give these modules (or all) a fresh child process")
    @argument("--reload", action="store_true", help="a fresh child process that loads the modules as they are now built")
    @argument(
        "--autoreload", nargs="?", const="on", metavar="on|off",
        help="--reload by itself, before the next call, once a module or a library that it uses was rebuilt",
    )
    @argument("--timeout", metavar="SECONDS", help="interrupt calls that take longer; kill what does not stop then")
    @argument("--memory", metavar="SIZE", help="how much data the child may hold, such as 2G")
    @argument("--cpu", metavar="SECONDS", help="processor time after which the child is killed")
    @argument("--nice", metavar="N", help="added to the child's nice value")
    @argument("--env", action="append", metavar="NAME=VALUE", help="an environment variable for the child alone")
    @argument("--wrapper", metavar="COMMAND", help='a tool to start the child under: "valgrind -q"')
    @argument(
        "--hold", nargs="?", const="on", metavar="on|off", help="a crashed child stands still, for a debugger"
    )
    @argument("--attach", action="store_true", help="say how to attach a debugger to the child")
    @argument("--release", action="store_true", help="end the crashed children that --hold has kept")
    @argument(
        "--spare", nargs="?", const="on", metavar="on|off", help="start another interpreter in advance, for fast restarts"
    )
    @argument(
        "--mute", nargs="?", const="on", metavar="on|off", help="show nothing of what the child prints and displays"
    )
    @argument("--replay", metavar="FILE", help="make the call of a crash bundle again, in a child process of its own")
    @line_magic
    def isolate(self, line: str) -> object:
        """Run modules in a child process, so that a crash there raises instead of ending the session.

        ::

            %isolate cv2
            import cv2

        The import, and everything done with the module, then runs in the child. When its native code
        crashes, the call raises `ProcessTerminationError`; the variables of this session stay, and the next
        call runs in a new child.

        Without arguments, shows what is isolated. ``%%isolate`` runs a whole cell in the child.

        Edit the library, rebuild it, and call it again, without restarting the session::

            %isolate cv2 --autoreload

        ``--mute`` with modules holds for what is shown while they are called, not for others in the same child.

        Other options such as ``--timeout 5`` or ``--memory 2G`` hold for the child of the modules that are named, or of
        ``--context``; without either for all, and for those to come. ``none`` takes a limit away.
        """
        try:
            args = parse_argstring(self.isolate, line)
        except (UsageError, ValueError) as error:  # shlex raises ValueError for an open quote
            raise UsageError(f"{error}; %isolate? shows the usage") from None
        names = [name for word in args.modules for name in word.split(",") if name]
        options = self._options(args, names)
        if args.replay is not None:
            if line.split()[:1] != ["--replay"] or names or options:
                raise UsageError("--replay FILE stands alone: it makes one call again, in a child process of its own")
            return _replay(_unquoted(args.replay))
        actions = [action for action in _ACTIONS if getattr(args, action)]
        if len(actions) > 1:
            one, other = actions[:2]
            raise UsageError(f"--{one} and --{other} exclude each other: run them one after the other")
        if options and actions:
            raise UsageError(f"--{actions[0]} and --{next(iter(options))}: run them one after the other")
        if args.off:
            self._off(self._selected(names, args.context))
        elif actions:
            getattr(self, f"_{actions[0]}")(self._chosen(names, args.context))
        elif names:
            self._isolate(names, args.context, options)
        elif options:
            self._configure(args.context, options)
        elif args.context is not None:
            raise UsageError("name the modules that should run there: %isolate cv2 --context NAME")
        else:
            return IsolationTable()
        return None

    @staticmethod
    def _options(args: Namespace, names: list[str]) -> dict[str, object]:
        """Return the options given, read; a switch may have swallowed the first module's name."""
        options = {name: getattr(args, name) for name in (*_VALUES, *_SWITCHES) if getattr(args, name) is not None}
        for name in options.keys() & set(_SWITCHES):
            if options[name] not in ("on", "off"):
                names.extend(part for part in options[name].split(",") if part)
                options[name] = "on"
            options[name] = options[name] == "on"
        for name in options.keys() & set(_VALUES):
            try:
                value = options[name]
                options[name] = limits.READ[name]([*map(_unquoted, value)] if name == "env" else _unquoted(value))
            except (TypeError, ValueError) as error:
                raise UsageError(f"--{name}: {error}") from None
        return options

    def isolate_configured(self) -> None:
        """Isolate the configured modules one by one; what fails is said and does not stop the session."""
        self._isolate_configured(self.modules)
        self.observe(self._follow_modules, "modules")

    def undo(self) -> None:
        """Release what this extension isolated, and close the contexts it made."""
        self.unobserve(self._follow_modules, "modules")
        names = [name for name, context in importer.isolated().items() if name in self._names or context in self._made]
        importer.release(*names, namespace=self.shell.user_ns)
        made, self._made = self._made, []
        self._names.clear()
        self.mark_skipped()
        close_each(made)

    def mark_skipped(self, *_: object) -> None:
        """Keep %autoreload away from isolated modules: it would execute their changed source in this process.

        It checks before each cell, so this runs after each. `importlib.reload` reloads a module
        in the child.
        """
        reloader = self._autoreloader()
        if reloader is None:
            return
        now = {name for name, module in list(sys.modules.items()) if _core.isproxy(module)}
        for name in self._skipped - now:
            reloader.skip_modules.pop(name, None)
        for name in now:
            reloader.mark_module_skipped(name)
        self._skipped = now

    def _autoreloader(self) -> object | None:
        """Return what %autoreload keeps about modules, if that extension is loaded."""
        return getattr(self.shell.magics_manager.registry.get("AutoreloadMagics"), "_reloader", None)

    def _follow_modules(self, change: Bunch) -> None:
        """Follow ``%config Isolate.modules = [...]``."""
        self._off([name for name in change.old if name not in change.new and name in importer.isolated()])
        self._isolate_configured([name for name in change.new if name not in change.old])

    def _isolate_configured(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._isolate([name], None)
            except Exception as error:
                _say(f"{name} is not isolated: {error}")

    def _isolate(self, names: list[str], context_name: str | None, options: dict[str, object] | None = None) -> None:
        try:
            options = dict(options or {})
            mute = options.pop("mute", None)
            context = self._context(context_name, options)
            report = importer.isolate_with_report(names, context, namespace=self.shell.user_ns)
            for name in names if mute is not None else ():
                context.mute_module(name, mute)
        except importer.NotIsolatableError as error:
            raise UsageError(str(error)) from None
        self._names.update(names)
        for line in report.lines():
            _say(line)

    def _context(self, name: str | None, options: dict[str, object]) -> IsolationContext:
        name = "default" if name is None else name
        before = contexts()
        known = next((context for context in before if context.name == name), None)
        given = {"arrays": self.arrays, "rollback": self.rollback}
        if known is None:
            given.update({option: getattr(self, option) for option in (*_VALUES, *_SWITCHES)}, **options)
            if given["wrapper"] and self.rollback == "auto":
                del given["rollback"]  # it is off then
        elif known._wrapper:
            del given["rollback"]
        try:
            context = named_context(name, **given)
        except ValueError as error:  # it exists, with other options
            raise UsageError(str(error)) from None
        if context not in before:
            self._made.append(context)
        else:
            self._set_options(context, options)
        return context

    def _configure(self, context_name: str | None, options: dict[str, object]) -> None:
        """Change options of one context; or of all, and of those to come."""
        if context_name is None:
            for option, value in options.items():
                setattr(self, option, value)
            chosen = {id(context): context for context in [*importer.isolated().values(), *self._made]}.values()
        else:
            chosen = [context for context in contexts() if context.name == context_name]
            if not chosen:
                raise UsageError(f"there is no context {context_name!r} yet; name the modules that should run there")
        for context in chosen:
            if context.info()["state"] != "closed":
                self._set_options(context, options)

    @staticmethod
    def _set_options(context: IsolationContext, options: dict[str, object]) -> None:
        later = context.configure(**options)
        if later:
            flags = ", ".join(f"--{option}" for option in later)
            _say(f"{flags}: from the next process of context {context.name} on; %isolate --restart begins it")

    def _selected(self, names: list[str], context_name: str | None) -> list[str]:
        """Return the isolated names that the user means: those given, in the context given, or all."""
        isolated = importer.isolated()
        for name in names:
            if name not in isolated:
                raise UsageError(f"{name} is not isolated; isolated are: {', '.join(isolated) or 'none'}")
        if context_name is not None and context_name not in (context.name for context in contexts()):
            known = ", ".join(str(context.name) for context in contexts())
            raise UsageError(f"there is no context {context_name!r}; there are: {known or 'none'}")
        return [
            name
            for name, context in isolated.items()
            if (not names or name in names) and context_name in (None, context.name)
        ]

    def _off(self, names: list[str]) -> None:
        importer.release(*names, namespace=self.shell.user_ns)
        self._names.difference_update(names)

    def _chosen(self, names: list[str], context_name: str | None) -> list[IsolationContext]:
        """Return the contexts of the modules that the user means; without any, also those that run cells."""
        chosen = _distinct(self._selected(names, context_name))
        if not names:
            of_cells = [context for context in contexts() if "__main__" in context.info()["modules"]]
            chosen += [context for context in of_cells if context not in chosen and context_name in (None, context.name)]
        return chosen

    @staticmethod
    def _restart(chosen: list[IsolationContext]) -> None:
        for context in chosen:
            # One that has not started yet is as fresh as can be.
            if context.info()["state"] != "new":
                context.restart()

    @staticmethod
    def _reload(chosen: list[IsolationContext]) -> None:
        for context in chosen:
            context.reload()

    @staticmethod
    def _attach(chosen: list[IsolationContext]) -> None:
        chosen = [context for context in chosen if context.info()["held"] or context.remote_pid is not None]
        if not chosen:
            raise UsageError("no child process runs yet: import an isolated module first")
        for context in chosen:
            if len(chosen) > 1:
                print(f"{context.name}:")
            print(context.attach())

    @staticmethod
    def _release(chosen: list[IsolationContext]) -> None:
        for context in chosen:
            context.release()


def _replay(path: str) -> object:
    try:
        return bundle.replay(os.path.expanduser(path))
    except bundle.BundleError as error:
        raise UsageError(str(error)) from None


class IsolationTable:
    """What is isolated right now: the answer of ``%isolate`` without arguments.

    Attributes
    ----------
    rows : list of tuple of str
        One for each isolated module, in the order of `COLUMNS`; contexts without isolated modules come last.
    """

    COLUMNS = ("module", "context", "pid", "state", "calls", "crashes", "memory", "roll-back")

    def __init__(self) -> None:
        isolated = importer.isolated()
        idle = [context for context in contexts() if context not in isolated.values()]
        self.rows = [_row(name, context) for name, context in isolated.items()]
        self.rows += [_row("", context) for context in idle]

    def __repr__(self) -> str:
        if not self.rows:
            return "Nothing is isolated. Try: %isolate MODULE"
        lines = [self.COLUMNS, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        if not self.rows:
            return "Nothing is isolated. Try: <code>%isolate MODULE</code>"
        head = "".join(f"<th>{column}</th>" for column in self.COLUMNS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add ``%isolate`` to a session, and isolate the modules configured in ``c.Isolate.modules``.

    Parameters
    ----------
    shell : InteractiveShell
        The IPython shell that loads the extension.
    """
    if Isolate.__name__ in shell.magics_manager.registry:
        return
    magics = Isolate(shell)
    shell.register_magics(magics)
    shell.set_hook("complete_command", _complete, str_key=_COMMAND)
    cells.register(shell, lambda name: magics._context(name, {}))
    shell.events.register("post_run_cell", magics.mark_skipped)
    shell.events.register("pre_run_cell", cell_began)
    shell.events.register("post_execute", cell_executed)
    shell.events.register("post_run_cell", cell_ended)
    display.install(shell)
    completion.install(shell)
    _completable_types().add(_core.module)
    magics.isolate_configured()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Undo `load_ipython_extension` and everything done with ``%isolate``: its children end.

    Parameters
    ----------
    shell : InteractiveShell
        The IPython shell that unloads the extension.
    """
    # IPython has no way back for these registrations; left in place they would stack at each %reload_ext.
    magics = shell.magics_manager.registry.pop(Isolate.__name__, None)
    if magics is None:
        return
    shell.magics_manager.magics["line"].pop("isolate", None)
    cells.unregister(shell)
    shell.configurables[:] = [configurable for configurable in shell.configurables if configurable is not magics]
    shell.strdispatchers["complete_command"].strs.pop(_COMMAND, None)
    shell.events.unregister("post_run_cell", magics.mark_skipped)
    shell.events.unregister("pre_run_cell", cell_began)
    shell.events.unregister("post_execute", cell_executed)
    shell.events.unregister("post_run_cell", cell_ended)
    display.uninstall(shell)
    completion.uninstall(shell)
    _completable_types().discard(_core.module)
    magics.undo()


def _completable_types() -> set[type]:
    """Return the types with attribute access of their own that IPython's completer trusts (8.8 and later).

    Without ours, the Tab after ``module.Class.`` finds nothing when jedi is off, as it is in IPython 9.
    """
    try:
        from IPython.core.guarded_eval import EVALUATION_POLICIES

        return EVALUATION_POLICIES["limited"].allowed_getattr
    except (ImportError, KeyError, AttributeError):
        return set()


def _distinct(names: Iterable[str]) -> list[IsolationContext]:
    """Return the contexts that isolated names belong to, each once."""
    isolated = importer.isolated()
    return list({id(isolated[name]): isolated[name] for name in names}.values())


def _unquoted(word: str) -> str:
    """Take off the quotes that IPython's splitting leaves around a word."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word


def _row(name: str, context: IsolationContext) -> tuple[str, ...]:
    info = context.info()
    return (
        name,
        str(context.name or ""),
        str(info["pid"] or ""),
        info["state"],
        str(info["requests"]),
        str(info["crashes"]),
        _megabytes(info["rss"]),
        _rollback(info["rollback"]),
    )


def _rollback(status: dict[str, object]) -> str:
    return "on" if status["on"] else f"off: {status['reason']}"


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.1f} MB" if size else ""


def _complete(shell: InteractiveShell, event: SimpleNamespace) -> list[str]:
    """Complete flags, context names and module names after ``%isolate``."""
    words = event.text_until_cursor.split()
    before = words[:-1] if event.symbol else words
    if event.symbol.startswith("-"):
        return list(_FLAGS)
    if before[-1] == "--context":
        return [context.name for context in contexts() if context.name]
    if before[-1] in {f"--{switch}" for switch in _SWITCHES} and "on".startswith(event.symbol[:1]):
        return ["on", "off"]
    if any(f"--{action}" in before for action in _ACTIONS):
        return list(importer.isolated())
    return _module_names(event.symbol)


def _module_names(start: str) -> list[str]:
    """Return full names of modules beside the one that `start` begins, importing nothing."""
    package, dot, _ = start.rpartition(".")
    if not dot:
        return sorted({*sys.builtin_module_names, *(module.name for module in pkgutil.iter_modules())})
    spec = importer.locate(package)
    path = spec.submodule_search_locations if spec is not None else None
    return [module.name for module in pkgutil.iter_modules(path, package + dot)] if path else []


def _say(line: str) -> None:
    output.say(f"%isolate: {line}")
