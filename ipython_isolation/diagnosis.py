"""What a dead child left behind, made readable: the verdict, the stacks, the text.

Nothing is guessed: each verdict rests on something that the operating system, the signal handler of the child
(ext/recorder.c) or a library of it has said.
"""

import contextlib
import functools
import linecache
import os
import re
import signal as _signal
import struct
import subprocess
from typing import NamedTuple

_SYMBOLIZER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_symbolize")
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
#: Seconds that the search for names may take; and how much longer, on a busy machine, until there is any.
_LIMIT = 0.1
_PATIENCE = 0.5
#: struct record_header of ext/record.h.
_HEADER = struct.Struct("@IIIiiiiiIIIQQQQIIII36Q16s512s")
_KIND_EXIT, _KIND_EXEC, _KIND_LEFT = 2, 3, 4
_COMPLETE = 3
_REGISTERS = {
    1: "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split(),
    2: [f"x{i}" for i in range(31)] + ["sp", "pc"],
}
_PAGE = 4096
#: Source files from so many bytes on are not read.
_BIG = 10_000_000
#: So far from the stack pointer a big frame may touch the stack first.
_FRAME_LIMIT = 1 << 16
#: The operating system keeps so much free below a main thread's stack.
_STACK_GAP = 1 << 20


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text):
    """Text of the child without colours and what else a terminal would act on."""
    return _CONTROLS.sub("?", _ESCAPES.sub("", text.replace("\r\n", "\n")))


class NativeFrame(NamedTuple):
    """One frame of native code, or a function that was inlined into it.

    Attributes
    ----------
    function : str
        Empty when the library has no name for it.
    library : str
        Path of the shared library or program; empty where there is no code.
    file : str or None
        Source file, where there is debug information.
    line : int or None
    offset : int
        Of the instruction, from where the library begins.
    address : int
    inlined : bool
        It is part of the next frame.
    """

    function: str
    library: str
    file: str | None
    line: int | None
    offset: int
    address: int
    inlined: bool = False

    def __str__(self):
        where = os.path.basename(self.library) or "no library"
        if not self.function:
            return f"{where}+{self.offset:#x}" if self.library else f"{self.address:#x}"
        if self.file:
            return f"{self.function} at {os.path.basename(self.file)}:{self.line}"
        return f"{self.function} in {where}"


class PythonFrame(NamedTuple):
    """One frame of Python code: function, file, line."""

    function: str
    file: str
    line: int

    def __str__(self):
        return f"{self.function} at {os.path.basename(self.file)}:{self.line}"


