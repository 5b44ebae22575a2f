"""Ways to have Python objects in another process: the same operations by each of them.

Each contender is a class whose instance offers `noop`, `getitem`, `setitem`, `method` (callables without
arguments, to be timed), `pid()` (who answers, asked in the same way), `requests()` (None, or how many requests
were sent so far) and `close()`; and where it can, what bench_target.py has: `time_callbacks(function, n)`, `numbers()`
(what can be iterated), and for arrays `ends(array)`, `fill(array, number)` (after which the array here is as the
other process has left it), `stash(size, number)` and `take()` (a real array); for other big objects `look(o)` and
`stash_object(kind, megabytes, number)`.
"""

import ctypes
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from multiprocessing.managers import BaseManager
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "bench"


class Local:
    """The plain call, in this process."""

    label = "in this process"

    def __init__(self):
        import bench_target

        self.open(bench_target)

    def open(self, target):
        od, thing = target.make_dict(), target.Thing()

        def setitem():
            od["abc"] = 1

        self.noop, self.getitem, self.setitem = target.noop, lambda: od["abc"], setitem
        self.method = lambda: thing.method()
        self.pid = target.getpid
        self.thing = thing
        self.time_callbacks, self.numbers = target.time_callbacks, target.numbers
        self.ends, self.fill, self.stash, self.take = target.ends, target.fill, target.stash, target.take
        self.look, self.stash_object = target.look, target.stash_object

    def requests(self):
        return None

    def close(self):
        pass


class Isolated(Local):
    """With default options: small frames through shared memory."""

    label = "ipython_isolation"
    transport = "auto"
    arrays = "copy"

    def __init__(self):
        import ipython_isolation

        self.context = ipython_isolation.IsolationContext(
            name=f"bench-{self.transport}-{self.arrays}", transport=self.transport, arrays=self.arrays
        )
        # Isolated as well, so that its OrderedDict stays there.
        self.collections = self.context.load_module("collections")
        self.open(self.context.load_module("bench_target"))

        expected = {"auto": "lane", "zmq": "zmq"}[self.transport]
        if self.context.info()["transport"] != expected:
            sys.exit(f"{self.label}: the frames do not go by {expected}")

    def requests(self):
        return self.context.info()["requests"]

    def close(self):
        self.context.close()


class IsolatedZmq(Isolated):
    """All frames over ZeroMQ."""

    label = "over ZeroMQ"
    transport = "zmq"


class IsolatedShared(Isolated):
    """Arrays are the same memory in both processes."""

    label = "arrays shared"
    arrays = "shared"


def _program(name, *flags):
    """A C program of this folder, compiled and started, that is asked by its stdin."""
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.check_call(["gcc", "-O2", "-Wall", "-Wextra", "-std=gnu11", HERE / f"{name}.c", "-o", BUILD / name, *flags])
    return subprocess.Popen([BUILD / name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Line:
    """How far the processors are from each other: tests/bench/line.c. No contender; needs two processors."""

    def __init__(self):
        self._process = _program("line")

    def there_and_back(self, n=2000):
        """What one line of memory takes on average, of n: nanoseconds."""
        self._process.stdin.write(struct.pack("=Q", n))
        self._process.stdin.flush()
        return struct.unpack("=Q", self._process.stdout.read(8))[0]

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Raw:
    """libzmq alone, in C: tests/bench/pingpong.c."""

    label = "raw libzmq"

    def __init__(self):
        flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "libzmq"], text=True).split()
        self._process = _program("pingpong", *flags)
        self._pid = None

    def run(self, n):
        """n round trips: their nanoseconds."""
        self._process.stdin.write(struct.pack("=Q", n))
        self._process.stdin.flush()
        *took, self._pid = struct.unpack(f"={n + 1}Q", self._process.stdout.read(8 * (n + 1)))
        return took

    def pid(self):
        return self._pid

    def requests(self):
        return None

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class RPyC(Local):
    """Its classic mode over a socketpair."""

    label = "RPyC"

    def __init__(self):
        from rpyc import ClassicService
        from rpyc.core.stream import SocketStream
        from rpyc.utils.factory import connect_stream

        here, there = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "rpyc", str(there.fileno())], pass_fds=[there.fileno()]
        )
        there.close()
        self._connection = connect_stream(SocketStream(here), ClassicService)
        self._connection._config["sync_request_timeout"] = None
        self.open(self._connection.modules["bench_target"])
        self._connection._config["allow_pickle"] = True  # for copies of arrays, as its manual advises
        from rpyc.utils.classic import deliver, obtain

        def ends(array):
            return tuple(target.ends(deliver(self._connection, array)))

        def fill(array, number):
            there = deliver(self._connection, array)
            target.fill(there, number)
            array[:] = obtain(there)

        target = self._connection.modules["bench_target"]
        self.ends, self.fill, self.take = ends, fill, lambda: obtain(target.take())
        self.look = lambda o: tuple(target.look(deliver(self._connection, o)))

    @staticmethod
    def serve(fd):
        from rpyc import ClassicService
        from rpyc.core.stream import SocketStream
        from rpyc.utils.factory import connect_stream

        connect_stream(SocketStream(socket.socket(fileno=int(fd))), ClassicService).serve_all()

    def close(self):
        self._connection.close()
        self._process.wait()


