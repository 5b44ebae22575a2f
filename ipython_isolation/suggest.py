"""The child's part in completion: each of the questions that Tab asks is one request."""

import re
import time


def suggest(text, names, seconds, arguments):
    """What jedi completes at the end of a text.

    Parameters
    ----------
    text : str
        Source code up to the cursor.
    names : tuple of (str, object)
        What names in it stand for.
    seconds : float
        How long to go on finding out kinds and signatures, which may mean to read source files.
    arguments : bool
        Only names of parameters, with their ``=``, are wanted.

    Returns
    -------
    (tuple of (str, str, str, str or None, str or None), bool), or None
        Of each completion its name, the same with what belongs behind it (such as ``=``), the part that is yet to be
        typed, its kind and, of a function, its first signature. The latter two are None where time was over. Then
        whether anything else may stand there. None: there is no jedi here.
    """
    deadline = time.monotonic() + seconds
    try:
        import jedi
    except ImportError:  # as in a jail
        return None
    own, jedi.settings.case_insensitive_completion = jedi.settings.case_insensitive_completion, False  # as IPython
    try:
        made = jedi.Interpreter(text, [dict(names)]).complete()
        wanted, others = made, False
        if arguments:
            wanted = [one for one in made if one.name_with_symbols.endswith("=")]
            typed = re.search(r"\w*$", text).group()
            if wanted and typed:  # else those that begin otherwise are not in it
                made = jedi.Interpreter(text[: -len(typed)], [dict(names)]).complete()
            others = not all(one.name_with_symbols.endswith("=") for one in made)
        found = []
        for completion in wanted:
            kind = signature = None
            if time.monotonic() < deadline:
                kind, signature = _details(completion)
            found.append((completion.name, completion.name_with_symbols, completion.complete, kind, signature))
        return tuple(found), others
    finally:
        jedi.settings.case_insensitive_completion = own


def _details(completion):
    """Its kind and signature; None where jedi fails."""
    kind = signature = None
    try:
        kind = completion.type
        if kind == "function":
            signatures = completion.get_signatures()
            signature = signatures[0].to_string() if signatures else None
    except Exception:  # jedi's own, or of an odd object's
        pass
    return kind, signature


def importable(module, only_modules):
    """What can be imported from a module, as IPython completes ``import`` (`IPython.core.completerlib.try_import`).

    Parameters
    ----------
    module : module
    only_modules : bool
        Whether nothing else is wanted, as in ``import a.``.

    Returns
    -------
    tuple of str
    """
    import pkgutil
    import types

    def wanted(name, missing):
        try:
            return not only_modules or isinstance(getattr(module, name), types.ModuleType)
        except AttributeError:
            return missing
        except ModuleNotFoundError:
            return False

    path = getattr(module, "__path__", None) if "__init__" in (getattr(module, "__file__", None) or "") else None
    names = set()
    if path is not None or not only_modules or not hasattr(module, "__file__"):
        special = () if only_modules else {name for name in dir(module) if name[:2] == "__" == name[-2:]}
        names.update(name for name in dir(module) if name not in special and wanted(name, False))
    names.update(name for name in getattr(module, "__all__", ()) if isinstance(name, str) and wanted(name, True))
    if path is not None:
        names.update(found.name for found in pkgutil.iter_modules(path))
    return tuple(sorted(names))
