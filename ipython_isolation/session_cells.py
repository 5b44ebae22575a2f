"""The cells of the session: where the output of each goes once it is over, and what contexts do as one begins or ends."""

import contextvars
import itertools
import sys

from . import display
from .registry import contexts

#: How many cells back a thread of a child still prints to its own.
_KEPT = 1000
_variables = {}  # number of a cell -> its context variables, which say where its output goes
_numbers = itertools.count(1)


def cell_began(*_):
    """A cell of the session begins: what its calls make in a child may be lost with it, what earlier cells made not."""
    number = next(_numbers)
    _variables[number] = contextvars.copy_context()
    _variables.pop(number - _KEPT, None)
    display.cell_began(number, number - _KEPT)
    for context in contexts():
        context._peer.cell = number
        context._snapshots.cell_began()
        context._watch.soon()


def cell_ended(*_):
    """A cell of the session has ended."""
    for context in contexts():
        context._snapshots.cell_ended()


def cell_executed(*_):
    """The code of a cell has run: the child's figures that were drawn in it are shown, if it may have drawn any."""
    for context in contexts():
        context._host.show_figures()


def current():
    """The number of the cell that runs or ran last: int, 0 where there was none."""
    return next(reversed(_variables), 0)


def variables(number):
    """The context variables of a cell: contextvars.Context, or None for one that is not known (any more)."""
    return _variables.get(number)


def execution_count():
    """What IPython shows as the number of the cell that runs: int, or None outside of IPython."""
    shell = getattr(sys.modules.get("IPython.core.interactiveshell"), "InteractiveShell", None)
    return shell.instance().execution_count if shell is not None and shell.initialized() else None
