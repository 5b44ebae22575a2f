"""Which module names are isolated, and the import hook that sends their imports to a child.

``isolate("cv2")`` changes no module by itself: it notes that ``cv2`` belongs to a context and puts a
finder at the front of ``sys.meta_path``. The first ``import cv2`` then starts the child, loads the module
there, and what lands in ``sys.modules`` is the proxy. All of Python's own import machinery goes on
working on top of that: ``import a.b as c``, ``from a import *``, ``importlib.reload``.

An isolated name stands for the module and everything below it. No isolated name lies below another one, so
each module has exactly one owner.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
import warnings
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from itertools import accumulate

from ._core import isproxy
from .context import IsolationContext, default_context, named_context

__all__ = ["NotIsolatableError", "context_for", "import_isolated", "isolate", "isolated", "release"]

# Modules that are never replaced in sys.modules. Code that is already imported keeps its own reference to a
# module, so replacing an entry harms only those that look it up again while they run. These are:
#   - the interpreter itself: all that a bare `python -S -c pass` has loaded (a test compares), and what its
#     C code and its shutdown import by name later: `threading`, `copyreg`, `warnings`, `traceback` ...;
#   - the import system, and this package with what it imports late;
#   - the session: IPython and the kernel below it import parts of themselves lazily.
# A package here stands for its submodules too.
_INTERPRETER = frozenset(
    """
    __main__ _abc _codecs _collections_abc _frozen_importlib _frozen_importlib_external _imp _io _signal
    _sitebuiltins _stat _thread _warnings _weakref abc builtins codecs encodings genericpath importlib io
    marshal nt ntpath os posix posixpath site stat sys time winreg zipimport

    _weakrefset atexit copyreg faulthandler gc linecache runpy signal threading tokenize traceback tracemalloc
    types warnings weakref

    contextlib contextvars functools inspect logging pickle pkgutil ipython_isolation

    IPython asyncio comm debugpy ipykernel ipykernel_launcher jupyter_client jupyter_core tornado traitlets zmq
    """.split()
)

# Guards _entries with what goes along with it in sys.meta_path and sys.modules. It is never held while anything
# is imported, here or in a child, and a single look-up in _entries needs none.
_lock = threading.RLock()
_entries: dict[str, _Entry] = {}


class _Entry:
    """One isolated name: where it lives, and what it stands in for.

    Attributes
    ----------
    name : str
        The isolated name; everything below it belongs to it.
    context : IsolationContext
        The one that runs it.
    path : list of str or None
        Directories to find it in instead of ``sys.path``.
    proxies : dict of str to module
        The module proxies handed out, by full name: two imports give the same object.
    displaced : dict of str to module
        The un-isolated modules that were in ``sys.modules`` before, by full name.
    """

    def __init__(self, name: str, context: IsolationContext, path: list[str] | None) -> None:
        self.name = name
        self.context = context
        self.path = path
        self.proxies: dict[str, types.ModuleType] = {}
        self.displaced: dict[str, types.ModuleType] = {}

    def load(self, fullname: str) -> types.ModuleType:
        """Load `fullname`, this name or one below it, in the child, and return its proxy."""
        path = self.path if fullname == self.name else None
        module = self.context.load_module(fullname, path)
        return self.proxies.setdefault(fullname, module)

    def spec(self, fullname: str, found: ModuleSpec | None = None) -> ModuleSpec:
        """Return a fresh spec that makes importlib load `fullname` through this entry.

        `found` is what other finders say about it, for those who look at specs without importing.
        """
        spec = ModuleSpec(fullname, _IsolationLoader(self))
        if found is not None:
            spec.origin = found.origin
            spec.submodule_search_locations = found.submodule_search_locations
        return spec


class _IsolationLoader:
    """Loads one module in its child. importlib calls it; each spec has a loader of its own."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry
        self._created = False

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Load the module in the child, which also executes it there."""
        module = self._entry.load(spec.name)
        spec.origin = getattr(module, "__file__", None)
        spec.has_location = spec.origin is not None
        path = getattr(module, "__path__", None)
        if path is not None:
            spec.submodule_search_locations = list(path)
        self._created = True
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing on a first import, which create_module has done; otherwise this is a reload."""
        if self._created:
            self._created = False
        else:
            self._entry.context.reload_module(module.__spec__.name)


