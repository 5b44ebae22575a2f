"""The fuzzer of received frames, for a moment; `make fuzz` runs it for longer."""

import subprocess
import sys
from pathlib import Path

import pytest

from ipython_isolation import ProtocolError

RUN = Path(__file__).parent / "fuzz" / "run.py"


def test_a_few_thousand_garbled_frames():
    done = subprocess.run(
        [sys.executable, RUN, "--seconds", "4", "--seed", "11"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert "ProtocolError" in done.stdout


def frames_of(context, call):
    frames = []
    context._peer._tap = frames.append
    call()
    context._peer._tap = None
    return [f for f in frames if f[2] & 1]


def test_a_truncated_frame_is_a_protocol_error_at_any_length(context):
    """Of a reply that has a class in it; what is cut off is never read, what is there does no harm."""
    collections = context.load_module("collections")
    (frame, *_) = frames_of(context, lambda: collections.OrderedDict(a=[1, "x"]).items())
    for size in range(len(frame)):
        try:
            context._peer._feed(frame[:size])
        except (ProtocolError, UnicodeDecodeError):
            continue
        pytest.fail(f"{size} of {len(frame)} bytes were a frame")
    with pytest.raises(ProtocolError):
        context._peer._feed(b"")
    assert list(collections.OrderedDict(a=1)) == ["a"]
