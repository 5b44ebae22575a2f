"""Two processes that call each other until the C stack of one is used up."""

import concurrent.futures
import functools
import threading

import pytest

from ipython_isolation import IsolationContext


@pytest.fixture
def overflow():
    """Calls each other too deep, then less deep."""
    with IsolationContext(restart="never", name="deep") as context:
        partial, join = context.load_module("functools").partial, context.load_module("posixpath").join

        def deep(levels):
            call = functools.partial(int, 5)
            for _ in range(levels):
                call = functools.partial(partial(call))  # neither is merged with the other's
            return call()

        def run():
            with pytest.raises(RecursionError):
                deep(6000)
            return deep(10), join("a", "b")

        yield run
        assert context.info()["crashes"] == 0


def test_of_the_main_threads(overflow):
    assert overflow() == (5, "a/b")


def test_of_a_thread_with_a_small_one(overflow):
    """512 KB are used up before CPython has counted to its limit."""
    before = threading.stack_size(512 * 1024)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(overflow).result() == (5, "a/b")
    finally:
        threading.stack_size(before)