class _IsolationFinder:
    """The entry of ``sys.meta_path``. It answers for isolated names only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an isolated module; None leaves the name to the finders after this one."""
        entry = _owner(fullname)
        if entry is None:
            return None
        # What is found here is found in the child, which follows our sys.path; that saves a round trip, and
        # find_spec() starts no child. Only the child knows of modules that a package makes at run time.
        # Then None is safe: the finders after us have just been asked. Where the entry has a path of its
        # own they were not, and it is for the child to say that nothing is there.
        if fullname == entry.name and entry.path is not None:
            return entry.spec(fullname, _find(fullname, entry.path, [PathFinder]))
        found = _find(fullname, path, _other_finders())
        if found is None and not entry.context.find_module(fullname):
            return None
        return entry.spec(fullname, found)

    def invalidate_caches(self) -> None:
        """Pass importlib.invalidate_caches() on to the children that have loaded something."""
        for context in {id(entry.context): entry.context for entry in list(_entries.values())}.values():
            info = context.info()
            # A call made before the first module is loaded would count as set-up, replayed at each start.
            if info["state"] == "running" and info["modules"]:
                context.call(importlib.invalidate_caches)


_finder = _IsolationFinder()


class NotIsolatableError(ValueError):
    """A name that cannot be isolated, told apart from a ValueError that a module raises while it is imported."""


