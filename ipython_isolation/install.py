"""Install the Jupyter kernel "Python 3 (isolated)": ``python -m ipython_isolation install``.

The wheel ships a kernelspec that starts the interpreter of the Jupyter server. The one installed here starts
the interpreter that runs this module, so the kernel may live in another environment than the server.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

KERNEL_NAME = "python3-isolated"

_EXTENSION = "--ext=ipython_isolation"


class InstallError(Exception):
    """What keeps the kernel from being installed or removed, in one line that says what to do."""


def install(
    *,
    user: bool = False,
    prefix: str | None = None,
    name: str = KERNEL_NAME,
    display_name: str | None = None,
    modules: Sequence[str] = (),
) -> Path:
    """Install a kernelspec for this interpreter.

    Parameters
    ----------
    user : bool
        Install for the current user, whatever the environment.
    prefix : str or None
        Install below this directory, such as `sys.prefix`; without `user` this must be given.
    name : str
        The kernel's name, its directory's name.
    display_name : str or None
        What front-ends show; by default that of the shipped kernelspec.
    modules : sequence of str
        Modules that the kernel isolates from the start.

    Returns
    -------
    Path
        The directory written.

    Raises
    ------
    InstallError
        When jupyter_client is missing, `name` or a module name is not valid, a kernel of that name that is not
        ours is in the way, or the directory cannot be written.
    """
    manager = _manager()
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise InstallError(f"{module!r} is not a module name; give one as in `import`, such as cv2")
    _check_ours(_directory(name, user, prefix))
    with tempfile.TemporaryDirectory() as temporary:
        staged = shutil.copytree(_shipped(), Path(temporary, name))
        file = staged / "kernel.json"
        spec = json.loads(file.read_text())
        spec["argv"][0] = sys.executable
        spec["argv"] += [f"--Isolate.modules={module}" for module in modules]
        if display_name is not None:
            spec["display_name"] = display_name
        file.write_text(json.dumps(spec, indent=1) + "\n")
        try:
            return Path(manager.install_kernel_spec(str(staged), name, user=user, prefix=prefix))
        except (OSError, ValueError) as error:
            raise InstallError(f"{error}; try --user, or a --prefix that you may write to") from error


def uninstall(*, user: bool = False, prefix: str | None = None, name: str = KERNEL_NAME) -> Path:
    """Remove a kernelspec that `install` has written.

    Parameters
    ----------
    user : bool
        Remove the one of the current user.
    prefix : str or None
        Remove the one below this directory.
    name : str
        The kernel's name.

    Returns
    -------
    Path
        The directory removed.

    Raises
    ------
    InstallError
        When there is no such kernel, it is not ours, or it cannot be removed.
    """
    directory = _directory(name, user, prefix)
    if not directory.is_dir():
        raise InstallError(f"no kernel {name!r} in {directory.parent}; `jupyter kernelspec list` shows where it is")
    _check_ours(directory)
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise InstallError(str(error)) from error
    return directory


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m ipython_isolation``.

    Parameters
    ----------
    arguments : sequence of str or None
        The command line without the program's name; by default that of this process.

    Raises
    ------
    SystemExit
        When something is wrong; the message is one line.
    """
    args = _parser().parse_args(arguments)
    prefix = sys.prefix if args.sys_prefix else args.prefix
    try:
        if args.command == "uninstall":
            print(f"Removed {uninstall(user=args.user, prefix=prefix, name=args.name)}")
            return
        modules = [module for module in args.isolate if module]
        directory = install(
            user=args.user, prefix=prefix, name=args.name, display_name=args.display_name, modules=modules
        )
    except InstallError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"Installed the kernel {args.name} in {directory}")
    print(f"It runs {sys.executable} and isolates {', '.join(modules) or 'what you name with %isolate'}")
    if str(directory.parent) not in _manager().kernel_dirs:
        print(f"Jupyter does not look there by itself: set JUPYTER_PATH={directory.parent.parent}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m ipython_isolation", description='Install or remove the Jupyter kernel "Python 3 (isolated)"; make the call of a crash bundle again (replay --help).'
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="install|uninstall|replay")
    for command, text in (("install", "install the kernel for this interpreter"), ("uninstall", "remove it")):
        options = commands.add_parser(command, help=text, description=text)
        place = options.add_mutually_exclusive_group(required=True)
        place.add_argument("--user", action="store_true", help="for the current user")
        place.add_argument("--sys-prefix", action="store_true", help=f"in this environment: {sys.prefix}")
        place.add_argument("--prefix", metavar="DIR", help="below DIR, in share/jupyter/kernels")
        options.add_argument("--name", default=KERNEL_NAME, help="the kernel's name (default: %(default)s)")
        if command == "install":
            options.add_argument("--display-name", metavar="TEXT", help="what front-ends show")
            options.add_argument(
                "--isolate", nargs="+", action="extend", default=[], metavar="MODULE", help="isolated from the start"
            )
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> None:
        raise SystemExit(f"error: {message}; {self.prog} --help shows the usage")


def _manager():
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        raise InstallError("jupyter_client is missing: pip install ipykernel") from None
    return KernelSpecManager()


def _shipped() -> Path:
    """Return the directory with kernel.json and the logos: beside this file, or in the source tree."""
    package = Path(__file__).parent
    for directory in (package / "kernelspec", package.parent / "kernelspec"):
        if (directory / "kernel.json").is_file():
            return directory
    raise InstallError(f"{package / 'kernelspec'} is missing: install ipython_isolation again")


def _directory(name: str, user: bool, prefix: str | None) -> Path:
    """Return where the kernelspec `name` goes."""
    if user:
        return Path(_manager().user_kernel_dir, name)
    if prefix is None:
        raise InstallError("say where: --user, --sys-prefix or --prefix DIR")
    return Path(prefix, "share", "jupyter", "kernels", name)


def _check_ours(directory: Path) -> None:
    """Refuse to replace or remove a kernel of someone else's, such as python3."""
    file = directory / "kernel.json"
    if not directory.exists():
        return
    try:
        ours = _EXTENSION in json.loads(file.read_text())["argv"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InstallError(f"{directory} is not a kernel of ipython_isolation; choose another --name")
