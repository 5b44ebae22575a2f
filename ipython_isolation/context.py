"""Isolation contexts: one child over its lives. What the core and the child ask of a context is in `host`."""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import os
import sys
import threading
import types

from . import _core, adapters, batch, copies, display, errors, limits, output, registry, shipping
from .child import register_default_values
from .deaths import Deaths
from .following import Following
from .host import Host
from .launch import Launcher
from .registry import contexts
from .reload import Watch
from .rollback import Rollback

register_default_values()
adapters.install()


class _Client:
    """The ancestor's `context.client`."""

    def __init__(self, context):
        self._context = context

    def call(self, function, /, *args, **kwargs):
        """As `IsolationContext.call`."""
        return self._context.call(function, *args, **kwargs)

    def cleanup(self):
        """As `IsolationContext.close`."""
        self._context.close()


class IsolationContext:
    """A child process in which modules run, over all its lives.

    Nothing is started before the first use.

    Parameters
    ----------
    restart : {"never", "auto"}
        What happens at the first use after a crash: ``"never"`` raises `ClientStateError` until
        `restart` is called; ``"auto"`` starts the child again.
    init : callable or None
        Called without arguments in this process after each start, to prepare the child through this
        context.
    arrays : {"copy", "shared"}
        How arrays cross. ``"copy"``: as arguments as real copies, and what the call changed is written back, so a
        call that dies has changed nothing. ``"shared"``: big arrays that are made from now on, here and in the
        child, are in memory that both have, and cross without a copy; what either side writes the other sees at once.
    name : str or None
        For messages and the table of ``%isolate``.
    python : str or None
        The interpreter of the child; this process's own when None.
    rollback : {"auto", "off"} or None
        ``"auto"``: from time to time the child makes a frozen copy of itself, which takes its place when
        it dies, so that what was made in it earlier is kept. Where that would cost too much or could not
        be right, there is none; `info` says why. ``"off"``: only when `checkpoint` or `transaction` ask
        for it. None: what the environment variable ``IPYTHON_ISOLATION_ROLLBACK`` says, else ``"auto"``
        where ``restart="auto"`` and ``"off"`` where not.
    bundles : str or path-like or None
        The directory for crash bundles (`bundle.directory`), or ``"off"``.
    transport : {"auto", "zmq"} or None
        ``"auto"``: small frames go through shared memory, where the machine offers that. ``"zmq"``:
        all go over ZeroMQ. None: what the environment variable ``IPYTHON_ISOLATION_TRANSPORT`` says,
        else ``"auto"``.
    timeout : float or None
        Seconds that a call may take, as long as no other is under way around it. Then it is interrupted, as by
        Ctrl-C; if it has not stopped a second later, the child is killed. Either way `ProcessTimeoutError`
        is raised.
    memory : int, str or None
        Bytes that the child may use for data, or a text such as ``"2G"`` (RLIMIT_DATA: what it can write to and
        shares with nobody; libraries, shared memory and what is only reserved do not count). An allocation
        beyond that fails, which Python code sees as `MemoryError`.
    cpu : int or None
        Seconds of processor time, of all threads together, after which a child is killed.
    nice : int or None
        What is added to the child's nice value: 10 leaves the processor to others.
    env : mapping of str to (str or None), sequence of str, or None
        Environment variables of the child alone: ``{"LD_PRELOAD": "libasan.so.8"}`` or ``["LD_PRELOAD=..."]``.
    wrapper : str, sequence of str, or None
        A command that the child is started with: ``["valgrind", "-q"]``. It has to become the program that it
        runs (as valgrind, nice or env do), and to leave open files alone. Without roll-back, unless asked for.
    hold : bool
        A child that crashes stands still at the fatal signal, for a debugger, until `release` or `close`; one
        at a time. The next call uses another child meanwhile.
    spare : bool
        A second interpreter is started in advance, so that a restart takes milliseconds.
    autoreload : bool
        See `autoreload`.
    mute : bool
        What the child prints and displays is not shown; the end of it is still part of the report of its death.

    Raises
    ------
    TypeError, ValueError
        When an option is none of these.

    Examples
    --------
    >>> with IsolationContext() as context:
    ...     zlib = context.load_module("zlib")
    ...     len(zlib.compress(b"a" * 1000)) < 100
    True
    """

    def __init__(
        self,
        restart="never",
        init=None,
        arrays="copy",
        name=None,
        python=None,
        transport=None,
        rollback=None,
        bundles=None,
        timeout=None,
        memory=None,
        cpu=None,
        nice=None,
        env=None,
        wrapper=None,
        hold=False,
        spare=False,
        autoreload=False,
        mute=False,
    ):
        if restart not in ("never", "auto"):
            raise ValueError(f'restart must be "never" or "auto", not {restart!r}')
        if arrays not in ("copy", "shared"):
            raise ValueError(f'arrays must be "copy" or "shared", not {arrays!r}')
        if transport is None:
            transport = os.environ.get("IPYTHON_ISOLATION_TRANSPORT") or "auto"
        if transport not in ("auto", "zmq"):
            raise ValueError(f'transport must be "auto" or "zmq", not {transport!r}')
        if arrays == "shared" and transport == "zmq":
            raise ValueError('arrays="shared" needs shared memory, and transport="zmq" uses none: use transport="auto"')
        given = {
            "timeout": timeout, "memory": memory, "cpu": cpu, "nice": nice, "env": env, "wrapper": wrapper,
            "hold": hold, "spare": spare, "autoreload": autoreload,
            "mute": mute,
        }  # fmt: skip
        given = {option: limits.READ[option](value) for option, value in given.items()}
        if rollback is None and given["wrapper"]:
            rollback = "off"  # the tool would see a copy, and may not understand how it is made
        if rollback is None:
            rollback = os.environ.get("IPYTHON_ISOLATION_ROLLBACK") or "auto"
            rollback = "off" if restart == "never" and rollback == "auto" else rollback
        if rollback not in ("auto", "off"):
            raise ValueError(f'rollback must be "auto" or "off", not {rollback!r}')
        if init is not None and not callable(init):
            raise TypeError("init must be a callable without arguments")
        self.name = name if name is not None else f"context-{id(self):x}"
        self.client = _Client(self)
        self._restart = restart
        self._init = init
        self._arrays = arrays
        self._transport = transport
        self._state_lock = threading.RLock()
        self._closing = False
        self._closer = threading.Lock()  # whoever closes it first has it
        self._prepared = None  # the life that has done so
        self._setup = []  # (function, args, kwargs), replayed at each start
        self._replaying = False
        self._in_transaction = False
        self._loaded = {}  # name -> (proxy, path)
        self._loaded_in = {}  # name -> epoch
        self._pid_of_owner = os.getpid()
        self._starting = None
        self._host = Host(self, transport != "zmq")
        self._peer = self._host.peer
        self._deaths = Deaths(self, self._peer, self._host.output)
        self._following = Following(self._peer)
        self._launcher = Launcher(self, self._peer, self._following, python or sys.executable)
        if arrays == "shared":
            _core.share_arrays(1)
            self._peer.shares_arrays = True
        self._rollback = rollback
        self._bundles = bundles
        self._snapshots = Rollback(self, self._peer, rollback == "auto")
        self._watch = Watch(self, self._peer)
        for option, value in given.items():
            self._set(option, value)
        registry.add(self)

    def __repr__(self):
        info = self.info()
        return f"<IsolationContext {self.name!r} {info['state']}, pid {info['pid']}, epoch {info['epoch']}>"

    def __enter__(self):
        self.ensure_started()
        return self

    def __exit__(self, *_):
        self.close()

    # -- life -----------------------------------------------------------------------------------

    def start(self):
        """Starts the child, unless it runs.

        Raises
        ------
        ClientStateError
            When it has died (use `restart`) or was closed.
        """
        if self._peer.state == "dead":
            raise errors.ClientStateError(
                f"the process of context {self.name!r} has died; call restart() to start another"
            )
        self.ensure_started()

    def ensure_started(self):
        """Starts the child if it does not run; also after a crash, when ``restart="auto"``."""
        if self._peer.state != "running" or self._starting is not None:
            self._ensure_running()

    def restart(self):
        """Ends the child, if it runs, and starts another. Objects of the old one are lost; modules,
        and functions and classes reached by name, go on working. Calls of other threads that are
        under way raise `ClientStateError`. A crashed child that is held ends too."""
        self._check_usable()
        _core.Batch.flush_all(self._peer)
        with self._state_lock:
            self._check_usable()
            self._peer.release()
            self._begin_life(fresh=True)

    # -- roll-back ------------------------------------------------------------------------------

    def checkpoint(self):
        """Makes the child's present state the one that it goes back to, at its death or by `rollback`.

        Raises
        ------
        ClientStateError
            When no frozen copy of the child can be made; the text says why.
        """
        self.ensure_started()
        if not self._loaded:
            raise errors.ClientStateError(f"context {self.name!r} has loaded no module yet; there is no state to keep")
        if self._peer.active:
            raise errors.ClientStateError("a checkpoint can only be made while no call is under way")
        if threading.get_ident() != self._peer.main_thread:
            raise errors.ClientStateError("a checkpoint can only be made by the main thread")
        self._following.sync()
        if not self._snapshots.take():
            raise errors.ClientStateError(f"no checkpoint can be made of context {self.name!r}: {self._snapshots.reason}")

    def rollback(self):
        """Goes back to the child's state at the last checkpoint, which its own ones count as too.

        Objects that were made since are lost; the others, and modules, are as they were. Calls of other
        threads that are under way raise `ClientStateError`.

        Raises
        ------
        ClientStateError
            When there is no checkpoint to go back to. The child is left as it is. Or when the checkpoint's process has
            died as it was to go on: then there is a new child, and all objects that were made in the last one are lost.
        """
        self._check_usable()
        _core.Batch.flush_all(self._peer)
        with self._state_lock:
            self._check_usable()
            if not self._snapshots.ready:
                why = f" ({self._snapshots.reason})" if self._snapshots.reason else ""
                raise errors.ClientStateError(f"context {self.name!r} has no checkpoint to go back to{why}; call checkpoint()")
            if not self._begin_life(fresh=False):
                raise errors.ClientStateError(
                    f"the checkpoint of context {self.name!r} has died as it was to go on: the context runs a new"
                    " process; objects made in it before are lost"
                )

    @contextlib.contextmanager
    def transaction(self):
        """A ``with`` block whose effects on the child are undone when it raises, or the child dies in it.

        Where that cannot be done, because the checkpoint's process has died, what the block has raised says so in a note.

        Raises
        ------
        ClientStateError
            When no checkpoint can be made, or another transaction is under way.
        """
        if self._in_transaction:
            raise errors.ClientStateError("a transaction of this context is under way already; they cannot be nested")
        self.checkpoint()
        take_overs = self._snapshots.take_overs
        self._in_transaction = True
        try:
            with self._snapshots.hold():
                try:
                    yield self
                except BaseException as error:
                    if self._snapshots.ready:
                        try:
                            self.rollback()
                        except errors.ClientStateError as failed:
                            error.add_note(f"The transaction was not undone: {failed}")
                    elif self._snapshots.take_overs > take_overs:
                        error.add_note("What was done in the transaction after its process had died was not undone")
                    elif self._peer.state == "running":
                        error.add_note("The transaction was not undone: its checkpoint's process has died")
                    raise
        finally:
            self._in_transaction = False

    # -- options --------------------------------------------------------------------------------

    def configure(self, **options):
        """Changes options.

        Parameters
        ----------
        **options
            ``timeout``, ``hold``, ``spare``, ``autoreload`` and ``mute``, which hold at once; ``memory``, ``cpu``,
            ``nice``, ``env`` and ``wrapper``, which hold for the processes that are started from now on. As for
            `IsolationContext`.

        Returns
        -------
        list of str
            Those that do not hold yet, because the process that runs was started before; `restart` makes them.

        Raises
        ------
        TypeError, ValueError
            When one is none of these, or its value makes no sense. Nothing is changed then.
        ClientStateError
            When the context is closed, or belongs to another process.
        """
        self._check_usable()
        unknown = [option for option in options if option not in limits.READ]
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no option that can be changed; these can: {', '.join(limits.READ)}")
        values = {option: limits.READ[option](value) for option, value in options.items()}
        changed = [option for option, value in values.items() if getattr(self, "_" + option) != value]
        for option in changed:
            self._set(option, values[option])
        running = self._peer.state == "running"
        return [option for option in changed if option in limits.AT_START and running]

    def _set(self, option, value):
        setattr(self, "_" + option, value)
        if option == "timeout":
            self._peer.timeout = value or 0.0
        elif option == "autoreload":
            self._watch.on = value
        elif option == "hold":
            self._peer.hold = value
        elif option == "mute":
            self._host.output.mute(value)
        elif option == "spare":
            self._launcher.keep_spare()

    def mute_module(self, name, on=True):
        """Shows nothing of what the child prints and displays during calls of one module, and of those below it.

        A call belongs to the module of its function or class, or of its object's class, and so does all that it does, in
        whichever module. What is printed outside of a call, or by an object of a built-in type or of a module that was
        not loaded by its name (a generator, a function without a name), or by the calls of a `batch`, belongs to none of
        them: it is muted where all modules of the context are.

        Parameters
        ----------
        name : str
            Full name of the module.
        on : bool
            False: it is shown, even if the others are muted. Setting the option ``mute`` forgets all of these.
        """
        for each in _also_named(name):
            self._host.output.mute_module(each, bool(on))

    @property
    def timeout(self):
        """float or None: seconds that a call may take. May be set at any time."""
        return self._timeout

    @timeout.setter
    def timeout(self, value):
        self.configure(timeout=value)

    # -- debuggers ------------------------------------------------------------------------------

    def attach(self):
        """How to attach a debugger to the child; to the one that is held, if one is.

        Returns
        -------
        str
            Lines for the user; the first is a command line for a shell.

        Raises
        ------
        ClientStateError
            When there is no process.
        """
        held = self._peer.held
        pid = held or self.remote_pid
        if pid is None:
            raise errors.ClientStateError(f"context {self.name!r} has no process now; use it first")
        return limits.attach(pid, bool(held))

    def release(self):
        """Ends the crashed child that `hold` has kept, if there is one."""
        self._peer.release()

    # -- rebuilt files --------------------------------------------------------------------------

    @property
    def autoreload(self):
        """bool: another process starts by itself, before the next call, once a file that the child runs was
        rebuilt: one of its modules, or a library that is not the system's. May be set at any time."""
        return self._autoreload

    @autoreload.setter
    def autoreload(self, on):
        self.configure(autoreload=on)

    def reload(self):
        """Ends the child and starts another, which loads the same modules from the files as they are now.

        Variables of the session keep what they hold; objects that were made in the old child are lost. Calls of
        other threads that are under way raise `ClientStateError`.

        Raises
        ------
        ImportError
            When a file is not complete and does not become so within seconds. The old child runs on.
        Exception
            What loading a module raised. The modules after it are loaded when they are used.
        """
        self._check_usable()
        with self._state_lock:
            self._check_usable()
            if self._peer.state == "new":
                return  # nothing of the old files was ever loaded
            if self._peer.state == "running":
                self._watch.await_finished()
            # A module that failed to load the last time may be what was rebuilt.
            names = list(self._loaded)
            self._begin_life(fresh=True)
            for name in names:
                self.load_module(name)

    def _reload_changed(self, paths):
        names = sorted(os.path.basename(path) for path in paths)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        output.say(
            f"ipython_isolation: {', '.join(names[:3])}{more} changed: context {self.name!r} runs a new process;"
            " objects made in it before are lost"
        )
        self.reload()

    def close(self):
        """Ends the child for good. Waits for half a second at most for it to exit by itself."""
        registry.drop_name(self)
        if self._peer.state not in ("closed", "forked"):
            first = self._closer.acquire(blocking=False)
            if not self._state_lock.acquire(blocking=False):
                if first:  # it is being started by another thread; if closed, that comes to an end
                    self._peer.kill(9)
                try:
                    self._state_lock.acquire()
                except BaseException:
                    if first:
                        self._closer.release()
                    raise
            try:
                self._closing = True  # what the child prints meanwhile goes to streams that may use this
                self._watch.close()
                self._setup.clear()  # with what it holds
                if self._peer.shares_arrays:
                    self._peer.shares_arrays = False
                    _core.share_arrays(-1)
                self._deaths.closed()
                self._peer.close()
            finally:
                self._state_lock.release()

    @property
    def remote_pid(self):
        """int or None: process id of the child, None when none runs."""
        return self._peer.pid

    def info(self):
        """The state of this context.

        Returns
        -------
        dict
            ``pid`` (int or None), ``epoch`` (int, number of starts), ``state`` ("new", "running",
            "dead" or "closed"), ``requests`` (int, sent so far), ``crashes`` (int), ``rss`` (int,
            bytes resident, or None), ``modules`` (list of str), ``transport`` ("lane" or "zmq"), ``restart``,
            ``arrays``, ``name``, ``rollback`` (dict: ``on``, whether a frozen copy would take over now;
            ``reason``, str, why not; ``snapshots`` and ``take_overs``, int, so far; ``cost``, float, seconds
            that the last one took, or None), ``held`` (int or None: process id of a crashed child that is kept
            for a debugger), and the options of `configure`.
        """
        peer = self._peer
        state = "dead" if peer.is_over() else peer.state
        pid = peer.pid if state == "running" else None
        return {
            "name": self.name,
            "pid": pid,
            "epoch": peer.epoch,
            "state": state,
            "requests": peer.requests,
            "crashes": self._deaths.count,
            "rss": _resident(pid),
            "modules": sorted(self._loaded),
            "transport": peer.transport,
            "restart": self._restart,
            "arrays": self._arrays,
            "rollback": self._snapshots.status(),
            "held": peer.held,
            **{option: getattr(self, "_" + option) for option in limits.READ},
        }

    def _check_usable(self):
        if os.getpid() != self._pid_of_owner or self._peer.state == "forked":
            raise errors.ClientStateError(
                f"context {self.name!r} belongs to process {self._pid_of_owner}, of which this is a fork;"
                " make a context of your own here"
            )
        if self._closing or self._peer.state == "closed":
            raise errors.ClientStateError(f"context {self.name!r} is closed; make a new one")

    def _ensure_running(self, asked=False):
        """Starts the child if it does not run, or says why there is none. `asked`: by a request, which may not use a
        child that this thread is setting up."""
        self._check_usable()
        with self._state_lock:
            self._check_usable()  # it may have been closed meanwhile
            state = self._peer.state
            if state == "running":
                if asked and self._starting == threading.get_ident():  # by a signal handler, or a stream
                    raise errors.ClientStateError(f"context {self.name!r} is being started")
                return
            if state == "dead" and self._restart == "never":
                raise errors.ClientStateError(
                    f"the process of context {self.name!r} has died ({self._deaths.last}); call restart()"
                )
            self._begin_life(fresh=False)

    def _begin_life(self, fresh):
        """Starts a child; or lets a frozen copy of the last one take over, unless it is to be a fresh one.
        True: one has taken over."""
        if self._starting == threading.get_ident():
            raise errors.ClientStateError(f"context {self.name!r} is being started")
        lost, promised = self._deaths.lost, self._deaths.promised and not fresh
        self._starting = threading.get_ident()
        try:
            self._following.life_begins()
            self._host.life_begins()
            age = self._snapshots.age()
            kept = None if fresh else self._snapshots.take_over()
            if kept is None:
                self._snapshots.forget()
                self._launcher.start()
            else:
                modules, self._following.told = kept
            threading.Thread(target=self._host.run_service, name=f"isolation-{self.name}", daemon=True).start()
            paths = tuple((name, tuple(path)) for name, (_, path) in self._loaded.items() if path)
            isolated = tuple(self._peer.isolated)  # of earlier lives
            self._host.shell_made = self._peer.host_call(
                "setup", [str(a) for a in sys.argv], paths, isolated, display.shell_name(), self._arrays == "shared",
                *self._following.changes()
            )
            if kept is not None:
                lost = False
                self._loaded_in.update(dict.fromkeys(modules, self._peer.epoch))
                self._snapshots.life_began()
            else:
                self._replaying = True
                if self._setup or self._init is not None:
                    self._prepare()
                for function, args, kwargs in self._setup:
                    self._call(function, *copies.containers((args, kwargs)))
                if self._init is not None:
                    self._init()
            self._deaths.life_began(kept is not None)
            self._peer.started()
            self._watch.life_began(fresh=kept is None)
            self._launcher.keep_spare()
        except BaseException as error:
            # A child that is not set up as asked for (a jail, limits) must not run anything.
            self._deaths.set_up_failed(error)
            self._peer.give_up()
            raise
        finally:
            self._starting = None
            self._replaying = False
        self._deaths.say(lost, promised and kept is None, age if kept is not None else None)
        return kept is not None

    # -- use ------------------------------------------------------------------------------------

    def load_module(self, name, path=None):
        """Imports a module in the child.

        Parameters
        ----------
        name : str
            Full name, as for ``import``.
        path : list of str or None
            Directories to search instead of ``sys.path``, for this module alone.

        Returns
        -------
        module
            The same object each time.

        Raises
        ------
        ImportError
            And whatever else importing raises, with the child's traceback.
        ProcessTerminationError
            When importing it killed the child.
        """
        if not isinstance(name, str) or not name:
            raise TypeError("the name of a module is a non-empty string")
        if path is not None:
            if isinstance(path, (str, os.PathLike)):
                path = [path]
            path = [os.fspath(p) for p in path]
        known = self._loaded.get(name)
        self.ensure_started()
        if known is not None and self._loaded_in.get(name) == self._peer.epoch:
            return known[0]
        if known is not None and path is None:
            path = known[1]
        self._following.sync()
        isolated = self._peer.isolated
        isolated.update(_also_named(name))
        module, file, search, package, doc = self._peer.host_call("load", name, path, tuple(isolated))
        first = not any(epoch == self._peer.epoch for epoch in self._loaded_in.values())
        self._loaded[name] = module, path
        self._loaded_in[name] = self._peer.epoch
        if first:
            self._deaths.watch_memory()  # the set-up may have moved it to another control group
            self._snapshots.life_began()
        else:
            self._snapshots.loaded()
        self._watch.loaded()
        if isinstance(module, types.ModuleType) and _core.isproxy(module):
            module.__name__ = name
            module.__package__ = package
            module.__doc__ = doc if isinstance(doc, str) else None
            if file is not None:
                module.__file__ = file
            if search is not None:
                module.__path__ = list(search)
            if getattr(module, "__spec__", None) is None:
                spec = importlib.machinery.ModuleSpec(name, None, origin=file, is_package=search is not None)
                spec.has_location = file is not None
                if search is not None:
                    spec.submodule_search_locations = list(search)
                module.__spec__ = spec
        return module

    def reload_module(self, name):
        """Reloads a module, as `importlib.reload` does. What no process can load twice gets another: where an
        extension module, or any library that the child runs, was rebuilt, this is `reload`.

        Returns
        -------
        module
            The proxy it always was.
        """
        if self._loaded_in.get(name) != self._peer.epoch or self._peer.state != "running":
            return self.load_module(name)
        if any(not path.endswith(".py") for path in self._watch.changed()):
            self.reload()
            return self.load_module(name)
        return self._peer.host_call("reload", name)

    def find_module(self, name):
        """Whether the child can import `name`: bool. Nothing is imported."""
        self.ensure_started()
        self._following.sync()
        return self._peer.host_call("find", name)

    def call(self, function, /, *args, **kwargs):
        """Calls a function in the child.

        A function that can be imported is the child's own; one of the session is shipped as code.
        Calls made before the first module is loaded are set-up: they are made again at each restart,
        before anything is loaded (a chroot, limits).

        Parameters
        ----------
        function : callable

        Returns
        -------
        object
            What it returned, as any result of an isolated function.

        Raises
        ------
        Exception
            What the function raised.
        """
        if not callable(function):
            raise TypeError(f"{function!r} is not callable")
        setup = not self._loaded and not self._replaying
        self.ensure_started()
        if setup:
            self._prepare()
        # As they are now: the call may change them, and leave objects of this life in them.
        step = (function, *copies.containers((args, kwargs))) if setup else None
        result = self._call(function, args, kwargs)
        if setup:
            self._setup.append(step)
        return result

    def _prepare(self):
        """Set-up may take the child's files away: it first imports what it would only need later."""
        if self._prepared != self._peer.epoch:
            self._peer.host_call("prepare")
            self._prepared = self._peer.epoch

    def _call(self, function, args, kwargs):
        if _core.isproxy(function):
            return function(*args, **kwargs)
        function = shipping.undecorated(function)
        if isinstance(function, types.FunctionType):
            if shipping.is_importable(function):
                return self._peer.host_call("call_named", function.__module__, function.__qualname__, args, kwargs)
            return self._peer.host_call("call_shipped", shipping.package(function), args, kwargs)
        if isinstance(function, types.BuiltinFunctionType) and isinstance(function.__self__, types.ModuleType):
            # By name, also where its module is isolated meanwhile: as an argument it would be this process's own.
            return self._peer.host_call("call_named", function.__module__, function.__qualname__, args, kwargs)
        return self._peer.call(function, *args, **kwargs)

    def batch(self):
        """A ``with`` block in which calls return at once, and many of them travel in one request.

        Calls of isolated functions, of methods and of classes that this thread makes in the block give a `Future`
        each. They are made in order, at the latest when the block ends; earlier when a `Future.result` is asked for,
        when anything else is done with an isolated object, and when many or big ones have gathered (48 KB of calls,
        1,000 of them, 64 mutable containers). A future can be an argument of a later call of the same block. A
        call that raises stops no other. What nobody has asked for is raised at the end of the block: the exception
        itself, or an `ExceptionGroup` of several; after an exception of the block's own it is in the notes of that.

        Returns
        -------
        Batch
            Has the method ``flush()``.

        Examples
        --------
        >>> with IsolationContext() as context:
        ...     math = context.load_module("math")
        ...     with context.batch():
        ...         roots = [math.sqrt(x) for x in range(4)]
        ...     [root.result() for root in roots]
        [0.0, 1.0, 1.4142135623730951, 1.7320508075688772]
        """
        self._check_usable()
        return batch.Batch(self._peer)