@dataclass
class Report:
    """What isolating some names has done, and what it could not do.

    Attributes
    ----------
    context : IsolationContext
        The one they now belong to.
    unknown : list of str
        Names that no finder finds.
    rebound : dict of str to str
        Variables of the session that now hold a proxy, each with the module's name.
    leftovers : dict of str to list of str
        For each isolated name, what still holds the un-isolated module or a function or class of it: variables
        of the session (``"blur"``) and globals of other modules (``"gzip.zlib"``).
    """

    context: IsolationContext
    unknown: list[str] = field(default_factory=list)
    rebound: dict[str, str] = field(default_factory=dict)
    leftovers: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return what the user should know, one sentence a line; often there is nothing to say."""
        lines = [f"no module named {name!r} is found here: check the name, or sys.path" for name in self.unknown]
        for name, holders in self.leftovers.items():
            lines.append(f"{name} was imported before; still un-isolated: {', '.join(_summary(holders))}")
        return lines


def isolate(
    *names: str,
    context: IsolationContext | str | None = None,
    path: str | Iterable[str] | None = None,
    namespace: MutableMapping[str, object] | None = None,
    **options: object,
) -> IsolationContext:
    """Run modules in a child process from now on; the plain-function twin of ``%isolate``.

    The child starts at the first import. A module that is already imported here is isolated all the same,
    and variables of the session that hold it are bound to the isolated one, which imports it at once. What
    still holds the un-isolated one, and a name that is not found, is said in a warning.

    Parameters
    ----------
    *names : str
        Module names such as ``"cv2"`` or ``"scipy.linalg"``; a package includes its submodules.
    context : IsolationContext, str or None
        The context to run them in, or its name; by default the one named "default", which restarts by itself.
    path : str, iterable of str, or None
        Directories to find the modules in, instead of ``sys.path``.
    namespace : mutable mapping of str to object, or None
        The session's variables; by default those of ``__main__``.
    **options
        For a context made by this call: options of `IsolationContext`.

    Returns
    -------
    IsolationContext
        The one that the modules now belong to.

    Raises
    ------
    TypeError
        When `options` are given for a context that exists already.
    NotIsolatableError
        A ValueError: when a name is no module name, belongs to the interpreter or this session, or belongs to a
        package that is isolated in another context. Nothing is isolated then.
    Exception
        Whatever importing a module raised in the child, if it had to be imported at once.
    """
    report = isolate_with_report(names, _resolve(context, options), path=path, namespace=namespace)
    for line in report.lines():
        warnings.warn(line, stacklevel=2)
    return report.context


def isolate_with_report(
    names: Iterable[str],
    context: IsolationContext,
    *,
    path: str | Iterable[str] | None = None,
    namespace: MutableMapping[str, object] | None = None,
) -> Report:
    """Do what `isolate` does, and return a `Report` instead of warning.

    Parameters
    ----------
    names : iterable of str
        Module names.
    context : IsolationContext
        The context to run them in.
    path : str, iterable of str, or None
        Directories to find the modules in, instead of ``sys.path``.
    namespace : mutable mapping of str to object, or None
        The session's variables; by default those of ``__main__``.

    Returns
    -------
    Report
        What was done, and what could not be.

    Raises
    ------
    NotIsolatableError, Exception
        As for `isolate`.
    """
    names = list(names)
    path = _search_path(path)
    for name in names:
        _check_isolatable(name, context)
    if namespace is None:
        namespace = vars(sys.modules["__main__"])
    report = Report(context)
    for name in names:
        owner = _owner(name)
        if owner is not None and owner.context is context:
            if path is not None and owner.name == name:
                owner.path = path
            continue
        # Not before: what is in sys.modules is known, whatever the finders say.
        if name not in sys.modules and locate(name, path) is None:
            report.unknown.append(name)
        with _registered(name, context, path, namespace) as (entry, previous):
            leftovers = _rebind(entry, previous, namespace, report)
        leftovers += _find_leftovers(previous, namespace)
        if leftovers:
            report.leftovers[name] = leftovers
    return report


def import_isolated(
    name: str, path: str | Iterable[str] | None = None, context: IsolationContext | None = None
) -> types.ModuleType:
    """Load a module in a child process, and put it where ``import name`` finds it.

    Modules that this interpreter itself runs on (``sys``, ``os``, ``threading`` ...) are loaded in the child
    and returned like any other, but the ones of this process stay in place.

    Parameters
    ----------
    name : str
        The module's full name.
    path : str, iterable of str, or None
        Directories to find it in, instead of ``sys.path``.
    context : IsolationContext or None
        Where to load it; by default the context that the name is isolated in, else `default_context`.

    Returns
    -------
    module
        The module's proxy. A second call with the same context returns the same object.

    Raises
    ------
    ModuleNotFoundError
        When the child does not find it.
    NotIsolatableError
        A ValueError: when `name` is no module name, or lies in a package isolated in another context.
    Exception
        Whatever the module itself raised while it was imported, with the child's traceback.
    """
    _check_name(name)
    path = _search_path(path)
    entry = _owner(name)
    if context is None:
        closed = entry is not None and entry.context.info()["state"] == "closed"
        context = default_context() if entry is None or closed else entry.context
    if _runs_session(name):
        return context.load_module(name, path)
    _check_isolatable(name, context)
    if entry is not None and entry.context is context:
        if path is not None and entry.name == name:
            entry.path = path
        return _place(entry, name)
    with _registered(name, context, path, {}) as (entry, _):
        return _place(entry, name)


def release(*names: str, namespace: MutableMapping[str, object] | None = None) -> None:
    """Import modules here again, in this process; the opposite of `isolate`.

    A module that was imported here before it was isolated is put back, in ``sys.modules``, in its parent
    package and in the session's variables. The child goes on running, and so do the proxies that are held
    elsewhere.

    Parameters
    ----------
    *names : str
        Names given to `isolate`.
    namespace : mutable mapping of str to object, or None
        The session's variables; by default those of ``__main__``.

    Raises
    ------
    ValueError
        When a name is not isolated, or only as part of a package. Nothing is released then.
    """
    if namespace is None:
        namespace = vars(sys.modules["__main__"])
    with _lock:
        for name in names:
            if name not in _entries:
                owner = _owner(name)
                if owner is not None:
                    raise ValueError(f"{name} is isolated as part of {owner.name}: release {owner.name}")
                raise ValueError(f"{name} is not isolated; isolated are: {', '.join(_entries) or 'none'}")
        for name in dict.fromkeys(names):
            entry = _entries.pop(name)
            _put_back(entry, entry.displaced, namespace)
        _arrange_finder()


_real: dict[str, types.ModuleType] = {}


def real_module(name: str) -> types.ModuleType:
    """Return the module of this process that an isolated name stands in for, imported if need be.

    For `byvalue`, whose copies are objects of this process. ``sys.modules`` is left as it is.

    Parameters
    ----------
    name : str
        The module's full name.

    Returns
    -------
    module

    Raises
    ------
    ModuleNotFoundError
        When there is none here.
    """
    entry = _owner(name)
    module = entry.displaced.get(name) if entry is not None else None
    if module is None:
        module = sys.modules.get(name)
        if module is not None and not isproxy(module):
            return module
        module = _real.get(name)
    if module is None:
        parent, _, _ = name.rpartition(".")
        path = real_module(parent).__path__ if parent else None
        spec = _find(name, path, _other_finders())
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r} in this process", name=name)
        module = importlib.util.module_from_spec(spec)
        # A module may look itself up while it runs (dataclasses does): it must find itself.
        proxy = sys.modules.get(name)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        finally:
            if proxy is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = proxy
        _real[name] = module
    return module


def isolated() -> dict[str, IsolationContext]:
    """Return the isolated names, in the order they were isolated, each with its context.

    Returns
    -------
    dict of str to IsolationContext
    """
    with _lock:
        return {name: entry.context for name, entry in _entries.items()}


def context_for(fullname: str) -> IsolationContext | None:
    """Return the context that a module is isolated in.

    Parameters
    ----------
    fullname : str
        A module name; one below an isolated package belongs to the package.

    Returns
    -------
    IsolationContext or None
        None if the module is not isolated.
    """
    entry = _owner(fullname)
    return entry.context if entry is not None else None


def locate(name: str, path: str | Iterable[str] | None = None) -> ModuleSpec | None:
    """Find a module as an import in this process would, importing neither it nor the packages above it.

    Parameters
    ----------
    name : str
        The module's full name.
    path : str, iterable of str, or None
        Directories to look in, instead of ``sys.path``.

    Returns
    -------
    ModuleSpec or None
        The spec that a finder other than ours gives, or None if none finds the module.
    """
    search = _search_path(path)
    # Finders other than importlib's own count: those of editable installs, for one. They know no `path`.
    finders = [PathFinder] if search is not None else _other_finders()
    spec = None
    for fullname in accumulate(name.split("."), "{}.{}".format):
        if spec is not None and search is None:
            return None  # the one above is no package
        spec = _find(fullname, search, finders)
        if spec is None:
            return None
        search, finders = spec.submodule_search_locations, _other_finders()
    return spec


def _owner(fullname: str) -> _Entry | None:
    """Return the entry that `fullname` is, or lies below. Runs at every import of the session."""
    name = fullname
    while name:
        entry = _entries.get(name)
        if entry is not None:
            return entry
        name = name.rpartition(".")[0]
    return None


def _below(name: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are `name` or lie below it."""
    prefix = name + "."
    return [other for other in list(names) if other == name or other.startswith(prefix)]


