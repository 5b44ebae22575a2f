"""input() and getpass() in the child ask in the session."""

import builtins
import sys

_DOC = builtins.input.__doc__


def install(peer):
    """Child: replaces ``input``. While somebody has given ``sys.stdin`` another meaning, that is asked.

    Parameters
    ----------
    peer : _core.Peer
    """
    own, stdin = builtins.input, sys.stdin

    def input(prompt="", /):
        if sys.stdin is not stdin or peer.may_ask is False:
            return own(prompt)
        return peer.host_call("input", str(prompt), False)

    input.__doc__, input.__module__ = _DOC, "builtins"
    builtins.input = input


def install_getpass(module, peer):
    """Child: replaces ``getpass.getpass``, which would read from a terminal that is the session's.

    Parameters
    ----------
    module : module
        ``getpass``, which has just been imported.
    peer : _core.Peer
    """
    own = module.getpass

    def getpass(prompt="Password: ", stream=None):
        if peer.may_ask is False:
            return own(prompt, stream)
        return peer.host_call("input", str(prompt), True)

    getpass.__doc__, getpass.__module__ = own.__doc__, "getpass"
    module.getpass = getpass


def ask(prompt, hidden):
    """Session: asks, as its own code would.

    Returns
    -------
    str

    Raises
    ------
    EOFError, KeyboardInterrupt, or what the front-end raises that cannot ask
    """
    if hidden:
        import getpass

        return str(getpass.getpass(prompt))
    return str(builtins.input(prompt))