def _also_named(name):
    """A module, and those in C that its functions and classes may say they are of: list of str."""
    names = [name]
    if name == "os":
        names += ["posix", "posixpath"]
    if "." not in name and not name.startswith("_"):
        names.append("_" + name)  # struct's classes live in _struct, csv's in _csv ...
    return names


def _resident(pid):
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def default_context():
    """The context that `import_isolated` and ``%isolate`` use; it restarts by itself.

    Returns
    -------
    IsolationContext
    """
    return named_context("default")


def named_context(name, **options):
    """The context of that name, made when there is none; it restarts by itself.

    Parameters
    ----------
    name : str
    **options
        As for `IsolationContext`; only for a new context.

    Returns
    -------
    IsolationContext

    Raises
    ------
    ValueError
        When the context exists with other options.
    """
    context, made = registry.named(name, lambda: IsolationContext(**{"restart": "auto", **options, "name": name}))
    for option, value in () if made else options.items():
        if option in limits.READ:
            value = limits.READ[option](value)
        if getattr(context, "_" + option, None) != value:
            raise ValueError(
                f"context {name!r} exists with {option}={getattr(context, '_' + option, None)!r};"
                " close it first, or use another name"
            )
    return context


@atexit.register
def _close_all():
    close_each(contexts())


def close_each(contexts):
    """Closes all of them, whatever happens.

    Parameters
    ----------
    contexts : iterable of IsolationContext

    Raises
    ------
    KeyboardInterrupt
        Or another one that is no `Exception`: the first that came, when all are closed.
    """
    raised = None
    for context in contexts:
        try:
            context.close()
        except Exception:
            pass
        except BaseException as error:
            raised = raised or error
    if raised is not None:
        raise raised
