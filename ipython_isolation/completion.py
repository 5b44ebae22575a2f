"""Completion with jedi in the session: where it is about an isolated object, jedi of the child is asked.

jedi looks at every attribute of what it completes, which would be hundreds of requests. The child has the object
itself, and the sources that jedi reads to follow calls: so it answers as plain, in one request (`suggest`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from IPython.core.error import TryNext

from . import _core, errors, importer
from .registry import contexts

if TYPE_CHECKING:
    from IPython.core.completer import IPCompleter
    from IPython.core.interactiveshell import InteractiveShell

_METHOD = "_jedi_matches"  # of IPython's completer, since 7
_OPENING = {")": "(", "]": "[", "}": "{"}
_BASE = "_isolated_"  # stands for the isolated object in the text that the child gets
_NO_FUNCTION = "\u01bb"  # a name that nobody has: a call of it has no parameters
_NOT_FOUND = object()
_IMPORT = re.compile(r"\s*(?:from\s+([\w.]+)\s+import\s+[^#;]*|(?:from|import)\s+([\w.]+))$")
_COMMANDS = ("import", "from")
_EARLY = 10  # before IPython's own hooks, which have 50


def install(shell: InteractiveShell) -> None:
    """From now on the shell's completer asks the child about isolated objects.

    Parameters
    ----------
    shell : InteractiveShell
        Its `Completer` is changed, where it has the method that this replaces.
    """
    own = getattr(shell.Completer, _METHOD, None)
    if own is not None:
        setattr(shell.Completer, _METHOD, functools.partial(_matches, shell.Completer, own))
    for command in _COMMANDS:
        shell.set_hook("complete_command", _complete_import, priority=_EARLY, str_key=command)


def uninstall(shell: InteractiveShell) -> None:
    """Undo `install`.

    Parameters
    ----------
    shell : InteractiveShell
    """
    vars(shell.Completer).pop(_METHOD, None)
    for command in _COMMANDS:
        chain = shell.strdispatchers["complete_command"].strs[command].chain
        chain[:] = [(priority, hook) for priority, hook in chain if not _is_ours(hook)]


def _is_ours(hook: object) -> bool:
    return getattr(hook, "__func__", hook) is _complete_import


def _complete_import(shell: InteractiveShell, event: SimpleNamespace) -> list[str]:
    """Complete ``import`` and ``from``, where that is about an isolated module."""
    words = event.line.split(" ")
    if words[0] == "from" and len(words) > 3:
        name, prefix = words[1], ""
    else:
        name, dot, _ = words[-1].rpartition(".")
        prefix = name + dot
    if len(words) < 2 or not name or importer.context_for(name) is None:
        raise TryNext
    try:
        module = importlib.import_module(name)
        info = _core.proxy_info(module)
        if info is None:
            raise TryNext
        return [prefix + found for found in info[0].host_call("importable", module, bool(prefix))]
    except ImportError:
        return []


class Suggestion:
    """What IPython uses of a ``jedi.api.classes.Completion``.

    Attributes
    ----------
    name : str
        The name that is completed.
    name_with_symbols : str
        The same with what belongs behind it, such as ``=``.
    complete : str
        The part of that which is yet to be typed.
    type : str
        What jedi calls it: "function", "instance", ...
    """

    def __init__(self, name: str, with_symbols: str, complete: str, kind: str | None, signature: str | None) -> None:
        self.name, self.name_with_symbols, self.complete = name, with_symbols, complete
        self.type = "<unknown>" if kind is None else kind
        self._signature = signature

    def get_signatures(self) -> list[Suggestion]:
        """Return what has a ``to_string()``; nothing where no signature is known."""
        return [] if self._signature is None else [self]

    def to_string(self) -> str:
        """Return the signature with the name before it."""
        return str(self._signature)


class _Question(NamedTuple):
    """What the child is asked."""

    peer: _core.Peer
    text: str
    names: tuple
    arguments: bool = False  # only names of parameters are wanted
    here: str = ""  # then: what the session's jedi is to complete beside them
    certain: bool = True  # else the names may mean something else in the text


def _matches(
    completer: IPCompleter, own: Callable[..., Iterator[Any]], cursor_column: int, cursor_line: int, text: str
) -> Iterator[Any]:
    """As ``IPCompleter._jedi_matches``."""
    lines = text.split("\n")
    before = "\n".join([*lines[:cursor_line], lines[cursor_line][:cursor_column]])
    question = _question(completer, before) if contexts() else None
    answer = None if question is None else _ask(completer, question)
    if question is None or answer is None:
        return own(cursor_column, cursor_line, text)
    found, others = [Suggestion(*each) for each in answer[0]], answer[1]
    if question.arguments:
        if others or not found:  # else only keyword arguments may follow
            found += own(cursor_column, cursor_line, question.here)
        typed = re.search(r"\w*$", before).group()
        found.sort(key=lambda one: _jedis_order(one.name, typed))
    elif not found and not question.certain:
        return own(cursor_column, cursor_line, text)
    return (each for each in found if not before.endswith(".") or _is_shown(each.name, completer.omit__names))


def _jedis_order(name: str, typed: str) -> tuple:
    return not name.startswith(typed), name.startswith("__"), name.startswith("_"), name.lower()


def _is_shown(name: str, omit: int) -> bool:
    """Whether IPython shows a name behind a dot, by its trait ``omit__names``."""
    if omit == 2:
        return not name.startswith("_")
    return omit == 0 or not (name.startswith("__") and name.endswith("__"))


def _ask(completer: IPCompleter, question: _Question) -> tuple[tuple, bool] | None:
    """Return what the child answers, or None where the session's jedi may know more."""
    seconds = completer.jedi_compute_type_timeout / 1000
    try:
        return question.peer.host_call("suggest", question.text, question.names, seconds, question.arguments)
    except errors.ProcessTerminationError:
        return (), False  # asking for each attribute would end the next process too
    except Exception:  # jedi's, a context that is closed, ...
        return None