class Record:
    """What the child wrote down when it died.

    Parameters
    ----------
    block : bytes
        As `Peer.death_record` gives it, not empty.
    """

    def __init__(self, block):
        fields = _HEADER.unpack_from(block)
        (_, state, self.kind, self.signal, self.code, self.sender, self.pid, self.tid, self.exiting,
         self.under_sanitizer, self.machine, self.address, self.pc, self.sp, _, stack, maps, python, count) = fields[:19]  # fmt: skip
        self.block = block
        self.complete = state == _COMPLETE
        self.registers = dict(zip(_REGISTERS.get(self.machine, ()), fields[19 : 19 + count]))
        self.thread = clean(fields[55].split(b"\0")[0].decode("utf-8", "replace"))
        self.message = clean(fields[56].split(b"\0")[0].decode("utf-8", "replace")).strip()
        start = _HEADER.size + stack
        self._maps = block[start : start + maps].decode("utf-8", "surrogateescape")
        self.python = clean(block[start + maps : start + maps + python].decode("utf-8", "replace"))

    @property
    def exited(self):
        """bool: it is about a call of exit(), not about a signal."""
        return self.kind == _KIND_EXIT

    def mappings(self):
        """The child's memory: list of (start, end, rights)."""
        found = []
        for line in self._maps.splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ", line)
            if match:
                found.append((int(match[1], 16), int(match[2], 16), match[3]))
        return found

    def stack_overflowed(self):
        """Whether it died because its stack had no room: the fault is just below a stack that begins there."""
        if self.exited or self.code <= 0 or abs(self.address - self.sp) > _FRAME_LIMIT:
            return False
        above = [m for m in self.mappings() if m[1] > self.address and m[2].startswith("rw")]
        if not above:
            return False
        start, end, _ = above[0]
        return self.address < start <= self.address + _STACK_GAP and self.sp < end and self.sp < start + _FRAME_LIMIT

    def native_stack(self):
        """Innermost first: list of NativeFrame. Without the helper program, or its library, the first one alone."""
        frames = self._symbolized()
        if not frames and self.pc:
            frames = [self._plain(self.pc)]
        return frames

    def _plain(self, address):
        for line in self._maps.splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \S+ *(.*)", line)
            if match and int(match[1], 16) <= address < int(match[2], 16):
                return NativeFrame("", match[4], None, None, address - int(match[1], 16) + int(match[3], 16), address)
        return NativeFrame("", "", None, None, 0, address)

    def _symbolized(self):
        if not os.path.exists(_SYMBOLIZER) or not self.machine:
            return []
        fd = os.memfd_create("isolation-record")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(self.block)
            os.lseek(fd, 0, os.SEEK_SET)
            with subprocess.Popen(
                [_SYMBOLIZER], stdin=fd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                # Nothing of the session's is for it, LD_PRELOAD least of all.
                env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
            ) as process:  # fmt: skip
                try:
                    output, _ = process.communicate(timeout=_LIMIT)
                except subprocess.TimeoutExpired as slow:
                    if not slow.output:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.communicate(timeout=_PATIENCE)
                    process.kill()
                    output, _ = process.communicate()  # what it had found by then
        except OSError:
            return []
        finally:
            os.close(fd)
        return _parse_frames("\n".join(clean(line) for line in output.decode("utf-8", "replace").split("\n")))

    def python_stack(self):
        """Of the thread that died, innermost first: list of PythonFrame. Empty where it ran no Python code."""
        return parse_python_stack(self.python)


def _parse_frames(output):
    frames, lines = [], {}
    for row in output.splitlines():
        kind, *fields = row.split("\t")
        if kind == "frame" and len(fields) == 6:
            _, address, offset, library, function, _ = fields
            function = function.partition("@@")[0]
            frames.append(NativeFrame(function, library, None, None, int(offset, 16), int(address, 16)))
        elif kind == "line" and len(fields) == 4:
            number, function, file, line = fields
            lines.setdefault(int(number), []).append((function, file, int(line)))
    found = []
    for number, frame in enumerate(frames):
        there = lines.get(number)
        if not there:
            found.append(frame)
            continue
        for function, file, line in there[:-1]:
            found.append(frame._replace(function=function, file=file, line=line, inlined=True))
        function, file, line = there[-1]
        found.append(frame._replace(function=frame.function or function, file=file, line=line))
    return found


def parse_python_stack(text):
    """The current thread's frames in what faulthandler wrote: list of PythonFrame, innermost first."""
    found, current = [], False
    for line in text.splitlines():
        if line.startswith(("Thread ", "Current thread ")):
            current = line.startswith("Current")
            continue
        match = current and re.match(r'  File "(.*)", line (\d+|\?\?\?) in (.*)', line)
        if match:
            found.append(PythonFrame(match[3], match[1], int(match[2]) if match[2].isdigit() else 0))
    if len(found) > 1 and found[-2].file == _PACKAGE + "child.py":
        found.pop()  # the `-c` that it was started with
    return [f for f in found if not f.file.startswith((_PACKAGE, "<session>", "<frozen importlib"))]


# -- the verdict ---------------------------------------------------------------------------------------------

