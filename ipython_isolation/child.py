"""The child's entry point, and what the kernel may ask of it by name (``remote_*``).

Kept small on purpose: what is imported here is imported by every child.
"""

import _thread
import importlib
import importlib.machinery
import os
import sys
import types

from ipython_isolation import _core, abcs, child_shell, prompts, reports, streams  # now: not from a chroot

#: What this package imports in a child only once it is needed, and cannot from a chroot.
_LAZY = """
    ipython_isolation.cellspace ipython_isolation.decorator ipython_isolation.represent ipython_isolation.suggest
    collections contextlib datetime getpass inspect io linecache os pickle platform re threading traceback types typing warnings
"""
_VALUES = """
    datetime.date datetime.time datetime.datetime datetime.timedelta datetime.timezone
    decimal.Decimal fractions.Fraction uuid.UUID zoneinfo.ZoneInfo
    pathlib.Path pathlib.PosixPath pathlib.PurePath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.Path pathlib._local.PosixPath pathlib._local.PurePath
    pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
    ipaddress.IPv4Address ipaddress.IPv6Address ipaddress.IPv4Network ipaddress.IPv6Network
    ipaddress.IPv4Interface ipaddress.IPv6Interface
    inspect.Signature inspect.Parameter inspect._empty
    enum.EnumType enum.EnumMeta re.Pattern types.GenericAlias types.UnionType
    typing._GenericAlias typing._SpecialGenericAlias typing._UnionGenericAlias typing._CallableGenericAlias
    typing._LiteralGenericAlias typing._AnnotatedAlias typing._SpecialForm typing.TypeVar
    pandas.Timestamp pandas.Timedelta pandas.Period pandas.Interval
    pandas.api.typing.NaTType pandas.api.typing.NAType
    pandas._libs.tslibs.timestamps.Timestamp pandas._libs.tslibs.timedeltas.Timedelta
    pandas._libs.tslibs.period.Period pandas._libs.interval.Interval
    pandas._libs.tslibs.nattype.NaTType pandas._libs.missing.NAType
    torch.dtype torch.device torch.layout torch.memory_format
    dataclasses._FIELD_BASE dataclasses._MISSING_TYPE dataclasses._KW_ONLY_TYPE
"""


_LIBRARIES = ("pandas", "pyarrow", "PIL", "torch", "pytz", "dateutil")


def register_default_values():
    """Small immutable library types cross by value; listed by name, so that nothing is imported."""
    for name in _VALUES.split():
        _core.value_types[name] = True
    for library in _LIBRARIES:  # see libraries.py
        _core.value_types[f"{library}."] = True


def _invalidate_caches():
    """As `importlib.invalidate_caches`, which since CPython 3.12 imports importlib.metadata to clear what only that keeps;
    for a child that has not imported it that is half of its start."""
    if "importlib.metadata" in sys.modules:
        importlib.invalidate_caches()
        return
    for name, finder in list(sys.path_importer_cache.items()):
        if finder is None or not os.path.isabs(name):
            del sys.path_importer_cache[name]
        elif hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()
    for finder in sys.meta_path:
        if getattr(finder, "__name__", "") != "PathFinder" and hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


