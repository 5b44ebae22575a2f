"""Rich display in the session: of isolated objects, and of what code of the child displays."""

import contextlib
import functools
import sys
import traceback
import weakref

from . import _core, errors, printers

#: A view of a widget needs the session's comms, which the child has not; the text beside it is shown instead.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def shell_name():
    """What the class of this session's shell is called; None without IPython."""
    shell = _shell()
    return None if shell is None else type(shell).__name__


def _shell():
    module = sys.modules.get("IPython.core.interactiveshell")
    return module.InteractiveShell._instance if module is not None else None


_publishers = {}  # number of a cell -> what displays in it, and whose output that was


def cell_began(number, forget):
    """Notes how something is displayed in this cell once it is over.

    Parameters
    ----------
    number, forget : int
        Of the cell, and of one that is so old that nothing will be displayed in it.
    """
    shell = _shell()
    if shell is not None:
        publisher = shell.display_pub
        _publishers[number] = publisher, getattr(publisher, "parent_header", None)
    _publishers.pop(forget, None)


def _publisher(shell, cell):
    """What displays in a cell that is over; where it is 0, where the session displays now."""
    publisher, header = _publishers.get(cell, (shell.display_pub, None))
    if header is None or "parent_header" not in publisher.trait_names():
        return publisher  # it finds the cell by the context variables that this is called with
    # ipykernel before 7: the publisher belongs to the cell that runs, so this one gets its own.
    made = type(publisher)(
        parent=publisher.parent, shell=shell, session=publisher.session, pub_socket=publisher.pub_socket
    )
    made.parent_header = header
    return made


def publish(cell, data, metadata, transient, update):
    """Displays what the child does, where its caller's output goes: the cell, or what captures it.

    Parameters
    ----------
    cell : int
        The one that has started the thread which displays, if it is over; else 0.
    data, metadata : dict
        By MIME type.
    transient : dict
        ``display_id`` of what can be updated.
    update : bool
        It replaces what has that id.
    """
    shell = _shell()
    data.pop(_WIDGET, None)
    if shell is None:
        print(data.get("text/plain", ""))
    else:
        _publisher(shell, cell).publish(data=data, metadata=metadata, transient=transient, update=update)


def clear_output(cell, wait):
    """As ``IPython.display.clear_output``."""
    shell = _shell()
    if shell is not None:
        _publisher(shell, cell).clear_output(wait)


def failed(error):
    """Shows that a display method of an isolated object has raised this, as IPython does; what else it has is shown."""
    shell, details = _shell(), (type(error), error, error.__traceback__)
    if shell is None:
        traceback.print_exception(*details)
    else:
        shell.showtraceback(details)


# -- isolated objects --------------------------------------------------------------------------


def install(shell):
    """From now on the shell formats isolated objects with one request each, instead of some 25.

    Parameters
    ----------
    shell : InteractiveShell
    """
    formatter = shell.display_formatter
    formatter.format = functools.partial(_format, formatter, formatter.format)


def uninstall(shell):
    """Undoes `install`."""
    vars(shell.display_formatter).pop("format", None)


def _registered(formatter, o):
    """Whether the session has a function of its own for objects of that class."""
    try:
        formatter.lookup(o)
    except KeyError:
        return False
    return True


def _registered_for(formatter, cls):
    return cls in formatter.type_printers or printers.key(cls) in formatter.deferred_printers


