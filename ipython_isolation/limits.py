"""What a context's child may use, and the tools it may run under: options, and what is said when a limit was hit."""

import math
import os
import re
import shlex
import shutil
import signal

from . import arguments, diagnosis, errors

#: Bytes. The interpreter, the core and their threads take some 60 MB of what RLIMIT_DATA counts.
LEAST_MEMORY = 128 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
#: What is left below the limit when it is certain to have been in the way: less than one arena or a thread's stack.
_NEAR = 1 << 20
#: The share of the CPU limit that a process has used, at least, which was killed for it. The system checks the limit
#: by counting ticks, and tells the time that was measured: with a busy machine a tenth less was seen.
_CPU_SHARE = {signal.SIGXCPU: 0.75, signal.SIGKILL: 0.95}


def seconds(value, name="timeout"):
    """A time limit.

    Parameters
    ----------
    value : float, int, str or None
        Seconds.
    name : str
        Of the option, for messages.

    Returns
    -------
    float or None

    Raises
    ------
    ValueError, TypeError
    """
    if value is None or value == "none":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds or None, not {value!r}")
    return number


def cpu_seconds(value):
    """As `seconds`, in whole seconds as the system counts them: int or None."""
    number = seconds(value, "cpu")
    return None if number is None else min(math.ceil(number), 2**31)


