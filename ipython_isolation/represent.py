"""The child's part in displaying an object of its own: all that IPython asks of it, in one request."""

import sys
import types

from . import printers

_CANARY = "_ipython_canary_method_should_not_exist_"  # who has it has every name
_BUNDLE = "_repr_mimebundle_"
_DISPLAY = "_ipython_display_"

_HIDDEN = {__file__, printers.__file__, printers.MODULE}
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


def represent(o, methods, include, exclude, text, failed):
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
    failed : callable
        Shows the exception that one of the methods has raised.

    Returns
    -------
    tuple or None
        Whether it displayed itself; what ``_repr_mimebundle_`` returned, or None; and a dict of what the others did, by
        MIME type. None: the session has to make its text, and finds out the rest too.
    """

    def made_by(method, *args, **kwargs):
        """As `IPython.core.formatters.catch_format_error`: what fails is shown, and the others go on."""
        try:
            return None if method is None else method(*args, **kwargs)
        except NotImplementedError:
            return None
        except Exception as error:
            failed(error.with_traceback(_its_own(error.__traceback__)))
            return None

    try:
        plain = None
        if text is not None:
            _kept.get(text[0])  # first of all: what has been sent is not sent again
            plain = _printers(*text[:3])
    except Exception:
        return None
    if made_by(_displayed, o):
        return True, None, {}
    bundle = made_by(_method(o, _BUNDLE), include=include, exclude=exclude)
    if isinstance(bundle, tuple) and len(bundle) == 2:
        bundle = tuple(map(_copied, bundle))
    bundle = _copied(bundle)
    bundled = bundle[0] if type(bundle) is tuple and bundle else bundle
    bundled = bundled if type(bundled) is dict else {}
    found = {}
    if plain is not None and ("text/plain" not in bundled or plain.known(o)):
        pretty, *layout = text[3:]
        found["text/plain"] = made_by(plain.print, o, *layout) if pretty else made_by(repr, o)
    registered = _registered(o, methods)
    for mime, name in methods:
        if mime in registered:
            found[mime] = registered[mime](o)
        elif mime not in bundled:
            found[mime] = made_by(_method(o, name))
    found = {mime: made for mime, made in found.items() if made is not None}
    # An exception that the session keeps has this frame, and what that refers to would not cross by copy.
    result = [found, bundle]
    del found, bundle, bundled
    return False, result.pop(), result.pop()


def _its_own(trace):
    """Without the frames before the first of its methods, which IPython hides."""
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename in _HIDDEN:
        first = first.tb_next
    return first or trace


def _copied(part):
    """What code of the child keeps would not cross by copy."""
    return dict(part) if isinstance(part, dict) else part


def _displayed(o):
    """Whether it has displayed itself."""
    method = _method(o, _DISPLAY)
    if method is None:
        return False
    method()
    return True


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


def _registered(o, methods):
    """Formatters by MIME type: those with a function of their own for its class, which code of the child has registered
    there, such as the one for figures as PNG. It is called instead of the method."""
    shell, found = _shell(), {}
    for mime, _ in () if shell is None else methods:
        formatter = shell.display_formatter.formatters.get(mime)
        if formatter is None or not formatter.enabled:
            continue
        try:
            formatter.lookup(o)
        except KeyError:
            continue
        found[mime] = formatter
    return found