_BY_SIGNAL = {
    _signal.SIGSEGV: ("segfault", "segmentation fault"),
    _signal.SIGBUS: ("bus-error", "bus error"),
    _signal.SIGFPE: ("arithmetic-error", "arithmetic error"),
    _signal.SIGILL: ("illegal-instruction", "illegal instruction"),
    _signal.SIGABRT: ("abort", "aborted"),
    _signal.SIGSYS: ("bad-system-call", "bad system call"),
    _signal.SIGTRAP: ("trap", "trap"),
    _signal.SIGXFSZ: ("killed", "killed; the operating system does so where a file reaches its limit of size"),
    _signal.SIGKILL: ("killed", "killed"),
    _signal.SIGTERM: ("killed", "terminated"),
}
_FPE_CODES = {1: "integer division by zero", 2: "integer overflow", 3: "floating-point division by zero"}
_FAULTS = (_signal.SIGSEGV, _signal.SIGBUS)
_HEAP = re.compile(
    r"^(free|malloc|realloc|calloc|munmap_chunk|sysmalloc|mremap_chunk|memalign|malloc_consolidate|tcache\w*)\b.*\(\)?"
    r"|corrupt|double free|unaligned (tcache|fastbin)|invalid (pointer|size|next size|chunk size|fastbin)"
)
_CXX = re.compile(
    r"^terminate called (?:after throwing an instance of '(?P<type>.*)'(?:\n +what\(\): +(?P<what>.*))?|(?P<other>.*))", re.M
)
_FATAL = re.compile(r"^Fatal Python error: (.*)", re.M)
_SANITIZER = re.compile(r"^==(\d+)==\s*ERROR: (\w+Sanitizer): (.*?)$.*?(?:^==\1==ABORTING$|\Z)", re.M | re.S)
_UNDEFINED = re.compile(r"^\S+:\d+:\d+: runtime error: (.*)$", re.M)