def _runs_session(name: str) -> bool:
    return name.partition(".")[0] in _INTERPRETER


def _resolve(context: IsolationContext | str | None, options: dict[str, object]) -> IsolationContext:
    if isinstance(context, IsolationContext):
        if options:
            raise TypeError(f"{', '.join(options)}: give options to IsolationContext(), this one is made already")
        return context
    if context is None and not options:
        return default_context()
    return named_context("default" if context is None else context, **options)


def _search_path(path: str | Iterable[str] | None) -> list[str] | None:
    """Accept one directory as well as several: a str is iterable, but never meant that way."""
    if path is None:
        return None
    return [path] if isinstance(path, str) else [str(directory) for directory in path]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise NotIsolatableError(f"{name!r} is not a module name; give one as in `import`, such as cv2 or scipy.linalg")


def _check_isolatable(name: str, context: IsolationContext) -> None:
    _check_name(name)
    if _runs_session(name):
        raise NotIsolatableError(
            f"{name} cannot be isolated, this session runs on it; import_isolated({name!r}) returns an isolated copy"
        )
    owner = _owner(name)
    if owner is not None and owner.name != name and owner.context is not context:
        raise NotIsolatableError(
            f"{name} belongs to {owner.name}, isolated in context {owner.context.name!r}; release {owner.name} first"
        )


