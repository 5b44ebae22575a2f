"""Crash bundles: the call that killed a child, in a file, to be run again.

A bundle is a pickle (of a dict with plain values; arguments and receiver are pickles within it, so that the
rest can be read without them). Reading the arguments unpickles them: replay only bundles that you trust.
"""

from __future__ import annotations

import dataclasses
import datetime
import faulthandler
import importlib
import io
import os
import pickle
import platform
import sys
import types
from pathlib import Path

from . import _core, errors

#: Format of the file; another number is refused.
VERSION = 1
#: The most bytes that arguments and receiver of one bundle may take: more would hold up the error.
SIZE_MOST = 32 << 20
#: Bundles that are kept in a directory; the oldest go.
COUNT_MOST = 20

_SUFFIX = ".crash"
_ENVIRONMENT = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "OPENCV_", "MALLOC_", "GLIBC_", "ASAN_", "UBSAN_", "LANG", "LC_")


class BundleError(Exception):
    """What keeps a bundle from being read or replayed, in one line that says what to do."""


@dataclasses.dataclass
class Call:
    """The call under way when a child died.

    Attributes
    ----------
    name : str
        Of the function, with its module; empty when it was no call of a function or method.
    method : str or None
        The name of the method, when `receiver` is an object of the child.
    receiver : object
        Its proxy, or None.
    args : tuple
    kwargs : dict
    """

    name: str
    method: str | None
    receiver: object
    args: tuple
    kwargs: dict


def directory(configured=None):
    """Where bundles go, or None when they are switched off.

    Parameters
    ----------
    configured : str or path-like or None
        A directory, or ``"off"``. None: what the environment variable ``IPYTHON_ISOLATION_BUNDLES`` says in the same
        way, else ``ipython_isolation/crashes`` in the user's cache directory (``XDG_CACHE_HOME``, ``~/.cache``).

    Returns
    -------
    pathlib.Path or None
    """
    configured = configured or os.environ.get("IPYTHON_ISOLATION_BUNDLES")
    if configured:
        return None if configured == "off" else Path(configured).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "ipython_isolation" / "crashes"


def call_of(facts):
    """The call under way when a child died.

    Parameters
    ----------
    facts : dict
        As for `errors.terminated`.

    Returns
    -------
    Call
        With an empty name where it was none that could be made again.
    """
    operation, operand, arguments = facts["operation"], facts["operand"], facts.get("arguments")
    args, kwargs = arguments or ((), {})
    if operation == "call_named" and len(args) == 4:
        return Call(f"{args[0]}.{args[1]}", None, None, tuple(args[2]), dict(args[3]))
    if operation == "load":
        return Call(operand, None, None, (), {})
    name = _core.target_name(operand) if _core.isproxy(operand) or isinstance(operand, type) else None
    if operation == "method" and args and name is not None:
        return Call(name, None, None, args[1:], kwargs)  # a function is the first argument of its own call
    if operation == "call" and name is not None:
        return Call(name, None, None, args, kwargs)
    if operation == "method" and args and _core.isproxy(args[0]) and isinstance(getattr(operand, "__name__", None), str):
        receiver, method = args[0], operand.__name__
        owner = _core.target_name(type(receiver))
        if owner is not None:
            return Call(f"{owner}.{method}", method, receiver, args[1:], kwargs)
    return Call("", None, None, (), {})


class _TooBig(Exception):
    pass


class _Limited(io.BytesIO):
    def write(self, data):
        if self.tell() + len(data) > SIZE_MOST:
            raise _TooBig
        return super().write(data)


class _Pickler(pickle.Pickler):
    """Objects of the child are pickled there, and kept apart: they are to be made there again."""

    def persistent_id(self, o):
        if not _core.isproxy(o):
            return None
        name = _core.target_name(o)
        if name is not None:
            return "name", name
        peer = _core.proxy_info(o)[0]
        return "object", peer.host_call("byvalue", o)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data, find, make):
        super().__init__(io.BytesIO(data))
        self._find, self._make = find, make

    def persistent_load(self, key):
        kind, value = key
        return self._find(value) if kind == "name" else self._make(value)


def _pickled(o):
    """A pickle of at most `SIZE_MOST` bytes; raises _TooBig, or what pickling raises."""
    out = _Limited()
    _Pickler(out, protocol=5).dump(o)
    return out.getvalue()