class Diagnosis:
    """Why and where a child died.

    Parameters
    ----------
    facts : dict
        As for `errors.terminated`.
    record : bytes or None
        `Peer.death_record`.
    output : str
        The last of what the child printed, both streams.
    stderr : str
        The last of what it printed to stderr.
    oom : callable
        Asked where the child was killed: what proves that memory ran out (str), or None.
    """

    def __init__(self, facts, record=None, output="", stderr="", oom=lambda: None):
        self.pid = facts["pid"]
        self.signal = self.exit_code = self.address = self.sanitizer = None
        output, stderr = clean(output), clean(stderr)
        self.output = tuple(line[:500] for line in output.split("\n")[-11:] if line)[-10:]
        self.native_stack, self.python_stack, self.registers, self.thread = (), (), {}, None
        found = Record(record) if record else None
        announced = facts["announced"] in (2, 3) and facts["signal"]
        if announced:
            self.signal = facts["signal"]
        elif facts["known"]:
            if facts["exit_code"] == 1:  # CLD_EXITED
                self.exit_code = facts["exit_status"]
            else:
                self.signal = facts["exit_status"]
        if announced and self.signal in _FAULTS and facts["si_code"] > 0:
            self.address = facts["address"]
        if found is not None and (found.exited if self.signal is None else announced and found.signal == self.signal):
            frames = found.native_stack()
            self.native_stack = tuple(_exit_frames(frames) if found.exited else frames)
            self.python_stack = tuple(found.python_stack())
            self.registers = found.registers
            if found.tid != found.pid:
                self.thread = found.thread or "unnamed"
        elif not (found is not None and self.signal is None and found.kind in (_KIND_EXEC, _KIND_LEFT)):
            found = None
        self.signal = _named(self.signal)
        name = self.signal.name if isinstance(self.signal, _signal.Signals) else f"signal {self.signal}"
        self.verdict, meaning = self._judge(facts, found, record is not None, stderr, oom)
        if self.signal is not None:
            self.reason = f"{name} ({meaning})" if meaning else name
        elif self.exit_code is not None:
            self.reason = f"exit code {self.exit_code}" + (f" ({meaning})" if meaning else "")
        else:
            self.reason = meaning

    def _judge(self, facts, record, recorder, stderr, oom):
        """(verdict, meaning)"""
        if record is not None and self._by_sanitizer(record):
            reports = [match for match in _SANITIZER.finditer(stderr) if int(match[1]) == self.pid]
            if reports:
                self.sanitizer = reports[-1][0]
                return "sanitizer", f"{reports[-1][2]}: {reports[-1][3].partition(' on address')[0]}"
            reports = list(_UNDEFINED.finditer(stderr))
            if reports:
                self.sanitizer = reports[-1][0]
                return "sanitizer", f"undefined behaviour: {reports[-1][1]}"
        if self.signal is None:
            if self.exit_code is None:
                return "unknown", "an unknown cause: its supervisor is gone"
            if not recorder:
                return "exit", ""
            if record is not None and record.kind == _KIND_LEFT:
                return "disconnected", "it had lost its connection to the session"
            if record is not None and record.kind == _KIND_EXEC:
                return "another-program", "exec() of another program had been called"
            return ("exit", "exit() was called") if record is not None else ("_exit", "_exit() was called")
        if self.signal == _signal.SIGKILL:
            if facts.get("cut_off"):
                return "disconnected", "ended by the session: its connection was closed or garbled"
            proof = oom()
            if proof:
                return "out-of-memory", f"out of memory: {proof}"
        verdict, meaning = _BY_SIGNAL.get(self.signal, ("killed", (_signal.strsignal(self.signal) or "").lower()))
        if self.signal == _signal.SIGXCPU and facts["announced"] and facts["si_code"] > 0:
            return "cpu-limit", "its limit of processor time was reached"
        if record is None:
            return verdict, _with_address(meaning, self.address)
        if record.sender and record.sender != self.pid:
            return "killed", f"sent by process {record.sender}"
        if self.signal == _signal.SIGABRT:
            return self._judge_abort(record, stderr)
        if self.signal in _FAULTS and record.stack_overflowed():
            return "stack-overflow", f"stack overflow at address {self.address:#x}"
        if self.signal == _signal.SIGFPE and record.code in _FPE_CODES:
            meaning = f"{meaning}, {_FPE_CODES[record.code]}"
        meaning = _with_address(meaning, self.address)
        if self.signal == _signal.SIGSEGV and record.code == 128:
            # The processor does not say which: no canonical one, or an instruction that is not allowed.
            meaning, self.address = "segmentation fault, at an address that the processor does not tell", None
        if record.code <= 0:
            meaning += ", raised by the process itself"
        if record.exiting:
            meaning += ", while it exited"
        return verdict, meaning

    def _by_sanitizer(self, record):
        """Whether a sanitizer's run-time library ended it. That its words are in the output is no proof: it may have
        gone on after them, and anybody can print them."""
        return bool(record.under_sanitizer) or (
            self.signal == _signal.SIGABRT and any(_SANITIZERS.search(frame.library) for frame in self.native_stack)
        )

    def _judge_abort(self, record, stderr):
        message = record.message.removeprefix("*** ").replace(" ***", "")
        names = {frame.function for frame in self.native_stack}
        if "stack smashing detected" in message:
            return "stack-smashing", message
        if "buffer overflow detected" in message:
            return "buffer-overflow", message
        if "Assertion" in message:
            return "assertion", f"assertion failed: {message}"
        if message and _HEAP.search(message):
            return "heap-corruption", f"heap corruption: {message}"
        first = next((frame for frame in self.native_stack if not _LIBC.search(frame.library)), None)
        if first is not None and "/libstdc++" in first.library or any("terminate" in name and ("std::" in name or "__cxx" in name) for name in names):
            matches = list(_CXX.finditer(stderr))
            if not matches:
                return "cxx-terminate", "C++ terminate"
            if matches[-1]["type"] is None:
                return "cxx-terminate", f"C++ terminate {matches[-1]['other']}"
            what = f": {matches[-1]['what']}" if matches[-1]["what"] else ""
            return "cxx-terminate", f"uncaught C++ exception {matches[-1]['type']}{what}"
        fatal = list(_FATAL.finditer(stderr))
        if fatal and names & {"fatal_error", "fatal_error_exit", "_Py_FatalErrorFunc", "Py_FatalError", "_Py_FatalErrorFormat"}:
            if not self.python_stack:  # the interpreter has switched faulthandler off, and printed it itself
                self.python_stack = tuple(parse_python_stack(stderr[fatal[-1].end() :]))
            return "python-fatal-error", f"fatal Python error: {fatal[-1][1]}"
        return "abort", f"aborted: {message}" if message else "aborted"