def _other_finders() -> list:
    return [finder for finder in sys.meta_path if finder is not _finder]


def _find(fullname: str, search: Sequence[str] | None, finders: Iterable) -> ModuleSpec | None:
    """Ask `finders` for a spec, which executes nothing of the module; `search` is as for `find_spec`."""
    for finder in finders:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(fullname, search) if find_spec is not None else None
        if spec is not None:
            return spec
    return None


def _arrange_finder() -> None:
    """Keep our finder first while any name is isolated, and off ``sys.meta_path`` otherwise. Needs _lock.

    Others may have put theirs in front since, so ours is found by identity and moved to the front again.
    """
    others = [finder for finder in sys.meta_path if finder is not _finder]
    sys.meta_path[:] = [_finder, *others] if _entries else others


@contextmanager
def _registered(
    name: str, context: IsolationContext, path: list[str] | None, namespace: MutableMapping[str, object]
) -> Iterator[tuple[_Entry, dict[str, types.ModuleType]]]:
    """Make `name` belong to `context`; if the body raises, as a failed import does, undo it.

    Yields
    ------
    (_Entry, dict of str to module)
        The new entry, and the modules that were taken out of ``sys.modules``, by full name: un-isolated
        ones, or proxies where the name moves here from another context.
    """
    entry = _Entry(name, context, path)
    with _lock:
        absorbed = {other: _entries.pop(other) for other in _below(name, _entries)}
        previous = {key: sys.modules.pop(key) for key in _below(name, sys.modules)}
        for other in absorbed.values():
            entry.displaced.update(other.displaced)
        entry.displaced.update((key, module) for key, module in previous.items() if not isproxy(module))
        _entries[name] = entry
        _arrange_finder()
    try:
        yield entry, previous
    except BaseException:
        with _lock:
            _entries.pop(name, None)
            _entries.update(absorbed)  # what was isolated before is so again: never un-isolated by a failure
            _put_back(entry, previous, namespace)
            _arrange_finder()
        raise


def _place(entry: _Entry, name: str) -> types.ModuleType:
    """Load `name` and put it into ``sys.modules``, without importing the packages above it here.

    If these are not imported yet, the finder hands out the same proxy once they are: were it in
    ``sys.modules`` before, importlib would not make it an attribute of its package.
    """
    module = entry.proxies.get(name)
    if module is not None and sys.modules.get(name) is module:
        return module
    module = importlib.util.module_from_spec(entry.spec(name))
    above, _, leaf = name.rpartition(".")
    if not above:
        sys.modules[name] = module
    elif above in sys.modules:
        sys.modules[name] = module
        setattr(sys.modules[above], leaf, module)
    return module