class _Texts:
    """How the session's formatter of texts prints, for `represent`."""

    def __init__(self):
        self._source = self._pretty = None
        self._looked = False
        self._sent = weakref.WeakKeyDictionary()  # host -> the life in which the source was sent

    def _load(self):
        self._looked = True
        self._source = printers.of_session()
        if self._source is not None:
            with contextlib.suppress(Exception):  # a version that needs more: then this process prints
                self._pretty = printers.load(*self._source)

    def was_sent(self, peer):
        """The child has the source now."""
        self._sent[peer.host] = peer.epoch

    def asked(self, formatter, o, peer):
        """
        Parameters
        ----------
        formatter : PlainTextFormatter
        o : object
            A proxy, or an isolated class.
        peer : _core.Peer
            Its own.

        Returns
        -------
        tuple or None
            As for `represent.represent`. None: the session has a printer of its own for `o`, or another formatter.
        """
        from IPython.core.formatters import PlainTextFormatter

        if type(formatter).__call__ is not PlainTextFormatter.__call__:
            return None
        if not self._looked:
            self._load()
        changed = None if self._pretty is None else printers.changes(formatter, self._pretty)
        if changed is None:
            return None
        own = {name for name, function in changed if type(function) is not str and function is not None}
        mro = (getattr(o, "__class__", None) or type(o)).__mro__ if own else ()
        first = next((base for base in mro if printers.key(base) in own), None)
        # What is only called like a registered class stands for a built-in one, which the child finds by its name.
        if first is not None and _registered_for(formatter, first):
            return None
        sent = None if self._sent.get(peer.host) == peer.epoch else self._source
        return (
            sent, formatter.float_format, changed, formatter.pprint,
            formatter.verbose, formatter.max_width, formatter.newline, formatter.max_seq_length,
        )  # fmt: skip


_texts = _Texts()


def _peer_of(o):
    """The peer of an object that is displayed by one request; None for any other."""
    if isinstance(o, type):
        # The others' texts are made of names that are known here.
        return _core.class_peer(o) if type(o).__repr__ is not type.__repr__ else None
    info = _core.proxy_info(o)
    return None if info is None or info[3] else info[0]


def _put(data, metadata, mime, made):
    """Adds what a formatter has made: None, data, or data and metadata."""
    more = None
    if isinstance(made, tuple) and len(made) == 2:
        made, more = made
    if made is not None:
        data[mime] = made
    if more is not None:
        metadata[mime] = more


def _format(formatter, original, obj, include=None, exclude=None):
    """As ``DisplayFormatter.format``: (data, metadata)."""
    peer = _peer_of(obj)
    if peer is None or _registered(formatter.ipython_display_formatter, obj):
        return original(obj, include=include, exclude=exclude)

    def wanted(mime):
        return (not include or mime in include) and not (exclude and mime in exclude)

    others = [mime for mime in formatter.formatters if wanted(mime) and mime != "text/plain"]
    mine = [mime for mime in others if _registered(formatter.formatters[mime], obj)]
    methods = tuple(
        (mime, str(formatter.formatters[mime].print_method))
        for mime in others
        if mime not in mine and formatter.formatters[mime].enabled
    )
    bundle = formatter.mimebundle_formatter
    made = None
    if bundle.enabled and not _registered(bundle, obj):
        text = None
        if wanted("text/plain"):
            text = _texts.asked(formatter.formatters["text/plain"], obj, peer)
            if text is None:
                mine.append("text/plain")
        # A context that is closed has a local repr.
        with contextlib.suppress(errors.ClientStateError):
            made = peer.host_call("represent", obj, methods, include, exclude, text)
            if text is not None:
                _texts.was_sent(peer)
    if made is None:
        return original(obj, include=include, exclude=exclude)
    displayed, bundled, found = made
    if displayed:
        return {}, {}
    # Each formatter looks at the type of what its method returned, as it does for objects that are here.
    data, metadata = ({mime: part[mime] for mime in part if wanted(mime)} for part in bundle._check_return(bundled, obj))
    for mime, value in found.items():
        _put(data, metadata, mime, formatter.formatters[mime]._check_return(value, obj))
    for mime in mine:
        _put(data, metadata, mime, formatter.formatters[mime](obj))
    order = [*(mime for mime in data if mime not in formatter.formatters), *formatter.formatters]  # IPython's
    return {mime: data[mime] for mime in order if mime in data}, metadata
