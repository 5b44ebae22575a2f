"""Where the time of one operation goes: samples of both processes, by function, as nanoseconds of a round trip.

    python tests/bench/hot_path.py [--seconds N] [--docs]

Needs perf (linux-perf). Each process is sampled while it does nothing but the operation; what a step takes is its
share of the samples times the median of the operation, measured without perf. The steps of one process add up to
the round trip, as each process spins while the other works. --docs writes the tables to docs/profile.md.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import contenders
import latency
import report

PAGE = report.DOCS / "profile.md"
BEGIN, END = "<!-- make profile ARGS=--docs: begin -->\n", "<!-- end -->\n"
RATE = 4999  # samples a second; no divisor of anything that happens regularly

# The first that fits, by function or library (a regular expression of "function library").
STEPS = [
    ("wait: looking at the ring", r"^(lane_spin|lane_ready|spin_until|channel_spin|spin_once|wait_once|lane_stacked)\b"),
    ("clock", r"clock_gettime|\[vdso\]"),
    ("system: output, sleeping, interrupts of the machine", r"\[(kernel|guest)|epoll_wait|\bpoll\b|__send\b"),
    ("ring: write, wake", r"^(publish|lane_send|wake|channel_send\w*|send_by_lane|find_room|has_room|lane_joined|is_forked|reclaim|channel_has_lane|\w+_prepare)\b"),
    ("ring: read, copy out", r"^(lane_recv|channel_recv|recv_by_lane|lane_place|lane_forked|await_zmq|frame_free|__sched_getcpu|sched_getcpu)\b"),
    ("frame: header, flags", r"^(frame_\w+|open_frame|accept_frame|read_header|write_header|message_\w+|writer_\w+|patch_\w+|peer_trace|blobs_collect|strand_\w+)\b"),
    ("request: begin, end, wait", r"^(request_\w+|wait_reply|serve\w*|send_reply|watched_changed|path_changed|peer_\w+|iteration_\w+|check_signals|values_\w+|pairs_\w+|process_\w+|notice_\w+|slice|begin_deadline|proxies_let_go|late_releases_apply|drain_output|execution_\w+)\b"),
    ("objects to bytes and back", r"^(encode\w*|decode\w*|read_\w+|write_\w+|keep|call_free|argument_text|export_\w+|is_\w+)\b.*_core"),
    ("proxy, stub, operation", r"^(stub_\w+|ask|answer_here|proxy_\w+|module_\w+|mirror_of|table_\w+|find|op_\w+|call_\w+|copy_\w+|core_get|bound_\w+)\b.*_core"),
    ("the rest of the core", r"_core\."),
    ("memory", r"^(_int_\w+|malloc|__libc_\w+|calloc|free|cfree|__mem\w+|mem\w+|_PyObject_(Malloc|Free)|PyObject_(Malloc|Free)|_PyMem_\w+)\b|GLIBC_malloc"),
    ("Python: the calling and the called code", r""),
]


def samples(pid, seconds):
    """What a process does: Counter of "function library"."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "perf.data"
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-p", str(pid), "-o", str(data)]
        subprocess.run([*record, "--", "sleep", str(seconds)], check=True, stdout=subprocess.DEVNULL)
        text = subprocess.run(
            ["perf", "script", "-F", "ip,sym,dso", "-i", str(data)], check=True, capture_output=True, text=True
        ).stdout
    found = Counter()
    for line in text.splitlines():
        match = re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)\s*$", line)
        if match:
            found[f"{match[1]} {Path(match[2]).name if match[2].startswith('/') else match[2]}"] += 1
    return found


def step(name):
    return next(title for title, pattern in STEPS if re.search(pattern, name))


def looping(operation, pid, seconds):
    """The samples of process `pid` while this process repeats the operation."""
    import threading

    result = []
    thread = threading.Thread(target=lambda: result.append(samples(pid, seconds)))
    thread.start()
    while thread.is_alive():
        for _ in range(20_000):
            operation()
    thread.join()
    return result[0]


def measure(seconds):
    """Markdown: one table of the steps, and one of the functions that take most."""
    import os

    contender, line = contenders.Isolated(), contenders.Line()
    child = contender.context.remote_pid
    columns, functions, away = [], [], []
    try:
        for row, title in latency.ROWS.items():
            operation = getattr(contender, row)
            before = line.there_and_back()
            latency.timed(operation, 2000)
            took = statistics.median(latency.timed(operation, 20_000))
            for side, pid in (("kernel", os.getpid()), ("child", child)):
                found = looping(operation, pid, seconds)
                total = sum(found.values())
                steps = Counter()
                for name, n in found.items():
                    steps[step(name)] += n
                columns.append((f"{title}, {side}", {s: n / total * took for s, n in steps.items()}, took))
                if row == "method":
                    functions += [(side, name, n / total * took) for name, n in found.most_common(15)]
            away += [statistics.mean([before, line.there_and_back()])] * 2
            time.sleep(0.1)
    finally:
        contender.close()
        line.close()
    lines = ["| ns | " + " | ".join(title for title, _, _ in columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for title, _ in STEPS:
        lines.append(f"| {title} | " + " | ".join(f"{steps.get(title, 0):.0f}" for _, steps, _ in columns) + " |")
    lines.append("| a line there and back, meanwhile |" + "".join(f" {ns:.0f} |" for ns in away))
    lines.append("| **one operation, median** | " + " | ".join(f"{took:.0f}" for _, _, took in columns) + " |")
    lines += ["", "The functions that take most, of `obj.method()`:", "", "| process | function | ns |", "| --- | --- | ---: |"]
    lines += [f"| {side} | `{name.split()[0]}` ({name.split()[-1]}) | {ns:.0f} |" for side, name, ns in functions]
    return "\n".join(lines) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of sampling, for each row and process")
    parser.add_argument("--docs", action="store_true", help="write docs/profile.md")
    options = parser.parse_args(arguments)
    if shutil.which("perf") is None:
        sys.exit("perf is missing: apt-get install linux-perf")
    sys.path.insert(0, str(contenders.HERE))
    text = measure(options.seconds) + "\n" + "\n".join(f"- {line}" for line in report.machine()) + "\n"
    print(text)
    if options.docs:
        page = PAGE.read_text()
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(page[:start] + text + page[end:])


if __name__ == "__main__":
    main()
