"""Rich display in the session: of isolated objects, and of what code of the child displays."""

import contextlib
import functools
import sys

from . import _core, errors

#: A view of a widget needs the session's comms, which the child has not; the text beside it is shown instead.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def shell_name():
    """What the class of this session's shell is called; None without IPython."""
    shell = _shell()
    return None if shell is None else type(shell).__name__


def _shell():
    module = sys.modules.get("IPython.core.interactiveshell")
    return module.InteractiveShell._instance if module is not None else None


def publish(data, metadata, transient, update):
    """Displays what the child does, where its caller's output goes: the cell, or what captures it.

    Parameters
    ----------
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
        shell.display_pub.publish(data=data, metadata=metadata, transient=transient, update=update)


def clear_output(wait):
    """As ``IPython.display.clear_output``."""
    shell = _shell()
    if shell is not None:
        shell.display_pub.clear_output(wait)


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


def _format(formatter, original, obj, include=None, exclude=None):
    """As ``DisplayFormatter.format``: (data, metadata)."""
    info = None if isinstance(obj, type) else _core.proxy_info(obj)
    if info is None or info[3] or _registered(formatter.ipython_display_formatter, obj):
        return original(obj, include=include, exclude=exclude)

    def wanted(mime):
        return (not include or mime in include) and not (exclude and mime in exclude)

    mine = [mime for mime, one in formatter.formatters.items() if wanted(mime) and _registered(one, obj)]
    methods = tuple(
        (mime, str(one.print_method))
        for mime, one in formatter.formatters.items()
        if wanted(mime) and mime not in mine and mime != "text/plain" and one.enabled
    )
    bundle = formatter.mimebundle_formatter
    plain = formatter.formatters["text/plain"]
    text = wanted("text/plain") and "text/plain" not in mine and plain.pprint
    made = None
    if bundle.enabled and not _registered(bundle, obj):
        # A context that is closed has a local repr.
        with contextlib.suppress(errors.ClientStateError):
            made = info[0].host_call("represent", obj, methods, include, exclude, bool(text))
    if made is None:
        return original(obj, include=include, exclude=exclude)
    data, metadata = ({mime: part[mime] for mime in part if wanted(mime)} for part in made)
    if "text/plain" not in data and wanted("text/plain"):
        mine.append("text/plain")
    for mime in mine:
        found = formatter.formatters[mime](obj)
        if isinstance(found, tuple) and len(found) == 2:
            found, metadata[mime] = found
        if found is not None:
            data[mime] = found
    order = [*(mime for mime in data if mime not in formatter.formatters), *formatter.formatters]  # IPython's
    return {mime: data[mime] for mime in order if mime in data}, metadata
