"""The wait for a reply: what it must notice although nothing arrives on its sockets."""

import signal
import threading
import time

import pytest


def test_a_signal_that_another_thread_took(context):
    """The C handler runs there, so no system call of the waiting thread is interrupted."""
    sleeping = context.load_module("time")
    for _ in range(3):  # the timer of one wait serves the next ones too
        sleeping.sleep(0)
        entered = threading.Event()

        def shoot():
            entered.wait()
            time.sleep(0.05)  # into the wait; being early only makes the test weaker
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        thread = threading.Thread(target=shoot)
        thread.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            entered.set()
            sleeping.sleep(50)
        assert time.monotonic() - start < 25
        thread.join()


def test_long_waits_between_short_ones(context):
    """Longer than the time slice of the wait, and not in step with it."""
    sleeping = context.load_module("time")
    for milliseconds in (0, 120, 0, 49, 51, 0, 75):
        start = time.monotonic()
        assert sleeping.sleep(milliseconds / 1000) is None
        assert time.monotonic() - start >= milliseconds / 1000
