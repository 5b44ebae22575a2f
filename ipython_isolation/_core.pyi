"""The C core. Users go through `ipython_isolation`; this is for those who work on it."""

from contextvars import Context
from os import PathLike
from types import FrameType, ModuleType
from typing import Any, Callable

#: Trace names of the operation table (ext/ops.def), by id.
operations: tuple[str, ...]

#: Types whose instances cross by value: type or "module.qualname" -> True; what was looked up
#: and is none -> False.
value_types: dict[type | str, bool]

def isproxy(o: object, /) -> bool:
    """Whether o stands for an object of another process. Local and safe for any object."""

def contents(o: object, /) -> tuple[Any, ...] | None:
    """All items of a list of the other side, or all (key, value) of a dict; None where `o` is no proxy of either."""

def proxy_info(o: object, /) -> tuple[Peer, int, int, bool] | None:
    """(peer, handle, epoch, lost) of a proxy, None for anything else. Local."""

def target_name(o: object, /) -> str | None:
    """"module.qualname" of what a proxy or class stands for, where it is reached by name. Local."""

def class_peer(cls: object, /) -> Peer | None:
    """The peer that a class is a mirror of, None for anything else. Local."""

def raiser(function: Callable[[Any], Any], /) -> Callable[[Any], Any]:
    """A function that calls `function` and raises what it returns, if that is an exception, as its caller's own."""

def share_arrays(change: int, /) -> None:
    """NumPy gets big arrays of this thread in memory that both processes may have: one context more that wants it
    (1), one less (-1), or another thread of the same (0). ImportError: no NumPy of 1.22 or later."""

def thread_starter(start: Callable[..., Any], /) -> Callable[..., Any]:
    """Child: a function that does what start(function, ...) does, in a thread with an alternate signal stack."""

def thread_cell() -> int:
    """Child: the number of the cell that has started the calling thread; 0 where it is the one that runs now, or none."""

def zmq_version() -> tuple[int, int, int]: ...

class Peer:
    """One end of a context.

    Parameters
    ----------
    host : object
        Knows policy. Called for: ``ensure_running()``, ``sync()``, ``on_output(stream, data)``,
        ``terminated(facts, first)``, ``stale(name)``, ``interrupt_hint()``, ``spawn(strand)``,
        ``signature(function)``, ``timed_out(operation, operand, timeout)``, ``files_changed()``, and
        ``remote_<name>(...)`` for the other side's ``host_call``.
    supervisor : path or None
        The kernel's side: the supervisor program. None: the child's side.
    lane : bool
        The kernel's side: small frames go through shared memory, where that is possible.
    """

    host: object
    #: The module that the calling thread's outermost request is about, where that is known here.
    module: str | None
    epoch: int
    requests: int
    #: Grows with each frame received: as long as it stands, the other side has changed nothing.
    turn: int
    #: Whether the calling thread may ask the other side now: it executes a request and no frame is being
    #: written or read. None: it is a thread of this side's own, and waits until it is lent a strand.
    may_ask: bool | None
    isolated: set[str]
    modules: dict[str, ModuleType]
    call_context: Context | None
    main_thread: int
    #: The number of the session's cell that runs or ran last; 0: it has none.
    cell: int
    active: int
    state: str
    pid: int | None
    supervisor_pid: int | None
    transport: str
    counts: dict[str, int]
    sync: bool

    def __init__(self, host: Any, supervisor: str | PathLike[str] | None = None, lane: bool = True) -> None: ...
    def start(self, argv: list[str], environ: list[str], cwd: str, keep_core: bool = False, /) -> None:
        """Begins the next life and waits for its hand-shake."""

    def started(self) -> None:
        """The life is set up: threads other than the one that started it may use it."""

    def give_up(self) -> None:
        """Ends a life that could not be set up; nobody is told that it died."""

    def connect(self) -> None:
        """Child: takes the inherited descriptors and shakes hands."""

    def serve_strand(self, strand: int, /) -> None:
        """Serves requests of one strand in the calling thread until its other end closes it."""

    def run_service(self, ready: Callable[[], object] = ..., /) -> None:
        """Runs the service thread's loop in the calling thread for the rest of this life."""

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function over there: one that crosses by name, or a proxy."""

    def host_call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls ``host.remote_<name>`` over there."""

    def entries(self) -> list[FrameType | None]:
        """The frames of the calling thread that wait while it serves the other side, innermost first."""

    def interrupt_taken(self) -> None:
        """Child: the SIGINT of the request under way has been raised."""

    def death_record(self) -> bytes | None:
        """What the child wrote down when it died (ext/record.h); empty: nothing, None: it could not have."""

    def is_over(self) -> bool:
        """Whether the child has died since the last request, without waiting."""

    #: Kernel: seconds that an outermost request may take, then its child is interrupted; 0: no limit.
    timeout: float
    #: Kernel: `host.files_changed()` is called before a request when this descriptor is readable, or from these
    #: monotonic seconds on; -1 and 0: never.
    changes_fd: int
    changes_at: float

    def set_limits(self, memory: int, cpu: int, nice: int, /) -> None:
        """Kernel: of the lives that `start()` begins from now on: bytes, seconds; 0: no limit."""

    #: Kernel: a child that crashes is kept as it stands.
    hold: bool
    #: Kernel: process id of the child that is kept.
    held: int | None

    def release(self) -> None:
        """Kernel: ends the child that is kept."""

    def start_spare(self, argv: list[str], environ: list[str], cwd: str, /) -> None:
        """Kernel: starts an interpreter for `take_spare()`; returns before it runs."""

    def drop_spare(self) -> None:
        """Kernel: ends the spare."""

    def take_spare(self) -> bool:
        """Kernel: the spare is the child of the next life; False when there is none."""

    def stand_by(self) -> None:
        """Child: this is a spare; waits until it is to `connect()`, or ends with the session."""

    def cpu_used(self) -> float:
        """Kernel: seconds of processor time that the dead child had, waiting until it is reaped; -1.0: not known."""

    #: Kernel: monotonic seconds at which `host.renew_snapshot()` is called before a request, and the same where
    #: the child has exported something since the last copy; 0: never.
    snapshot_at: float
    snapshot_soon: float
    #: Kernel: a frozen copy of the child would take over now.
    has_frozen: bool
    #: Kernel: process id of that copy, None when there is none.
    frozen_pid: int | None
    #: Child: this is a frozen copy that has been told to take over, and has to `connect()`.
    reborn: bool

    def keep_frozen(self, next_handle: int, /) -> None:
        """Kernel: takes the line to the copy that the child has just made; the last one ends."""

    def drop_frozen(self) -> None:
        """Kernel: the frozen copy ends."""

    def take_over(self) -> bool:
        """Kernel: the frozen copy is the child of the next life; False when there is none any more."""

    def survivors(self) -> tuple[tuple[tuple[int, int], ...], list[Any]]:
        """Kernel: ((handle, count), ...) of the proxies whose targets the copy has, and these proxies."""

    def settle(self, missing: tuple[int, ...], counts: tuple[tuple[int, int], ...], /) -> None:
        """Kernel: what the copy's `take_counts()` answered."""

    def freeze(self) -> int | str | bool:
        """Child: the next export's number when a copy was made, else why not; in the copy True, at its take-over."""

    def take_counts(self, counts: tuple[tuple[int, int], ...], /) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Child: its exports are these and no others; (handles that are not there, counts of its proxies)."""

    def kill(self, signal: int, /) -> None: ...
    def close(self) -> None: ...
    def forget(self) -> None:
        """In a fork of the kernel: drops everything without touching the child."""