class _Made(BaseManager):
    pass


class Manager:
    """multiprocessing.managers over its default, a Unix socket."""

    label = "multiprocessing"

    def __init__(self):
        import bench_target
        from multiprocessing import get_context

        _Made.register("od", bench_target.make_dict, exposed=["__getitem__", "__setitem__"])
        _Made.register("thing", bench_target.Thing)
        _Made.register("noop", _NoOp, exposed=["__call__"])
        _Made.register("getpid", _GetPid, exposed=["__call__"])
        _Made.register("numbers", bench_target.numbers, exposed=["__getitem__", "__len__"])
        _Made.register("arrays", Arrays)
        self._manager = _Made(ctx=get_context("spawn"))
        self._manager.start()
        od, self.thing = self._manager.od(), self._manager.thing()

        def setitem():
            od["abc"] = 1

        self.noop, self.pid = self._manager.noop(), self._manager.getpid()
        self.getitem, self.setitem, self.method = lambda: od["abc"], setitem, lambda: self.thing.method()
        numbers, arrays = self._manager.numbers(), self._manager.arrays()

        def fill(array, number):
            array[:] = arrays.filled(array, number)

        self.numbers = lambda: _Sequence(numbers)
        self.ends, self.fill, self.stash, self.take = arrays.ends, fill, arrays.stash, arrays.take
        self.look, self.stash_object = arrays.look, arrays.stash_object

    def requests(self):
        return None

    def close(self):
        self._manager.shutdown()


class _Sequence:
    """Iterates a proxy that has items alone."""

    def __init__(self, proxy):
        self._proxy = proxy

    def __getitem__(self, index):
        if index >= 1000:  # the proxy would raise IndexError in the same way, with a traceback on stderr
            raise IndexError(index)
        return self._proxy[index]


class Arrays:
    """Functions on arrays where what is passed is a copy: what was written has to be returned."""

    def ends(self, array):
        import bench_target

        return bench_target.ends(array)

    def filled(self, array, number):
        array.fill(number)
        return array

    def stash(self, size, number):
        import bench_target

        bench_target.stash(size, number)

    def take(self):
        import bench_target

        return bench_target.take()

    def look(self, o):
        import bench_target

        return bench_target.look(o)

    def stash_object(self, kind, megabytes, number):
        import bench_target

        bench_target.stash_object(kind, megabytes, number)


class _NoOp:
    def __call__(self):
        pass


class _GetPid:
    def __call__(self):
        return os.getpid()


class Pyro:
    """Pyro5 over a Unix socket. It proxies no operators, so a class with methods stands for the dict."""

    label = "Pyro5"

    def __init__(self):
        import Pyro5.api

        self._directory = tempfile.TemporaryDirectory()
        path = os.path.join(self._directory.name, "pyro")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "pyro", path], stdout=subprocess.PIPE, preexec_fn=_end_with_parent
        )
        self._proxy = proxy = Pyro5.api.Proxy(self._process.stdout.readline().decode().strip())
        proxy._pyroBind()
        self.noop, self.pid, self.method = lambda: proxy.noop(), lambda: proxy.getpid(), lambda: proxy.method()
        self.getitem, self.setitem = lambda: proxy.getitem("abc"), lambda: proxy.setitem("abc", 1)
        self.numbers = lambda: _Iterated(proxy)
        self._open_callbacks()
        self._open_arrays(self._proxy.__copy__())

    def _open_callbacks(self):
        import threading

        import Pyro5.api

        class Callback:
            function = None

            @Pyro5.api.expose
            @Pyro5.api.callback
            def call(self):
                self.function()

        callback = Callback()
        self._server = server = Pyro5.api.Daemon(unixsocket=os.path.join(self._directory.name, "callbacks"))
        server.register(callback)
        self._serving = threading.Thread(target=server.requestLoop, daemon=True)
        self._serving.start()

        def time_callbacks(function, n):
            callback.function = function
            return self._proxy.time_callbacks(callback, n)

        self.time_callbacks = time_callbacks

    def _open_arrays(self, proxy):
        import numpy

        proxy._pyroSerializer = "marshal"  # the one that leaves bytes alone

        def fill(array, number):
            array[:] = numpy.frombuffer(proxy.filled(array.tobytes(), number))

        self.ends = lambda array: tuple(proxy.ends(array.tobytes()))
        self.fill, self.stash, self.take = fill, proxy.stash, lambda: numpy.frombuffer(proxy.take())
        self._for_arrays = proxy

    @staticmethod
    def serve(path):
        import bench_target
        import numpy
        import Pyro5.api

        class Served(bench_target.Thing):
            od = bench_target.make_dict()

            def noop(self):
                pass

            def getpid(self):
                return os.getpid()

            def getitem(self, key):
                return self.od[key]

            def setitem(self, key, value):
                self.od[key] = value

            def numbers(self):
                return iter(bench_target.numbers())

            def time_callbacks(self, callback, n):
                callback._pyroBind()
                return bench_target.time_callbacks(lambda: callback.call(), n)

            def ends(self, data):
                return bench_target.ends(numpy.frombuffer(data))

            def filled(self, data, number):
                array = numpy.frombuffer(bytearray(data))
                bench_target.fill(array, number)
                return array.tobytes()

            def stash(self, size, number):
                bench_target.stash(size, number)

            def take(self):
                return bench_target.take().tobytes()

            method = Pyro5.api.expose(bench_target.Thing.method)

        own = ("noop", "getpid", "getitem", "setitem", "numbers", "time_callbacks", "ends", "filled", "stash", "take")
        for name in own:
            setattr(Served, name, Pyro5.api.expose(vars(Served)[name]))
        daemon = Pyro5.api.Daemon(unixsocket=path)
        print(daemon.register(Served()), flush=True)
        daemon.requestLoop()

    def requests(self):
        return None

    def close(self):
        self._server.shutdown()
        self._serving.join()
        self._server.close()
        self._for_arrays._pyroRelease()
        self._proxy._pyroRelease()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()