def _named(signum):
    try:
        return None if signum is None else _signal.Signals(signum)
    except ValueError:
        return signum


def _with_address(meaning, address):
    if address is None:
        return meaning
    # The first page is never mapped: an index or a field of a NULL pointer.
    null = ", NULL dereference" if address < _PAGE else ""
    return f"{meaning}{null} at {'' if null else 'address '}{address:#x}"


# -- the text ------------------------------------------------------------------------------------------------


def _own(frame):
    return os.path.basename(frame.library).startswith("_core.") and frame.library.startswith(_PACKAGE)


_SANITIZERS = re.compile(r"/lib(a|l|t|ub)san[-.]\S*so")
_MACHINERY = re.compile(r"/(libc|libpthread|libstdc\+\+|libgcc_s|ld-linux\S*|lib(?:a|l|t|ub)san)[-.]\S*so")
_LIBC = re.compile(r"/(libc|libpthread|ld-linux\S*)[-.]\S*so")
_INTERPRETER = re.compile(r"/(libpython\S*\.so\S*|python\d*(\.\d+)?)$")
_THREAD_START = ("", "start_thread", "clone", "__clone", "__clone3", "clone3")
_DISPATCH = re.compile(r"_?Py(Eval|Object|Function|Vectorcall|Type|CFunction|Method|Cell|Run|Main)|^(c?function|method|type|slot|object|wrapper|wrap|do_call|builtin_exec|vectorcall|partial)_")


def shown(native_stack):
    """The frames that a user wants to see: those above what the session's request came in by, without the
    interpreter's own way there."""
    end = next((n for n, frame in enumerate(native_stack) if _own(frame)), len(native_stack))
    frames = list(native_stack[:end] or native_stack[:1])
    if end < len(native_stack):
        while len(frames) > 1 and _INTERPRETER.search(frames[-1].library) and _DISPATCH.search(frames[-1].function):
            frames.pop()
    while len(frames) > 1 and _MACHINERY.search(frames[-1].library) and frames[-1].function in _THREAD_START:
        frames.pop()
    return frames


def culprit(frames):
    """Number of the frame that matters: the first one outside of the C and C++ run-time libraries."""
    return next((n for n, frame in enumerate(frames) if frame.library and not _MACHINERY.search(frame.library)), 0)


def _exit_frames(frames):
    """Those from the call of exit() on: what runs in it is ours."""
    at = next((n for n, frame in enumerate(frames) if frame.function == "exit"), None)
    if at is None:
        at = next((n for n, frame in enumerate(frames) if n and not _own(frame)), 0)
    return frames[at:]


def _folded(frames):
    """Frames with how often each follows itself, as in a recursion: list of (frame, count)."""
    found = []
    for frame in frames:
        last = found[-1][0] if found else None
        if last is not None and frame.function and (last.function, last[1]) == (frame.function, frame[1]):
            found[-1][1] += 1
        else:
            found.append([frame, 1])
    return found


def _chain(frames, limit):
    rows = [f"{frame} ({count} times)" if count > 1 else str(frame) for frame, count in _folded(frames)]
    return " < ".join(rows[:limit]) + (f" < ... ({len(rows) - limit} more)" if len(rows) > limit else "")


def text(error):
    """All of it on a few lines, for ``str(error)``: list of str."""
    lines = []
    if error.arguments:
        lines.append("arguments: " + ", ".join(error.arguments))
    if error.native_stack:
        frames = shown(error.native_stack)
        # Of what the run-time library did about it, the entry is enough: abort, free, exit.
        lines.append("native stack: " + _chain(frames[max(culprit(frames) - 1, 0) :], 4))
    if error.python_stack:
        lines.append("Python stack: " + _chain(error.python_stack, 4))
    if error.thread:
        lines.append(f"thread: {error.thread} (not the main one)")
    if error.output:
        lines.append("last output: " + " | ".join(error.output[-3:]))
    return lines