def _question(completer: IPCompleter, before: str) -> _Question | None:
    """Return what to ask the child, if what is completed at the end of a text belongs to an isolated object."""
    namespaces = [names for names in (completer.namespace, completer.global_namespace) if names is not None]
    imported = _IMPORT.match(before.rpartition("\n")[2])
    if imported is not None:
        context = importer.context_for(imported.group(1) or imported.group(2))
        return None if context is None else _Question(context._peer, before, (), certain=False)
    try:
        import parso
    except ImportError:
        return None
    module = parso.parse(before)
    end = module.get_last_leaf()
    last = end.get_previous_leaf()
    if last is None:
        return None
    if not end.prefix and last.value.isidentifier():
        last = last.get_previous_leaf()  # before it is what has been typed of the name
    if last is not None and last.value == ".":
        return _about(module, last.get_previous_leaf(), last, before, namespaces)
    bracket = None if last is None or last.value not in ("(", ",") else _opening(last, 1)
    if bracket is None or bracket.value != "(" or bracket.get_previous_leaf() is None:
        return None
    callee = bracket.get_previous_leaf()
    question = _about(module, callee, bracket, before, namespaces)
    if question is None:
        return None
    here = "".join(leaf.get_code() for leaf in _leaves(module.get_first_leaf(), _base(callee)))
    base = _base(callee)
    gone = "".join(leaf.get_code() for leaf in _leaves(base, bracket))[len(base.prefix) :]
    rest = "".join(leaf.get_code() for leaf in _leaves(bracket))
    if "\n" in gone:
        return None
    here += base.prefix + _NO_FUNCTION + " " * (len(gone) - 1) + rest
    return question._replace(arguments=True, here=here)


def _about(
    module: Any, last: Any, end: Any, before: str, namespaces: list[Mapping[str, object]]
) -> _Question | None:
    """Return the question about an expression, given its last leaf and the one behind it."""
    base = _base(last)
    if base is None:
        return None
    defined = _defined(module, base)
    if defined is None:
        found, rest = _walk(_look_up(base.value, namespaces), base.get_next_leaf(), end)
        info = _core.proxy_info(found)
        if info is None or info[3]:
            return None
        text = "".join(leaf.get_code() for leaf in _leaves(rest))
        return _Question(info[0], ("(" if "\n" in text else "") + _BASE + text, ((_BASE, found),))
    peer = _leading(module, defined, namespaces)
    if peer is None:
        return None
    there = {name: _look_up(name, namespaces) for name in module.get_used_names()}
    infos = {name: _core.proxy_info(o) for name, o in there.items()}
    names = tuple((n, there[n]) for n, one in infos.items() if one and one[0] is peer and not one[3])
    return _Question(peer, before, names, certain=False)


