"""The corpus: each death is told from the others, promptly, and the session goes on."""

import dataclasses
import os
import re
import signal

import pytest
import running
from corpus import DEATHS


#: Seconds.
LIMIT = 0.2


@pytest.mark.no_asan
@pytest.mark.parametrize("row", DEATHS.values(), ids=lambda row: row.name)
def test_death(row, monkeypatch, capfd):
    missing = row.needs and row.needs()
    if missing:
        pytest.skip(missing)
    for name, value in row.environ().items():
        monkeypatch.setenv(name, value)
    outcome = running.run(row)
    capfd.readouterr()  # what the child printed
    error = outcome.error
    over_zmq = os.environ.get("IPYTHON_ISOLATION_TRANSPORT") == "zmq"
    if over_zmq and row.libzmq_aborts and error.verdict == "abort":
        row = dataclasses.replace(row, verdict="abort", signal="SIGABRT", text="libzmq", frame="")
    assert error.verdict == row.verdict, str(error)
    if outcome.died:
        if not row.either:
            assert error.signal == (row.signal and signal.Signals[row.signal]), str(error)
            assert error.exit_code == row.exit_code, str(error)
        assert error.pid == outcome.pid
    assert re.search(row.text, str(error), re.S), str(error)
    names = [frame.function for frame in error.native_stack] if outcome.died else []
    assert not row.frame or any(row.frame in name for name in names), (names, str(error))
    names = [frame.function for frame in error.python_stack] if outcome.died else []
    assert not row.python or row.python in names, (names, str(error))
    assert "\x1b" not in str(error)
    assert outcome.intact, "the session is not as it was"
    assert outcome.kept or not outcome.died, "what the process had made earlier is not as it was, or was not kept"
    # 100 ms, and 100 more for names. Figures of a shared machine are medians: one that is late is one of three.
    if outcome.died and outcome.seconds >= LIMIT:
        took = sorted([outcome.seconds, running.run(row).seconds, running.run(row).seconds])
        assert took[1] < LIMIT, took


def test_there_are_enough():
    assert len(DEATHS) >= 40
