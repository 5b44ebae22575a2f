"""Runs the corpus and writes docs/deaths.md: ``make deaths``."""

import os
import platform
import re
import signal
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "deaths"), str(ROOT / "tests" / "victims")]

import running  # noqa: E402
from corpus import DEATHS  # noqa: E402

HEAD = """# Deaths

Each row is a process that really died in that way, and what the session was told. Written by `make deaths` from
tests/deaths/corpus.py, which the tests go through as well; {where}.

*verdict* is `ProcessTerminationError.verdict`, for programs; the text is the reason in the first line of the message.
*where* is the native frame that is marked in a cell, or else the innermost Python frame. *ms* is what the whole deadly
call took until the exception was there, names of frames included: the median of three. Where such a call goes on for a
while before, it is the time since the operating system saw the process ended; 0: the exception was there earlier. In every row the session's
variables were as before, and the next call worked.

Nothing is guessed. A process that was killed is `out-of-memory` only where the counter of its control group, or the
kernel's log, says so, and else `killed`. A process that lives and does not answer is not declared dead: after an
interrupt the session says what it sees (the last rows).

"""


def place(error):
    from ipython_isolation import diagnosis

    frames = diagnosis.shown(getattr(error, "native_stack", ()))
    if frames:
        frame = frames[diagnosis.culprit(frames)]
        if not diagnosis._MACHINERY.search(frame.library) or not error.python_stack:
            return str(frame)
    if getattr(error, "python_stack", ()):
        return str(error.python_stack[0])
    return ""


def cell(text):
    text = re.sub(r"\.cpython-\S+?\.so", ".so", re.sub(r"0x[0-9a-f]{9,}", "0x...", text))
    text = re.sub(r"\b(pid|process|isolation-test-)( ?)\d+", r"\1\2N", text)
    text = re.sub(r"-CONT \d+", "-CONT N", text)
    text = re.sub(r"/\S*/(\w+\.\w+:\d+)", r"\1", text)
    return text.replace("|", "\\|")


def main():
    rows, times = [], []
    for row in DEATHS.values():
        missing = row.needs and row.needs()
        if missing:
            rows.append((row.what, "", f"(not run: {missing})", "", ""))
            continue
        saved = dict(os.environ)
        os.environ.update(row.environ())
        try:
            outcomes = [running.run(row) for _ in range(3)]
        finally:
            os.environ.clear()
            os.environ.update(saved)
        error = outcomes[0].error
        if error.verdict != row.verdict or not all(o.intact for o in outcomes):
            sys.exit(f"{row.name}: {error}")
        took = statistics.median(o.seconds for o in outcomes) * 1000 if outcomes[0].died else None
        if took is not None:
            times.append(took)
        reason = error.reason if outcomes[0].died else str(error)
        rows.append((row.what, f"`{row.verdict}`", cell(reason), cell(place(error)), "" if took is None else f"{took:.0f}"))
        print(f"{row.name:30} {row.verdict:20} {'' if took is None else f'{took:7.1f} ms'}", flush=True)
    big = [running.run(DEATHS[name], megabytes=2048).seconds * 1000 for name in ("null_pointer", "double_free", "c__exit", "sent_sigkill")]
    where = f"CPython {platform.python_version()}, {os.cpu_count()} processors, Linux {platform.release().split('-')[0]}"
    table = [HEAD.format(where=where), "| death | verdict | reason | where | ms |\n| --- | --- | --- | --- | --: |\n"]
    table += ["| " + " | ".join(row) + " |\n" for row in rows]
    table.append(
        f"\n{len(rows)} deaths. Median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms. With 2 GB resident: a"
        f" segmentation fault {big[0]:.0f} ms, a corrupt heap {big[1]:.0f} ms, `_exit()` {big[2]:.0f} ms, SIGKILL {big[3]:.0f} ms.\n"
    )
    (ROOT / "docs" / "deaths.md").write_text("".join(table))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
