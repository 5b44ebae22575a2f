"""The child's part in displaying an object of its own: all that IPython asks of it, in one request."""

import sys

_CANARY = "_ipython_canary_method_should_not_exist_"  # who has it has every name
_BUNDLE = "_repr_mimebundle_"
_DISPLAY = "_ipython_display_"


def _method(o, name):
    """What IPython takes for a display method (`IPython.utils.dir2.get_real_method`)."""
    try:
        if getattr(o, _CANARY, None) is not None:
            return None
        method = getattr(o, name, None)
    except Exception:
        return None
    return method if callable(method) else None


def _text(o):
    """The plain text, where IPython's pretty printer would print the repr; else None."""
    own = type(o).__repr__
    plain = all(own is not getattr(base, "__repr__", None) for base in type(o).__mro__ if base.__module__ == "builtins")
    return repr(o) if plain and not hasattr(type(o), "_repr_pretty_") else None


def represent(o, methods, include, exclude, text):
    """
    Parameters
    ----------
    o : object
    methods : tuple of (str, str)
        MIME types that are wanted, and the method that each of them comes from.
    include, exclude : container of str or None
        What ``_repr_mimebundle_`` is asked for.
    text : bool
        Whether the plain text is wanted too.

    Returns
    -------
    (dict, dict) or None
        Data and metadata by MIME type. None: it displays itself, or a method has failed; the session finds out.
    """
    if _method(o, _DISPLAY) is not None:
        return None
    data, metadata = {}, {}
    try:
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
        if text and "text/plain" not in data:
            plain = _text(o)
            if plain is not None:
                data["text/plain"] = plain
    except Exception:
        return None
    return data, {mime: more for mime, more in metadata.items() if more is not None}


def _by_formatters(o, data, metadata, methods):
    """Adds what functions make of it that code of the child has registered for its class, such as figures as PNG."""
    module = sys.modules.get("IPython.core.interactiveshell")
    shell = None if module is None else module.InteractiveShell._instance
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