def _leaves(leaf: Any, end: Any = None) -> Iterator[Any]:
    """Yield a leaf and those that follow, up to another."""
    while leaf is not None and leaf is not end:
        yield leaf
        leaf = leaf.get_next_leaf()


def _base(leaf: Any) -> Any:
    """Return the name that an expression of names, attributes, calls and items begins with, given its last leaf."""
    while leaf is not None:
        if leaf.value in _OPENING and leaf.type == "operator":
            leaf = _opening(leaf)
            previous = None if leaf is None else leaf.get_previous_leaf()
            if previous is None or leaf.value == "{" or not (previous.type == "name" or previous.value in (")", "]")):
                return None  # brackets of their own
            leaf = previous
            continue
        if not leaf.value.isidentifier():
            return None
        previous = leaf.get_previous_leaf()
        if previous is None or previous.value != ".":
            return leaf if leaf.type == "name" else None
        leaf = previous.get_previous_leaf()
    return None


def _opening(leaf: Any, depth: int = 0) -> Any:
    """Return the bracket that a closing one belongs to; with a depth of 1, the one that is open at a leaf."""
    while leaf is not None:
        if leaf.type == "operator" and leaf.value in _OPENING:
            depth += 1
        elif leaf.type == "operator" and leaf.value in _OPENING.values():
            depth -= 1
            if depth == 0:
                return leaf
        leaf = leaf.get_previous_leaf()
    return None


def _look_up(name: str, namespaces: list[Mapping[str, object]]) -> object:
    return next((names[name] for names in namespaces if name in names), _NOT_FOUND)


def _walk(found: object, leaf: Any, end: Any) -> tuple[object, Any]:
    """Follow attributes and items of objects of the session up to an isolated one, without running anybody's code.

    Returns
    -------
    (object, leaf)
        What was reached, and the leaf behind it.
    """
    while leaf is not end and not _core.isproxy(found):
        following = leaf.get_next_leaf()
        if leaf.value == ".":
            found = inspect.getattr_static(found, following.value, _NOT_FOUND)
        elif leaf.value == "[" and type(found) in (dict, list, tuple) and following.type in ("string", "number"):
            closing = following.get_next_leaf()
            if closing.value != "]":
                return _NOT_FOUND, leaf
            try:
                found = found[ast.literal_eval(following.value)]
            except (LookupError, TypeError):
                return _NOT_FOUND, leaf
            following = closing
        else:
            return _NOT_FOUND, leaf
        leaf = following.get_next_leaf()
    return found, leaf


def _defined(module: Any, name: Any) -> Any:
    """Return the last statement before a name that assigns to it in the same text, or None."""
    earlier = [n for n in module.get_used_names().get(name.value, ()) if n.start_pos < name.start_pos]
    return next((n.get_definition() for n in reversed(earlier) if n.is_definition()), None)


def _leading(module: Any, statement: Any, namespaces: list[Mapping[str, object]]) -> _core.Peer | None:
    """Return whose object it is that the value that a statement assigns begins with, such as ``pd`` in ``x = pd.f()``."""
    if statement.type in ("import_name", "import_from"):
        paths = [statement.get_from_names()] if statement.type == "import_from" else statement.get_paths()
        found = [importer.context_for(".".join(part.value for part in path)) for path in paths if path]
        return found[0]._peer if found and found[0] is not None else None
    if statement.type == "expr_stmt":
        value = statement.get_rhs()
    elif statement.type in ("for_stmt", "sync_comp_for"):
        value = statement.children[3]
    elif statement.type == "with_item":
        value = statement.children[0]
    else:
        return None
    leaf = value.get_first_leaf()
    if leaf.type != "name":
        return None
    earlier = _defined(module, leaf)
    if earlier is not None:
        return _leading(module, earlier, namespaces)
    info = _core.proxy_info(_look_up(leaf.value, namespaces))
    return None if info is None or info[3] else info[0]