def _lives_in_child(o, depth=0):
    """Is `o` a proxy, or a plain container with one? Its content is asked of the child, which is dead."""
    if _core.isproxy(o):
        return _core.target_name(o) is None
    if depth < 8 and type(o) in (list, tuple, set, frozenset):
        return any(_lives_in_child(item, depth + 1) for item in o)
    if depth < 8 and type(o) is dict:
        return any(_lives_in_child(item, depth + 1) for pair in o.items() for item in pair)
    return False


class Writer:
    """Writes one bundle: at once where everything is in this process, else when the child's frozen copy is there.

    Parameters
    ----------
    call : Call
    report : str
        The whole text of the error.
    context : str
        The context's name.
    waits : bool
        Whether a frozen copy will take over, and can tell what the objects of the child were.
    where : pathlib.Path
        The directory.

    Attributes
    ----------
    path : pathlib.Path or None
        The file, which may not be there yet.
    reason : str or None
        Why it cannot be replayed; None when it can.
    """

    def __init__(self, call, report, context, waits, where):
        self.path = None
        self.reason = None
        self._call = call
        self._content = {
            "version": VERSION,
            "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "report": report,
            "context": context,
            "name": call.name,
            "method": call.method,
            "receiver": None,
            "arguments": None,
            "python": sys.version,
            "executable": sys.executable,
            "platform": platform.platform(),
            "packages": _packages(call.name),
            "path": [p for p in sys.path if isinstance(p, str)],
            "directory": os.getcwd(),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(_ENVIRONMENT)},
        }
        self._where = where
        self.pending = False
        remote = _lives_in_child(call.args) or _lives_in_child(call.kwargs) or call.receiver is not None
        if not call.name:
            self.reason = "what was under way is no call of a function or method"
        elif remote and not waits:
            self.reason = "it was called with objects that died with the process, of which there was no frozen copy"
        self.pending = remote and self.reason is None
        self._reserve()
        if not self.pending:
            self._write()

    def _reserve(self):
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        leaf = "".join(c if c.isalnum() or c in "._" else "-" for c in self._call.name) or "crash"
        self.path = self._where / f"{stamp}-{leaf[:60]}{_SUFFIX}"

    def finish(self, alive):
        """Writes what had to wait; `alive`: the frozen copy has taken over."""
        if self.pending:
            self.pending = False
            if not alive:
                self.reason = "it was called with objects that died with the process"
            self._write()

    def _write(self):
        call, self._call = self._call, None
        if self.reason is None:
            try:
                if call.receiver is not None:
                    self._content["receiver"] = _pickled(call.receiver)
                self._content["arguments"] = _pickled((call.args, call.kwargs))
            except _TooBig:
                self.reason = f"its arguments take more than {SIZE_MOST >> 20} MB"
            except errors.ProcessTerminationError:
                self.reason = "the frozen copy died when it was asked for the arguments"
            except Exception as error:
                self.reason = f"its arguments cannot be pickled ({type(error).__name__}: {error})"
        if self.reason is not None:
            self._content["receiver"] = self._content["arguments"] = None
        self._content["reason"] = self.reason
        try:
            self._where.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self.path.with_suffix(".part")
            with open(temporary, "wb") as file:
                pickle.dump(self._content, file, protocol=5)
            os.replace(temporary, self.path)
            _prune(self._where)
        except OSError as error:
            self.path = None
            self.reason = f"no crash bundle could be written: {error}"


def _packages(name):
    """Names and versions of what is installed that could matter: the module's own distribution and NumPy."""
    from importlib import metadata

    found = {"ipython_isolation": None}
    for package in (name.partition(".")[0], "numpy"):
        try:
            found[package] = metadata.version(package)
        except (metadata.PackageNotFoundError, ValueError):
            pass
    return found


def _prune(where):
    """Leaves the newest; names begin with the time."""
    for path in sorted(where.glob(f"*{_SUFFIX}"))[:-COUNT_MOST]:
        try:
            path.unlink()
        except OSError:
            pass


# -- replay ------------------------------------------------------------------------------------------


def read(path):
    """What a bundle says, without its arguments.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    dict

    Raises
    ------
    BundleError
        When there is no such file, or it is no bundle of this version.
    """
    try:
        with open(path, "rb") as file:
            content = _Plain(file).load()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except Exception:
        raise BundleError(f"{path} is not a crash bundle") from None
    if not isinstance(content, dict) or "report" not in content:
        raise BundleError(f"{path} is not a crash bundle")
    if content.get("version") != VERSION:
        raise BundleError(f"{path} is of another version of ipython_isolation; replay it with that")
    return content


