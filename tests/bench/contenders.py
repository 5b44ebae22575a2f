"""Ways to have Python objects in another process: the same four operations by each of them.

Each contender is a class whose instance offers `noop`, `getitem`, `setitem`, `method` (callables without
arguments, to be timed), `pid()` (who answers, asked in the same way), `requests()` (None, or how many requests
were sent so far) and `close()`.
"""

import ctypes
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

    def requests(self):
        return None

    def close(self):
        pass


class Isolated(Local):
    """With default options: small frames through shared memory."""

    label = "ipython_isolation"
    transport = "auto"

    def __init__(self):
        import ipython_isolation

        self.context = ipython_isolation.IsolationContext(name=f"bench-{self.transport}", transport=self.transport)
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


class Raw:
    """libzmq alone, in C: tests/bench/pingpong.c."""

    label = "raw libzmq"

    def __init__(self):
        BUILD.mkdir(parents=True, exist_ok=True)
        program = BUILD / "pingpong"
        flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "libzmq"], text=True).split()
        subprocess.check_call(
            ["gcc", "-O2", "-Wall", "-Wextra", "-std=gnu11", HERE / "pingpong.c", "-o", program, *flags]
        )
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        self._manager = _Made(ctx=get_context("spawn"))
        self._manager.start()
        od, self.thing = self._manager.od(), self._manager.thing()

        def setitem():
            od["abc"] = 1

        self.noop, self.pid = self._manager.noop(), self._manager.getpid()
        self.getitem, self.setitem, self.method = lambda: od["abc"], setitem, lambda: self.thing.method()

    def requests(self):
        return None

    def close(self):
        self._manager.shutdown()


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

    @staticmethod
    def serve(path):
        import bench_target
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

            method = Pyro5.api.expose(bench_target.Thing.method)

        for name in ("noop", "getpid", "getitem", "setitem"):
            setattr(Served, name, Pyro5.api.expose(vars(Served)[name]))
        daemon = Pyro5.api.Daemon(unixsocket=path)
        print(daemon.register(Served()), flush=True)
        daemon.requestLoop()

    def requests(self):
        return None

    def close(self):
        self._proxy._pyroRelease()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._directory.cleanup()


if __name__ == "__main__":
    {"rpyc": RPyC, "pyro": Pyro}[sys.argv[1]].serve(sys.argv[2])
