"""`IsolationContext.batch`: calls whose results are not needed yet; what they raise is never lost."""

from __future__ import annotations

from types import TracebackType

from . import _core, errors

#: The result to come of a call in a batch.
Future = _core.Future


class Batch:
    """A ``with`` block in which calls of isolated functions, methods and classes return a `Future` at once.

    Parameters
    ----------
    peer : _core.Peer
        Of the context whose calls it takes.
    """

    def __init__(self, peer: _core.Peer) -> None:
        self._peer = peer
        self._batch: _core.Batch | None = None

    def __enter__(self) -> Batch:
        if self._batch is not None:
            raise errors.ClientStateError("a batch can be used once; call batch() again for another")
        self._batch = _core.Batch(self._peer)
        self._batch.open()
        return self

    def flush(self) -> None:
        """Makes the calls that have not been made yet. What they raise, their futures raise.

        Raises
        ------
        ClientStateError
            Before and after the block, and in another thread.
        """
        if self._batch is None:
            raise errors.ClientStateError("flush() of a batch works inside its `with` block")
        self._batch.flush()

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        batch = self._batch
        assert batch is not None
        try:
            # Who interrupts the block does not want to wait for the rest of it.
            if not isinstance(error, KeyboardInterrupt):
                batch.flush()
        finally:
            batch.close()
        failures = batch.failures()
        if error is not None:
            for number, name, failure in _named(failures):
                if failure is not error:
                    error.add_note(f"call {number} of the batch{name} failed too: {type(failure).__name__}: {failure}")
            return
        if len(failures) == 1:
            raise failures[0][3]
        if failures:
            for number, name, failure in _named(failures):
                failure.add_note(f"raised by call {number} of the batch{name}")
            raise BaseExceptionGroup(f"{len(failures)} calls of a batch failed", [row[3] for row in failures])


def _named(failures: list[tuple[int, str, object, BaseException]]) -> list[tuple[int, str, BaseException]]:
    rows = []
    for number, operation, operand, failure in failures:
        name = errors.describe_operation(operation, operand) if operation else ""
        rows.append((number, f", {name}," if name else "", failure))
    return rows
