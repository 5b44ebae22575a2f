"""How long it takes until another process is of use, and what memory it has.

    python tests/bench/start.py [--repeats N]

All in turn, so that noise hits all alike. The package's bytecode is made before, as an installation does.
"""

import argparse
import compileall
import os
import statistics
import subprocess
import sys
import time

import contenders
import ipython_isolation
import report
from ipython_isolation import IsolationContext

BARE = "`python -c pass`"
CORE = '`python -c "import ipython_isolation._core"`'
READY = "a child is ready"
FIRST = "the same, and has loaded a module and answered a call"
RESTART = "a dead child's successor is ready"
SPARE = "the same, with a spare"
TARGET_START = 1.3
TARGET_MEMORY = 1.3
KINDS = [contenders.RPyC, contenders.Manager, contenders.Pyro]
#: Seconds that a spare interpreter gets to be ready itself.
SPARE_SECONDS = 0.3
_SLEEPS = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"


def since(start):
    return (time.perf_counter() - start) * 1000


def run(code):
    """Milliseconds of an interpreter that runs it and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return since(start)


def child(took):
    """A child, a module and a call; then its death, and another child."""
    with_child = IsolationContext(restart="auto", rollback="off")
    try:
        start = time.perf_counter()
        with_child.start()
        took(READY, since(start))
        module = with_child.load_module("bench_target")
        pid = module.getpid()
        took(FIRST, since(start))
        if pid == os.getpid() or pid != with_child.remote_pid:
            sys.exit("the child has not answered")
        os.kill(pid, 9)
        while with_child.info()["state"] != "dead":
            os.sched_yield()
        start = time.perf_counter()
        with_child.start() if with_child.info()["state"] == "new" else with_child.restart()
        took(RESTART, since(start))
        if with_child.remote_pid == pid:
            sys.exit("it has not died")
    finally:
        with_child.close()


def spare(took, repeats):
    with IsolationContext(restart="auto", rollback="off", spare=True) as context:
        for _ in range(repeats):
            time.sleep(SPARE_SECONDS)
            pid = context.remote_pid
            start = time.perf_counter()
            context.restart()
            took(SPARE, since(start))
            if context.remote_pid == pid:
                sys.exit("it has not been restarted")


def start_times(repeats):
    """{what: list of float, milliseconds}."""
    found = {}

    def took(what, ms):
        found.setdefault(what, []).append(ms)

    kinds = contenders.installed(KINDS)
    for i in range(-1, repeats):
        add = took if i >= 0 else lambda what, ms: None
        add(BARE, run("pass"))
        add(CORE, run("import ipython_isolation._core"))
        child(add)
        for kind in kinds if i < 5 else ():
            start = time.perf_counter()
            contender = kind()
            contender.noop()
            add(f"{kind.label}: started, and has answered a call", since(start))
            contender.close()
    spare(took, max(5, repeats // 3))
    return found


def sleeping(code):
    """The memory of an interpreter that has run it and waits: dict, as `report.memory`."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; {_SLEEPS}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        process.stdout.read(1)
        found = report.memory(process.pid)
        process.stdin.close()
    return found


def memories():
    """{what: dict, as `report.memory`}."""
    found = {"a bare interpreter": sleeping("pass"), "with `ipython_isolation._core`": sleeping("import ipython_isolation._core")}
    with IsolationContext(rollback="off") as context:
        found["a child before imports"] = report.memory(context.remote_pid)
        context.load_module("bench_target").noop()
        found["a child with a small module"] = report.memory(context.remote_pid)
    for kind in contenders.installed(KINDS):
        contender = kind()
        found[f"{kind.label}'s process"] = report.memory(contender.pid())
        contender.close()
    return found


def compiled():
    """Bytecode, which the interpreter may be told not to write by itself."""
    compileall.compile_dir(os.path.dirname(ipython_isolation.__file__), quiet=2)


def section(repeats=20, docs=False):
    compiled()
    took, have = start_times(repeats), memories()
    base = statistics.median(took[CORE])
    rows = [(what, [report.cell(v), report.figure(statistics.median(v) / base), str(len(v))]) for what, v in took.items()]
    text = report.table("from nothing", ["median (p99), ms", 'times "import _core"', "starts"], rows)
    bare = have["a bare interpreter"]
    rows = [
        (what, [report.figure(m[k]) for k in ("Rss", "Pss", "Uss")] + [report.figure(m["Rss"] / bare["Rss"])])
        for what, m in have.items()
    ]
    text += "\n\n" + report.table("MB", ["RSS", "PSS", "USS", "RSS, times the bare one"], rows)
    text += (
        "\n\nRSS: resident memory. PSS: the same, but what several processes share counts in parts. USS: its own alone. A spare"
        f" has had {SPARE_SECONDS} s to be ready itself."
    )
    if docs:
        short = {BARE: "python -c pass", CORE: "import _core", READY: "child ready", FIRST: "child, module, call"}
        groups = {name: {"start": took[what]} for what, name in short.items()}
        groups |= {"restart": {"start": took[RESTART]}, "with a spare": {"start": took[SPARE]}}
        groups |= {what.partition(":")[0]: {"start": values} for what, values in took.items() if ": started" in what}
        report.bars(groups, "From nothing to ready", "milliseconds", report.DOCS / "start.png")
        text += "\n\n![start](start.png)"
    found = [
        report.Target("start of a child", statistics.median(took[READY]) / base, TARGET_START, " import _core"),
        report.Target(
            "memory of a child before imports (RSS)",
            have["a child before imports"]["Rss"] / bare["Rss"],
            TARGET_MEMORY,
            " bare interpreter",
        ),
    ]
    return report.Section("Start and memory of a child", text, found)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    found = section(**vars(parser.parse_args(arguments)))
    print(found.text, report.target_table(found.targets), sep="\n\n")


if __name__ == "__main__":
    main()
