"""The dangerous code of process_isolation's README, for the bytecode of today's CPython."""

import dis
import types


def dragons_here():
    """Runs a function whose only instruction loads a constant that it does not have.

    The ancestor's constant 0 of an empty tuple is whatever lies behind the tuple, which need not kill.
    Constant 2**31 - 1 lies 16 GB behind it, where nothing is mapped.
    """
    load, prefix = dis.opmap["LOAD_CONST"], dis.opmap["EXTENDED_ARG"]
    bytecode = bytes([prefix, 0x7F, prefix, 0xFF, prefix, 0xFF, load, 0xFF])
    code = (lambda: None).__code__.replace(co_code=bytecode, co_consts=())
    types.FunctionType(code, {})()