class Child:
    """The child's side of the policy that the core asks for."""

    name = "child"

    def __init__(self):
        self.peer = _core.Peer(self)
        self.reports = reports.ChildReports(self.peer)
        self.shell = child_shell.ChildShell(self.reports, None)
        self.following = {"path": None, "environ": None, "cwd": None}

    # -- what the core calls --------------------------------------------------------------------

    def ensure_running(self):
        raise RuntimeError("the session has gone")

    def stale(self, name, attribute):
        return ReferenceError(f"this {name} object of the session is gone")

    def spawn(self, strand):
        import threading

        threading.Thread(target=self._serve, args=(strand,), name=f"isolation-{strand}", daemon=True).start()

    def _serve(self, strand):
        if self.peer.shares_arrays:
            _core.share_arrays(0)  # NumPy has an allocator for each thread
        self.reports.serve(strand)

    def signature(self, function):
        import inspect

        try:
            return inspect.signature(function)
        except (ValueError, TypeError) as error:
            raise AttributeError("__signature__") from error

    def reduce_container(self, proxy):
        from ipython_isolation import errors

        return errors.container(proxy.__class__, self.peer.host_call("content", proxy))

    # -- what the kernel asks -------------------------------------------------------------------

    def remote_setup(self, argv, paths, isolated, shell, shares_arrays, path, environ, cwd, levels):
        """Whether a shell has been made here (bool)."""
        sys.argv[:] = argv
        self.peer.isolated.update(isolated)
        self.shell.name = shell
        _paths.update(paths)
        self.remote_sync(path, environ, cwd, levels)
        if shares_arrays:
            _core.share_arrays(1)
            self.peer.shares_arrays = True
        return self.shell.made

    def remote_prepare(self):
        """Imports what may be needed later: the root directory is about to become another."""
        for name in _LAZY.split():
            importlib.import_module(name)
        inspect = sys.modules["inspect"]
        inspect.signature(inspect.signature)  # which imports more
        _core.zmq_version()  # loads libzmq

    def remote_sync(self, path, environ, cwd, levels):
        """Follows the kernel. Each part is None when it did not change there."""
        if path is not None:
            sys.path[:] = path
            _invalidate_caches()
        if environ is not None:
            changed, removed = environ
            for key in removed:
                os.environ.pop(key, None)
            os.environ.update(changed)
        if cwd is not None:
            try:
                os.chdir(cwd)
            except OSError:
                pass  # e.g. not in this chroot
        if levels is not None:
            _logging.levels = levels
            _logging.apply()

    def remote_load(self, name, path, isolated):
        """Imports a module: (module, its file, its path, its package, its documentation)."""
        self.peer.isolated.update(isolated)
        if path is not None:
            _paths[name] = path
        try:
            __import__(name)  # no frame of importlib's own: a stacklevel would count it
            module = sys.modules[name]
        except BaseException as error:
            _strip_import_frames(error)
            raise
        search = getattr(module, "__path__", None)
        return (
            module,
            getattr(module, "__file__", None),
            None if search is None else [str(p) for p in search],
            getattr(module, "__package__", None),
            getattr(module, "__doc__", None),
        )

    def remote_reload(self, name):
        return importlib.reload(sys.modules[name])

    def remote_files(self):
        """The files of the isolated modules and of those below them: tuple of str."""
        files = set()
        for name, module in list(sys.modules.items()):
            while name and name not in self.peer.isolated:
                name = name.rpartition(".")[0]
            if name and isinstance(module, types.ModuleType):
                file = vars(module).get("__file__")
                if isinstance(file, str):
                    files.add(os.path.abspath(file))
        return tuple(files)

    def remote_find(self, name):
        if name in sys.modules:
            return True
        parent, _, _ = name.rpartition(".")
        if parent and parent not in sys.modules:
            return False
        try:
            return _util().find_spec(name) is not None
        except (ImportError, ValueError, AttributeError):
            return False

    def remote_freeze(self):
        """Makes a frozen copy of this process: the number of the next export (int), or why there is none (str).
        In the copy this returns once it takes over; nobody waits for the answer then."""
        random = getattr(sys.modules.get("random"), "_inst", None)
        numbers = None if random is None else random.getstate()  # CPython seeds anew after a fork
        cv2 = sys.modules.get("cv2")
        threads = cv2.getNumThreads() if hasattr(cv2, "setNumThreads") else 0
        if threads > 1:
            cv2.setNumThreads(1)  # its pool ends (not with 0); it is made again when it is needed
        self.reports.freezing = True
        try:
            outcome = self.peer.freeze()
            if outcome is True:
                if numbers is not None:
                    random.setstate(numbers)
                self.reports.reborn()
                self.shell.reborn()
            return outcome
        finally:
            self.reports.freezing = False
            if threads > 1:
                cv2.setNumThreads(threads)

    def remote_take_over(self, counts):
        return self.peer.take_counts(counts)

    def remote_plain(self, o):
        from ipython_isolation import adapters

        return adapters.plain(o)

    def remote_content(self, o):
        from ipython_isolation import errors

        return errors.content(o)

    def remote_byvalue(self, o):
        import pickle

        return pickle.dumps(o, protocol=pickle.HIGHEST_PROTOCOL)

    def remote_call_shipped(self, package, args, kwargs):
        from ipython_isolation import shipping

        return shipping.build(package)(*args, **kwargs)

    def remote_call_named(self, module, qualname, args, kwargs):
        o = importlib.import_module(module)
        for part in qualname.split("."):
            o = getattr(o, part)
        return o(*args, **kwargs)

    def remote_represent(self, *asked):
        from ipython_isolation import represent

        return represent.represent(*asked, lambda error: self.reports.tell("format_failed", error))

    def remote_suggest(self, *asked):
        from ipython_isolation import suggest

        return suggest.suggest(*asked)

    def remote_has_library(self, name):
        from ipython_isolation import libraries

        return libraries.has(name)

    def remote_importable(self, *asked):
        from ipython_isolation import suggest

        return suggest.importable(*asked)

    def remote_cell_ended(self):
        self.shell.cell_ended()

    def remote_run_cell(self, *details):
        from ipython_isolation import cellspace

        try:
            return cellspace.run(*details)
        except BaseException as error:
            cellspace.strip(error, details[0])
            raise

    def remote_counts(self):
        return self.peer.counts

    # -- log records ----------------------------------------------------------------------------

    def send_record(self, record):
        message = record.getMessage()
        if record.exc_info and not record.exc_text:
            import traceback

            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        self.reports.tell(
            "log",
            (
                ("name", record.name),
                ("msg", message),
                ("levelno", record.levelno),
                ("levelname", record.levelname),
                ("pathname", record.pathname),
                ("filename", record.filename),
                ("module", record.module),
                ("lineno", record.lineno),
                ("funcName", record.funcName),
                ("created", record.created),
                ("msecs", record.msecs),
                ("relativeCreated", record.relativeCreated),
                ("thread", record.thread),
                ("threadName", record.threadName),
                ("processName", record.processName),
                ("process", record.process),
                ("exc_text", record.exc_text),
                ("stack_info", record.stack_info),
            ),
        )