def _put_back(entry: _Entry, modules: dict[str, types.ModuleType], namespace: MutableMapping[str, object]) -> None:
    """Replace the proxies of `entry`, which is not registered any more, by `modules`. Needs _lock."""
    for key in _below(entry.name, sys.modules):
        if isproxy(sys.modules.get(key)):
            sys.modules.pop(key, None)
    for key, module in modules.items():
        sys.modules.setdefault(key, module)

    above, _, leaf = entry.name.rpartition(".")
    parent = sys.modules.get(above)
    proxy = entry.proxies.get(entry.name)
    if proxy is not None and _globals_of(parent).get(leaf) is proxy:
        if entry.name in modules:
            setattr(parent, leaf, modules[entry.name])
        else:
            delattr(parent, leaf)

    originals = {id(proxy): modules[key] for key, proxy in entry.proxies.items() if key in modules}
    for variable, value in list(namespace.items()):
        if id(value) in originals:
            namespace[variable] = originals[id(value)]


def _rebind(
    entry: _Entry,
    previous: dict[str, types.ModuleType],
    namespace: MutableMapping[str, object],
    report: Report,
) -> list[str]:
    """Replace the modules `previous` by their proxies in the session's variables and in the parent package.

    Only what is held anywhere is imported: otherwise the child need not start yet.

    Returns
    -------
    list of str
        The variables for which that was not possible.
    """
    full_names = {id(module): key for key, module in previous.items() if module is not None}
    variables = {v: full_names[id(value)] for v, value in list(namespace.items()) if id(value) in full_names}

    above, _, leaf = entry.name.rpartition(".")
    held_above = id(_globals_of(sys.modules.get(above)).get(leaf)) in full_names
    if variables or held_above:
        importlib.import_module(entry.name)  # which also sets the attribute of the parent package
    leftovers = []
    for variable, key in variables.items():
        try:
            namespace[variable] = importlib.import_module(key)
        except ModuleNotFoundError:
            leftovers.append(variable)  # a submodule that was made at run time, and is not made in the child
        else:
            report.rebound[variable] = key
    return leftovers


def _find_leftovers(previous: dict[str, types.ModuleType], namespace: MutableMapping[str, object]) -> list[str]:
    """Return what still holds the un-isolated ones of the modules `previous`, or functions and classes of theirs.

    This goes by identity and touches no attribute of what it looks at: a proxy would make a round trip, and a
    lazy module would load.
    """
    modules = [module for module in previous.values() if module is not None and not isproxy(module)]
    if not modules:
        return []
    parts = {id(v) for module in modules for v in _globals_of(module).values() if _defined_in(v) in previous}
    leftovers = [variable for variable, value in list(namespace.items()) if id(value) in parts]
    parts.update(map(id, modules))
    for name, module in list(sys.modules.items()):
        variables = _globals_of(module)
        # This package needs its own modules un-isolated; that is nothing the user could change.
        if variables is not namespace and name.partition(".")[0] != __package__:
            leftovers += [f"{name}.{variable}" for variable, value in list(variables.items()) if id(value) in parts]
    return leftovers


def _globals_of(module: object) -> dict[str, object]:
    """Return a module's globals, without running any code of its class; of anything else, nothing."""
    if not issubclass(type(module), types.ModuleType) or isproxy(module):
        return {}
    return types.ModuleType.__getattribute__(module, "__dict__")


_class_module = type.__dict__["__module__"].__get__


def _defined_in(value: object) -> str | None:
    """Return the name of the module that a function or class comes from, without running code of its class."""
    if type(value) in (types.FunctionType, types.BuiltinFunctionType):
        name = value.__module__
    elif issubclass(type(value), type):
        try:
            name = _class_module(value)
        except AttributeError:
            return None
    else:
        return None
    return name if type(name) is str else None


def _summary(holders: list[str], most: int = 8) -> list[str]:
    """Shorten what `Report.leftovers` lists: hundreds of modules of one package may hold ``np``."""
    if len(holders) <= most:
        return holders
    packages: dict[str, list[str]] = {}
    for holder in holders:
        packages.setdefault(holder.partition(".")[0], []).append(holder)
    items = [held[0] if len(held) == 1 else f"{package} ({len(held)} names)" for package, held in packages.items()]
    return items if len(items) <= most else [*items[:most], f"{len(items) - most} more"]
