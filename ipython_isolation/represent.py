"""The child's part in displaying an object of its own: all that IPython asks of it, in one request."""

import sys
import types

from . import printers

_CANARY = "_ipython_canary_method_should_not_exist_"  # who has it has every name
_BUNDLE = "_repr_mimebundle_"
_DISPLAY = "_ipython_display_"

_kept = printers.Kept()


def _method(o, name):
    """What IPython takes for a display method (`IPython.utils.dir2.get_real_method`)."""
    try:
        if getattr(o, _CANARY, None) is not None:
            return None
        method = getattr(o, name, None)
    except Exception:
        return None
    if isinstance(o, type) and not isinstance(method, types.MethodType):
        return None
    return method if callable(method) else None


def represent(o, methods, include, exclude, text):
    """
    Parameters
    ----------
    o : object
    methods : tuple of (str, str)
        MIME types that are wanted, and the method that each of them comes from.
    include, exclude : container of str or None
        What ``_repr_mimebundle_`` is asked for.
    text : tuple or None
        How the plain text is made, if it is wanted: what `printers.load` needs, or None if that was sent before; the
        format of floats; what was registered in the session (`printers.changes`); whether it is more than the repr;
        and the other arguments of `Printers.print`.

    Returns
    -------
    (dict, dict) or None
        Data and metadata by MIME type. None: it displays itself, or a method has failed; the session finds out.
    """
    data, metadata = {}, {}
    try:
        if text is not None:
            _kept.get(text[0])  # first of all: what has been sent is not sent again
        if _method(o, _DISPLAY) is not None:
            return None
        plain = None if text is None else _printers(*text[:3])
        bundle = _method(o, _BUNDLE)
        if bundle is not None:
            made = bundle(include=include, exclude=exclude)
            if isinstance(made, tuple) and len(made) == 2:
                made, metadata = made
            data.update(made or {})
        for mime, name in methods:
            method = _method(o, name) if mime not in data else None
            found = None if method is None else method()
            if isinstance(found, tuple) and len(found) == 2:
                found, metadata[mime] = found
            if found is not None:
                data[mime] = found
        _by_formatters(o, data, metadata, methods)
        if plain is not None and ("text/plain" not in data or plain.known(o)):
            pretty, *layout = text[3:]
            data["text/plain"] = plain.print(o, *layout) if pretty else repr(o)
    except Exception:
        return None
    return data, {mime: more for mime, more in metadata.items() if more is not None}


def _shell():
    """The shell that code of the child has asked for, or None."""
    module = sys.modules.get("IPython.core.interactiveshell")
    return None if module is None else module.InteractiveShell._instance


def _printers(sent, float_format, changed):
    """Those of the session, and what code of the child has registered."""
    pretty, shell = _kept.get(sent), _shell()
    made = printers.Printers(pretty, float_format)
    if shell is not None:
        own = printers.changes(shell.display_formatter.formatters["text/plain"], pretty) or ()
        made.change([(name, function) for name, function in own if type(function) is not str])
    made.change(changed)
    return made


def _by_formatters(o, data, metadata, methods):
    """Adds what functions make of it that code of the child has registered for its class, such as figures as PNG."""
    shell = _shell()
    if shell is None:
        return
    for mime, _ in methods:
        formatter = shell.display_formatter.formatters.get(mime)
        if formatter is None or not formatter.enabled:
            continue
        try:
            formatter.lookup(o)
        except KeyError:
            continue
        found = formatter(o)
        if isinstance(found, tuple) and len(found) == 2:
            found, metadata[mime] = found
        if found is not None:
            data[mime] = found
