"""How pytest-xdist hands out the tests: some of a file at a time, and at the end, to one worker, those that
have to be alone on the machine: they are files of their own, since their names are all that a scheduler sees of tests."""

from collections import deque

import pytest
from xdist.report import report_collection_diff
from xdist.workermanage import parse_tx_spec_config

ALONE = ("tests/test_alone.py::", "tests/deaths/")  # which measure time
MOST = 10  # tests of a file at a time: few, so that no worker is left with much when the other is through


def is_alone(nodeid):
    return nodeid.startswith(ALONE)


def units(collection):
    """Splits what was collected.

    Parameters
    ----------
    collection : list of str
        The names of all tests.

    Returns
    -------
    (list of list of int, list of int)
        Runs of tests of one file, which share the fixtures of it, and those that have to be alone. By index.
    """
    together, alone, last = [], [], None
    for index, nodeid in enumerate(collection):
        file = nodeid.partition("::")[0]
        if is_alone(nodeid):
            alone.append(index)
        elif file == last and len(together[-1]) < MOST:
            together[-1].append(index)
        else:
            together.append([index])
            last = file
    return together, alone


class Scheduling:
    """What pytest-xdist wants of a scheduler (xdist.scheduler.protocol.Scheduling).

    A worker begins a test when it knows the next one, or that there is none. So the workers are told that nothing
    follows, all but one; when they are through, that one gets the tests that have to be alone. A test that a worker
    dies in has failed, and is not tried again; the others go on, in a new worker.

    Parameters
    ----------
    config : pytest.Config
    """

    def __init__(self, config):
        self.config = config
        self.expected = len(parse_tx_spec_config(config))  # workers at the start
        self.collection = None  # the names of all tests, once all workers have found the same
        self.found = {}  # worker: the names of the tests that it has found
        self.given = {}  # worker: indices of tests, in its order, that are not done
        self.together, self.alone = deque(), []  # not given yet

    @property
    def nodes(self):
        return list(self.given)

    @property
    def collection_is_completed(self):
        return len(self.found) >= self.expected

    @property
    def tests_finished(self):
        """Whether nothing is left to give: the workers may be told so."""
        return (
            self.collection_is_completed
            and not self.together
            and not self.alone
            and all(len(pending) < 2 for pending in self.given.values())
        )

    @property
    def has_pending(self):
        return bool(self.together or self.alone or any(self.given.values()))

    def add_node(self, node):
        self.given[node] = deque()

    def add_node_collection(self, node, collection):
        if self.collection is None or self._is_same(self.collection, node, collection):
            self.found[node] = list(collection)

    def schedule(self):
        if self.collection is None:
            first, *others = self.found
            if not all(self._is_same(self.found[first], node, self.found[node]) for node in others):
                return
            self.collection = self.found[first]
            together, self.alone = units(self.collection)
            self.together = deque(together)
        self._feed_all()

    def mark_test_complete(self, node, item_index, duration=0):
        self.given[node].remove(item_index)
        self._feed_all()

    def mark_test_pending(self, item):
        raise NotImplementedError

    def remove_pending_tests_from_node(self, node, indices):
        raise NotImplementedError

    def remove_node(self, node):
        """The worker has gone: the name of the test that it died in, or None."""
        pending = self.given.pop(node)
        crashed = pending.popleft() if pending else None
        again = [index for index in pending if is_alone(self.collection[index])]
        self.alone = again + self.alone
        if len(again) < len(pending):
            self.together.appendleft([index for index in pending if index not in again])
        self._feed_all()
        return None if crashed is None else self.collection[crashed]

    def _feed_all(self):
        for node in self.nodes:
            if node in self.found and not node.shutting_down:
                self._feed(node)

    def _feed(self, node):
        pending = self.given[node]
        while self.together and len(pending) < 2:
            self._give(node, self.together.popleft())
        if self.together or len(pending) > 1:
            return
        if self.alone:
            others = [other for other in self.given if other is not node]
            if any(self.given[other] for other in others if other.shutting_down):
                return  # the last tests of another worker
            if not any(other in self.found and not other.shutting_down for other in others):
                self._give(node, self.alone)
                self.alone = []
        node.shutdown()  # after what it has

    def _give(self, node, indices):
        self.given[node].extend(indices)
        node.send_runtest_some(list(indices))

    def _is_same(self, collection, node, other):
        """Whether a worker has found the same tests; if not, the run has failed."""
        if list(other) == list(collection):
            return True
        text = report_collection_diff(collection, other, next(iter(self.found)).gateway.id, node.gateway.id)
        report = pytest.CollectReport(node.gateway.id, "failed", longrepr=text, result=[])
        self.config.hook.pytest_collectreport(report=report)
        node.shutdown()
        return False