def size(value):
    """A limit of memory.

    Parameters
    ----------
    value : int, str or None
        Bytes, or a number with a unit of 1024: ``"512M"``, ``"2G"``, ``"1.5 GiB"``.

    Returns
    -------
    int or None

    Raises
    ------
    ValueError, TypeError
        Also for one with which no interpreter starts.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if match is None:
            raise ValueError(f'memory must be a number of bytes, or such as "512M" or "2G", not {value!r}')
        value = int(float(match[1]) * _UNITS[match[2].upper()])
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f'memory must be a number of bytes, a text such as "2G" or None, not {value!r}')
    if not LEAST_MEMORY <= value < 2**63:
        raise ValueError(f"memory must be at least {text_of(LEAST_MEMORY)}, which the interpreter needs, not {value}")
    return value


def text_of(bytes_):
    """A size as a user would write it: str, such as ``"2 GB"``."""
    for unit in ("T", "G", "M", "K"):
        if bytes_ >= _UNITS[unit]:
            return f"{bytes_ / _UNITS[unit]:.4g} {unit}B"
    return f"{bytes_} bytes"


def niceness(value):
    """What is added to the nice value: int or None, -40 to 39.

    Raises
    ------
    ValueError, TypeError
    """
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ValueError(f"nice must be a whole number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"nice must be a whole number or None, not {value!r}")
    if not -40 <= value <= 39:
        raise ValueError(f"nice must lie between -40 and 39, not {value}")
    return value


def environment(value):
    """Variables for the child alone.

    Parameters
    ----------
    value : mapping of str to (str or None), sequence of str, or None
        ``{"LD_PRELOAD": "libasan.so.8"}``, or ``["LD_PRELOAD=libasan.so.8"]``. None takes a variable away.

    Returns
    -------
    dict of str to (str or None)

    Raises
    ------
    ValueError, TypeError
    """
    if value is None:
        return {}
    if isinstance(value, str):
        value = [value]
    if not hasattr(value, "items"):
        pairs = [item.partition("=") for item in value]
        if not all(name and equals for name, equals, _ in pairs):
            raise ValueError(f"env needs NAME=VALUE, not {list(value)!r}")
        value = {name: text for name, _, text in pairs}
    for name, text in value.items():
        if not isinstance(name, str) or not (text is None or isinstance(text, str)):
            raise TypeError(f"env needs names and texts that are str, not {name!r}: {text!r}")
        if not name or "=" in name or "\0" in name or "\0" in (text or ""):
            raise ValueError(f"env: no environment has a variable {name!r} of that value")
    return dict(value)


def command(value):
    """The program that the child is started with.

    Parameters
    ----------
    value : str, sequence of str, or None
        ``"valgrind -q"`` or ``["valgrind", "-q"]``.

    Returns
    -------
    tuple of str
        Empty: none. The first is an absolute path.

    Raises
    ------
    ValueError, TypeError
        Also when there is no such program.
    """
    if value is None:
        return ()
    words = shlex.split(value) if isinstance(value, str) else list(value)
    if not all(isinstance(word, (str, os.PathLike)) for word in words):
        raise TypeError(f"wrapper must be a command, as a text or a list of words, not {value!r}")
    words = [os.fspath(word) for word in words]
    if not words:
        return ()
    program = shutil.which(words[0])
    if program is None:
        raise ValueError(f"wrapper: no program {words[0]!r} is found; install it, or give its path")
    return (os.path.abspath(program), *words[1:])


#: Options that hold for the next process, and those that hold at once: how a value is read, by name.
AT_START = {"memory": size, "cpu": cpu_seconds, "nice": niceness, "env": environment, "wrapper": command}
AT_ONCE = {"timeout": seconds, "hold": bool, "spare": bool, "autoreload": bool, "mute": bool}
READ = {**AT_START, **AT_ONCE}


def explain(error, facts, context):
    """Says which limit of a context was behind a death, where that is proven.

    Parameters
    ----------
    error : ProcessTerminationError
        Gets the attribute ``limit``, a text, and another class where a call took too long.
    facts : dict
        What peer.c knows; see `errors.terminated`.
    context : IsolationContext
    """
    why = None
    # Those that it was started with: what `configure` has changed since holds for the next process.
    memory, cpu = context._launcher.memory, context._launcher.cpu
    if facts["timeout"]:
        limit = f"timeout={facts['timeout']:g} s"
        error.limit = "timeout"
        if facts["timed_out"]:
            error.__class__ = errors.ProcessTimeoutError
            error.timeout, error.survived = facts["timeout"], False
            why = f"the call took longer than {limit} and did not stop when it was interrupted"
        else:
            why = f"another call took longer than {limit} and did not stop when it was interrupted"
    elif cpu and _used_up(error, facts, context, cpu):
        error.limit = "cpu"
        why = f"the CPU limit of {cpu} s (cpu=) is used up"
    elif memory and (facts["no_memory"] or facts["data_used"] > memory - _NEAR):
        error.limit = "memory"
        limit = f"memory limit of {text_of(memory)} (memory=)"
        why = f"an allocation failed during the call, under the {limit}" if facts["no_memory"] else f"the {limit} was hit"
    if why is not None:
        error.verdict = {"timeout": "timeout", "cpu": "cpu-limit", "memory": "out-of-memory"}[error.limit]
        error.reason = why
        errors.set_summary(error, f"{why}; {error.summary}")


def _used_up(error, facts, context, limit):
    # The first signal comes at the limit; one that ignores it gets the other, a quarter later. Anybody may send
    # either, so what the process has used decides. It is known once it is reaped.
    share = _CPU_SHARE.get(error.signal)
    if share is None:
        return False
    used = facts["cpu"] if facts["cpu"] >= 0 else context._peer.cpu_used()
    return used >= share * limit


def interrupted(facts, timeout, context):
    """What is raised for a call that took too long, and has stopped since it was interrupted.

    Parameters
    ----------
    facts : dict
        As for `errors.call_under_way`.
    timeout : float
        The limit, in seconds.
    context : IsolationContext

    Returns
    -------
    ProcessTimeoutError
    """
    error = errors.ProcessTimeoutError()
    error.operation, args, kwargs = errors.call_under_way(facts)
    error.arguments = arguments.summaries(args, kwargs)
    error.pid, error.context = context._peer.pid, context.name
    error.timeout, error.survived, error.limit, error.verdict = timeout, True, "timeout", "timeout"
    error.reason = f"it took longer than timeout={timeout:g} s and was interrupted"
    error.summary = (
        f"{error.operation} took longer than timeout={timeout:g} s and was interrupted; its process"
        f" (pid {error.pid}, context {error.context!r}) lives on"
    )
    error.args = ("\n  ".join((error.summary, *diagnosis.text(error))),)
    return error


def attach(pid, held=False):
    """How to attach a debugger to a child.

    Parameters
    ----------
    pid : int
        The child's process id.
    held : bool
        Whether it stands still at its fatal signal.

    Returns
    -------
    str
        Lines for the user; the first is a command line.
    """
    lines = [f"gdb -p {pid}"]
    if held:
        lines.append("It is stopped at its fatal signal: `bt` shows the place below <signal handler called>.")
    else:
        lines.append("It stands still while gdb looks; `continue` lets the session go on. A debugger sees signals first:")
        lines.append("(gdb) handle SIGINT nostop noprint pass")
    if shutil.which("gdb") is None:
        lines.append("gdb is not installed here (Debian: apt install gdb).")
    scope = ptrace_scope()
    if scope and os.geteuid() != 0 and not (held and scope == 1):
        if scope >= 3:
            lines.append("This system forbids debuggers to attach (kernel.yama.ptrace_scope is 3) until it is rebooted.")
        else:
            lines.append(
                f"This system lets only root attach (kernel.yama.ptrace_scope is {scope}): sudo gdb -p {pid},"
                " or sudo sysctl kernel.yama.ptrace_scope=0"
            )
    return "\n".join(lines)


def ptrace_scope():
    """What the system's setting kernel.yama.ptrace_scope is: int, 0 where there is none."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
