"""Prints in every way there is, and does as it is told; the tests look at where it arrives."""

import ctypes
import os
import sys
import threading

libc = ctypes.CDLL(None)
kept = []


def pid():
    return os.getpid()


def keep(item):
    """State of this process."""
    kept.append(item)
    return len(kept)


def say(text, end="\n"):
    print(text, end=end)


def warn(text):
    print(text, file=sys.stderr)


def say_in_c(text):
    libc.printf(b"%s\n", text.encode())


def write(*chunks):
    """Each chunk is a system call of its own, whatever characters it cuts."""
    for chunk in chunks:
        os.write(1, chunk)


def say_after(callback, before, after):
    print(before)
    callback()
    print(after)


def say_later(fifo, text):
    """Prints from a thread, once somebody writes to the fifo; returns at once."""

    def wait():
        with open(fifo) as file:
            file.read()
        print(text)

    threading.Thread(target=wait, daemon=True).start()


def die(*texts):
    """Prints through Python, C and stderr, without a flush, and dereferences NULL."""
    for text in texts:
        print(text)
        libc.printf(b"%s in C\n", text.encode())
        print(text, "as an error", file=sys.stderr)
    ctypes.string_at(0)


def work(seconds, text="working"):
    """Says so, and then computes in Python, where an interrupt can reach it."""
    import time

    print(text)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "done"


def block():
    """Says so, and waits in C, where no interrupt reaches Python."""
    mutex = ctypes.create_string_buffer(64)
    keeps_the_gil = ctypes.PyDLL(None)  # as most extensions do

    def wait():
        for _ in range(2):  # the second waits for the first, for ever, and signals do not end it
            keeps_the_gil.pthread_mutex_lock(mutex)

    try:
        print("blocking")
        wait()
    except KeyboardInterrupt:  # so quick that it came between the line and the wait
        wait()


def check(n):
    """A result for most inputs, a segmentation fault for some."""
    if n % 125 == 3:
        ctypes.string_at(0)
    return n * n


class Thing:
    """A thing that is lost with its process."""

    def __init__(self, name):
        self.name = name

    def rename(self, name):
        """Gives it another name."""
        self.name = name
        return self