class _Plain(pickle.Unpickler):
    """Nothing but plain values: reading a bundle runs no code, replaying it does."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def _check(content):
    if content["reason"] is not None:
        raise BundleError(f"this crash cannot be replayed: {content['reason']}")


def _find(name, load):
    """What a name with its module means; `load(name)` imports a module. BundleError where it means nothing."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            o = load(".".join(parts[:n]))
        except ImportError:
            continue
        try:
            for part in parts[n:]:
                o = getattr(o, part)
        except AttributeError:
            continue
        return o
    raise BundleError(f"there is no {name} here; run this where it is installed")


def _again(content, load, make):
    """Makes the call of a bundle; `make(bytes)` unpickles an object where it is to live."""

    def find(name):
        return _find(name, load)

    if content["method"] is None:
        function = find(content["name"])
    args, kwargs = _Unpickler(content["arguments"], find, make).load()
    if content["method"] is not None:
        function = getattr(_Unpickler(content["receiver"], find, make).load(), content["method"])
    if isinstance(function, types.ModuleType):
        return function  # it was the import that died
    return function(*args, **kwargs)


def replay(path, **options):
    """Runs the call of a bundle again, in a fresh child.

    Parameters
    ----------
    path : str or path-like
    **options
        For the `IsolationContext`.

    Returns
    -------
    object
        What the call returns, if it returns.

    Raises
    ------
    BundleError
        When the bundle cannot be read or replayed.
    ProcessTerminationError
        When the call kills its process again.
    """
    from .context import IsolationContext

    content = read(path)
    _check(content)
    missing = [p for p in content["path"] if p not in sys.path]
    with IsolationContext(**{"name": "replay", **options}) as context:
        sys.path.extend(missing)
        try:
            return _again(content, context.load_module, lambda data: context.call(pickle.loads, data))
        finally:
            for p in missing:
                sys.path.remove(p)


def replay_here(path):
    """As `replay`, but in this process, which a debugger may watch. It may not survive."""
    content = read(path)
    _check(content)
    sys.path.extend(p for p in content["path"] if p not in sys.path)
    return _again(content, importlib.import_module, pickle.loads)


def main(argv):
    """``python -m ipython_isolation replay FILE [--gdb | --valgrind | --here | --show]``: the exit status."""
    import argparse
    import shutil

    parser = argparse.ArgumentParser(
        prog="python -m ipython_isolation replay",
        description="Runs the call of a crash bundle again. This unpickles its arguments: replay only what you trust.",
    )
    parser.add_argument("file")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--gdb", action="store_true", help="under gdb, in this terminal")
    how.add_argument("--valgrind", action="store_true", help="under valgrind")
    how.add_argument("--here", action="store_true", help="in this very process")
    how.add_argument("--show", action="store_true", help="only say what is in it; nothing is unpickled")
    args = parser.parse_args(argv)
    again = [sys.executable, "-m", "ipython_isolation", "replay", "--here", args.file]
    try:
        if args.here:
            faulthandler.enable()
        content = read(args.file)
        if args.show:
            print(_shown(content))
            return 0
        _check(content)
        if args.gdb or args.valgrind:
            tool = "gdb" if args.gdb else "valgrind"
            if shutil.which(tool) is None:
                raise BundleError(f"{tool} is not installed: apt-get install {tool}")
            command = ["gdb", "-q", "-ex", "run", "--args", *again] if args.gdb else ["valgrind", *again]
            environment = {**os.environ, **({"PYTHONMALLOC": "malloc"} if args.valgrind else {})}
            os.execvpe(tool, command, environment)
        result = replay_here(args.file) if args.here else replay(args.file)
    except BundleError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    except errors.ProcessTerminationError as error:
        print(error.report())
        return 1
    print(f"replay: {content['name']} returned {result!r}" if args.here else f"replay: {content['name']} returned")
    return 0


def _shown(content):
    lines = [content["report"], ""]
    for key in ("written", "context", "name", "python", "platform", "packages", "directory", "environment"):
        lines.append(f"{key}: {content[key]}")
    lines.append("replay: " + ("possible" if content["reason"] is None else f"not possible: {content['reason']}"))
    return "\n".join(lines)