def _util():
    import importlib.util  # which imports contextlib

    return importlib.util


def _nothing(module):
    pass


class _AfterImport:
    """Calls functions once modules of certain names have been imported, each once."""

    def __init__(self):
        self._functions = {}  # name -> function
        self._looking = set()  # names that the other finders are asked for

    def add(self, name, function):
        if name in sys.modules:
            function(sys.modules[name])
        else:
            self._functions[name] = function

    def find_spec(self, name, path=None, target=None):
        if name not in self._functions or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = _util().find_spec(name) if path is None else importlib.machinery.PathFinder.find_spec(name, path)
        finally:
            self._looking.discard(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self._functions.pop(name, _nothing)(module)

            spec.loader.exec_module = exec_module
        return spec


class _Logging:
    """Installs the handler that sends log records to the kernel, once the child imports logging."""

    levels = None
    child = None

    def install(self, logging):
        child = self.child

        class SessionHandler(logging.Handler):
            def emit(self, record):
                try:
                    if not child.reports.closed:
                        child.send_record(record)
                    elif logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                        logging.lastResort.handle(record)
                except RecursionError:
                    raise
                except Exception:
                    self.handleError(record)

        logging.getLogger().addHandler(SessionHandler())
        self.apply()

    def apply(self):
        logging = sys.modules.get("logging")
        if logging is not None and hasattr(logging, "getLogger") and self.levels is not None:
            for name, level in self.levels:
                if name is None:
                    logging.disable(level)
                else:
                    logging.getLogger(name or None).setLevel(level)


_logging = _Logging()


class _PathFinder:
    """Finds the modules that were loaded with a path of their own: there, and nowhere else."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _paths:
            return None
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, _paths[name])
        except OSError:
            # In a chroot whose working directory lies outside, the finders cannot name it; open() can.
            leaf = name.rpartition(".")[2] + ".py"
            files = (os.path.join(entry, leaf) for entry in _paths[name])
            file = next(filter(os.path.exists, files), None)
            spec = file and _util().spec_from_file_location(name, file)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r} in {os.pathsep.join(_paths[name])}", name=name)
        return spec


_paths = {}  # name -> directories


def _strip_import_frames(error):
    """Leaves the user's frames in the traceback of a failed import, as the import statement does."""
    traceback, kept = error.__traceback__, []
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if filename != __file__ and not filename.startswith("<frozen importlib") and (
            os.path.basename(os.path.dirname(filename)) != "importlib"
        ):
            kept.append(traceback)
        traceback = traceback.tb_next
    for earlier, later in zip(kept, kept[1:] + [None]):
        earlier.tb_next = later
    error.__traceback__ = kept[0] if kept else None


def _adapt(json):
    from ipython_isolation import adapters

    adapters.install()


def main(spare=False):
    """Runs the child until the kernel ends it; a spare one first waits until there is use for it."""
    import signal
    import threading

    # SIGINT reaches Python only when the request that is to be interrupted is executing; the core
    # installs its own handler over this one and trips it.
    child = Child()

    def interrupted(signum, frame):
        child.peer.interrupt_taken()
        signal.default_int_handler(signum, frame)

    signal.signal(signal.SIGINT, interrupted)
    _logging.child = child
    after_import = _AfterImport()
    sys.meta_path[:0] = [_PathFinder, after_import]
    after_import.add("logging", _logging.install)
    after_import.add("getpass", lambda module: prompts.install_getpass(module, child.peer))
    after_import.add("IPython.core.interactiveshell", child.shell.watch)
    after_import.add("json", _adapt)
    prompts.install(child.peer)
    register_default_values()
    streams.install(child.peer)
    child.reports.install()
    for name in ("_start_new_thread", "_start_joinable_thread"):  # the latter since CPython 3.13
        if hasattr(threading, name):
            setattr(threading, name, _core.thread_starter(getattr(threading, name)))
    if spare:
        child.peer.stand_by()
    while True:
        child.peer.connect()
        # Without a frame of Python, which a frozen copy that takes over could not free. It has begun when this
        # goes on: else a copy would find a thread that it does not know.
        ready = _thread.allocate_lock()
        ready.acquire()
        _core.thread_starter(_thread.start_new_thread)(child.peer.run_service, (ready.release,))
        ready.acquire()
        child.reports.serve(1)
        if not child.peer.reborn:  # else this is a frozen copy, which takes over
            break
    child.reports.close()