class _Iterated:
    """Pyro5 streams what an iterator of the other process gives."""

    def __init__(self, proxy):
        self._proxy = proxy

    def __iter__(self):
        return iter(self._proxy.numbers())


class IPyParallel:
    """ipyparallel: a controller and one engine. It has functions that run there, and no objects that stand for
    others: functions stand for the dict's operators and the method."""

    label = "ipyparallel"
    #: Starting a cluster takes seconds, and a call milliseconds: measured in fewer launches, with fewer calls.
    heavy = True

    def __init__(self):
        import logging

        import ipyparallel

        # Not in the user's profile, whatever that is.
        self._directory = tempfile.TemporaryDirectory()
        self._cluster = ipyparallel.Cluster(
            n=1, ipython_dir=self._directory.name, log_level=logging.ERROR, delay=0, cluster_id="bench"
        )
        self._client = self._cluster.start_and_connect_sync(n=1)
        self._view = view = self._client[0]
        view.execute(
            f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench_target;"
            " od = bench_target.make_dict(); thing = bench_target.Thing()",
            block=True,
        )
        call = view.apply_sync
        self.noop, self.pid = lambda: call(_remote_noop), lambda: call(os.getpid)
        self.getitem, self.setitem = lambda: call(_remote_getitem), lambda: call(_remote_setitem)
        self.method = lambda: call(_remote_method)

        def fill(array, number):
            array[:] = call(_remote_filled, array, number)

        self.ends, self.fill = lambda array: call(_remote_ends, array), fill
        self.stash, self.take = lambda size, number: call(_remote_stash, size, number), lambda: call(_remote_take)
        self.look, self.stash_object = lambda o: call(_remote_look, o), lambda *what: call(_remote_stash_object, *what)

    def requests(self):
        return None

    def close(self):
        self._client.close()
        self._cluster.stop_cluster_sync()
        self._directory.cleanup()


# Sent as code, and run where `od`, `thing` and `bench_target` are names of the engine.
def _remote_noop():
    return None


def _remote_getitem():
    return od["abc"]  # noqa: F821


def _remote_setitem():
    od["abc"] = 1  # noqa: F821


def _remote_method():
    return thing.method()  # noqa: F821


def _remote_ends(array):
    return bench_target.ends(array)  # noqa: F821


def _remote_filled(array, number):
    array = array.copy()  # what arrives is read-only
    array.fill(number)
    return array


def _remote_stash(size, number):
    bench_target.stash(size, number)  # noqa: F821


def _remote_take():
    return bench_target.take()  # noqa: F821


def _remote_look(o):
    return bench_target.look(o)  # noqa: F821


def _remote_stash_object(kind, megabytes, number):
    bench_target.stash_object(kind, megabytes, number)  # noqa: F821


for _function in [o for name, o in globals().items() if name.startswith("_remote_")]:
    _function.__module__ = "__main__"  # sent by value: the engine's own names are meant


def installed(kinds):
    """Those of the contenders whose packages are here: list. Says which are not."""
    found = list(kinds)
    for kind, package in ((Pyro, "Pyro5"), (RPyC, "rpyc"), (IPyParallel, "ipyparallel")):
        if kind in found and importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out", file=sys.stderr)
            found.remove(kind)
    return found


if __name__ == "__main__":
    {"rpyc": RPyC, "pyro": Pyro}[sys.argv[1]].serve(sys.argv[2])
