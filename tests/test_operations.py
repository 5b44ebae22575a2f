"""Every row of the operation table is exercised, and the trace shows it readably."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipython_isolation import _core

ROOT = Path(__file__).resolve().parent
LINE = re.compile(r"^isolation (kernel|child ) e(\d+) s(\d+) (->|<-) #(\d+) (\w+)( .*)?  +(\d+) bytes$")

# What makes each operation happen. A row of ops.def without a scenario here fails the suite.
SCENARIOS = {
    "hello": "pass",
    "release": "a = zoo.Animal('x'); before = exports(); del a; idle(before)",
    "need_strand": "in_thread()",
    "close_strand": "pass",
    "host": "context.find_module('json')",
    "getattr": "a.name",
    "setattr": "a.name = 'max'",
    "delattr": "a.extra = 1; del a.extra",
    "call": "zoo.Animal('rex')",
    "callattr": "a.add(1, 2)",
    "method": "a.introduce()",
    "get": "a.mood",
    "set": "zoo.Animal.mood.__set__(a, 'wild')",
    "delete": "zoo.Animal.mood.__delete__(a)",
    "stubattr": "zoo.Animal.introduce.__doc__",
    "new": "class Cat(zoo.Animal): pass\nCat('tom')",
    "setclass": "zoo.Animal.legs = 4",
    "iterate": "list(zoo.get_held_list())",
    "batch": "with context.batch(): a.add(1, 2); zoo.Animal('tom')",
    "buffer": "bytes(memoryview(arrays.array('b', [1, 2])))",
}

PROGRAM = """
import sys, time
sys.path.insert(0, {victims!r})
import ipython_isolation

context = ipython_isolation.IsolationContext(name="traced")
zoo = context.load_module("zoo")
arrays = context.load_module("array")
a = zoo.Animal("rex")

def exports():
    return context._peer.host_call("counts")["exports"]

def idle(before):
    # The service thread sends what was released, and that of the child takes it.
    end = time.monotonic() + 10
    while context._peer.counts["releases"] and time.monotonic() < end:
        time.sleep(0.01)
    while exports() >= before and time.monotonic() < end:
        time.sleep(0.01)

def in_thread():
    import threading
    done = threading.Event()
    start = context.call(getattr, context.load_module("_thread"), "start_new_thread")
    start(done.set, ())
    assert done.wait(20)

print("@@", file=sys.stderr, flush=True)
{scenario}
context.close()
"""


def run(name, debug="1"):
    program = PROGRAM.format(victims=str(ROOT / "victims"), scenario=SCENARIOS[name])
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ, ISOLATION_DEBUG=debug), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_there_is_a_scenario_for_each_row():
    assert set(_core.operations) == set(SCENARIOS)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_operation(name):
    text = run(name)
    lines = [line for line in text.splitlines() if line.startswith("isolation ")]
    rows = [LINE.match(line) for line in lines]
    unreadable = [line for line, row in zip(lines, rows) if row is None]
    assert not unreadable
    assert {row[6] for row in rows} <= set(_core.operations)
    after = [LINE.match(line) for line in text.partition("@@")[2].splitlines()]
    seen = rows if name == "hello" else [row for row in after if row]
    ours = [row for row in seen if row[6] == name]
    assert ours, text.partition("@@")[2]
    # Both sides saw the same frame.
    assert {row[1] for row in ours} == {"kernel", "child "}


def test_the_trace_says_what_is_asked():
    text = run("setattr")
    asked = [line for line in text.splitlines() if " setattr " in line and "kernel" in line and "->" in line]
    assert len(asked) == 1 and ".name" in asked[0] and "'max'" in asked[0]


def test_the_trace_of_a_batch_names_its_calls():
    text = run("batch")
    asked = [line for line in text.splitlines() if " batch " in line and "kernel" in line and "->" in line]
    assert len(asked) == 1 and "batch 2 calls: " in asked[0] and ".add(1, 2); " in asked[0] and "('tom')" in asked[0]


def test_no_trace_unless_asked_for():
    assert "isolation kernel" not in run("getattr", debug="")