def _source(file, line):
    """The source line, where there is such a file or cell: what the child says of it is not believed."""
    try:
        known = file in linecache.cache or (file and os.path.isfile(file) and os.path.getsize(file) < _BIG)
        if not (line and known):
            return ""
    except (OSError, ValueError):
        return ""
    return clean(linecache.getline(file, line).strip()[:100])


def _native_rows(frames, limit):
    """Frames as a report shows them; several of the interpreter's own in a row are one line."""
    mark, lines, shown_rows = frames[culprit(frames)], [], 0
    rows = _folded(frames)
    while rows:
        frame, count = rows.pop(0)
        if shown_rows == limit:
            return [*lines, f"    ... {len(rows) + 1} more"]
        shown_rows += 1
        run = [frame]
        while frame is not mark and _INTERPRETER.search(frame.library) and rows and rows[0][0] is not mark and (
            _INTERPRETER.search(rows[0][0].library)
        ):  # fmt: skip
            run.append(rows.pop(0)[0])
        if len(run) > 1:
            lines.append(f"    {run[0].function} ... {run[-1].function}  [{os.path.basename(frame.library)}, {len(run)} frames]")
            continue
        where = f"{frame.file}:{frame.line}  " if frame.file else ""
        place = _place(frame) + (f", {count} times" if count > 1 else "")
        lines.append(f"{'--> ' if frame is mark else '    '}{frame.function or hex(frame.address)}  {where}[{place}]")
        source = _source(frame.file, frame.line)
        if source:
            lines.append(f"        {source}")
    return lines


def _place(frame):
    if frame.inlined:
        return "inlined"
    return f"{os.path.basename(frame.library)}+{frame.offset:#x}" if frame.library else "no code is there"


def report(error):
    """All of it at full length, as a cell shows it: str of several lines, without colours."""
    lines = [error.summary]
    if error.arguments:
        lines += ["", "Arguments:", *(f"    {a}" for a in error.arguments)]
    frames = shown(error.native_stack)
    if frames:
        thread = f", thread {error.thread!r}" if error.thread else ""
        lines += ["", f"Native stack (innermost first{thread}):"]
        lines += _native_rows(frames, 15)
    if error.python_stack:
        lines += ["", "Python stack of the process (innermost first):"]
        for frame in error.python_stack[:15]:
            lines.append(f'    File "{frame.file}", line {frame.line}, in {frame.function}')
            source = _source(frame.file, frame.line)
            if source:
                lines.append(f"        {source}")
        if len(error.python_stack) > 15:
            lines.append(f"    ... {len(error.python_stack) - 15} more")
    if error.registers and error.signal in (*_FAULTS, _signal.SIGFPE, _signal.SIGILL):
        values = [f"{name}={value:#x}" for name, value in error.registers.items()]
        lines += ["", "Registers:", *("    " + "  ".join(values[i : i + 6]) for i in range(0, len(values), 6))]
    if error.sanitizer:
        lines += ["", "Sanitizer:", *("    " + line for line in error.sanitizer.splitlines()[:40])]
    elif error.output:
        lines += ["", "Last output of the process:", *(f"    {line}" for line in error.output)]
    if error.bundle is not None:
        lines += ["", f"Crash bundle: {error.bundle}"]
        if error.unreplayable is None:
            lines.append("    python -m ipython_isolation replay FILE [--gdb|--valgrind] makes this call again; so does %isolate --replay FILE")
        else:
            lines.append(f"    It cannot be replayed: {error.unreplayable}.")
    return "\n".join(lines)


@functools.cache
def unavailable():
    """Why native stacks have no names here: str, or None."""
    if not os.path.exists(_SYMBOLIZER):
        return "ipython_isolation was built without libdw: apt-get install libdw-dev, and build it again"
    return None
