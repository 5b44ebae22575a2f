"""What `make bench-check` allows: ratios between two figures of the same run, which hold on a slow machine as on a fast one.

Each bound is the ratio as it was measured when the bound was set, and a margin for what differs between machines. Noise is
dealt with by measuring again (check.py), not here. A change that makes one smaller for good should lower its bound.
"""

from typing import NamedTuple


class Bound(NamedTuple):
    """Attributes: the highest ratio that passes; the ratio as measured; why the bound is where it is."""

    most: float
    measured: float
    why: str


BOUNDS = {
    "noop / raw libzmq": Bound(
        0.5, 0.29, "two switches of processes, where libzmq makes six; a system call more each way is 0.05, a thread's wake-up 0.3"
    ),
    "noop over ZeroMQ / raw libzmq": Bound(1.25, 1.14, "the target is 1.2; a second frame for each call would be 2"),
    "callback / noop": Bound(1.7, 1.1, "a callback is one round trip, as a call is; a second one would be 2"),
    "list of 1,000 / noop": Bound(16, 8, "items come in chunks, each of one round trip; an item at a time would be 1,000"),
    "array argument / memcpy": Bound(3, 1.6, "40 MB; one copy, into memory that is new to this process; each further copy is another 1 to 2"),
    "start of a child / import of the core": Bound(
        1.5, 1.2, "the target is 1.3; the package imported as a whole in the child would be 3"
    ),
    "memory of a child / of an interpreter": Bound(
        1.3, 1.25, "the target, and without noise; libzmq and what it is linked to are 0.4, the package as a whole 0.8"
    ),
}
