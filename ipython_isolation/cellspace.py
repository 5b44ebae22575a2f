"""The child's side of ``%%isolate``: cells run in ``__main__`` of the child, one after the other.

The child imports this with its first cell. The session uses `source_of` and `remember` too, so that both processes
show the same lines.
"""

import ast
import linecache
import sys


def source_of(text):
    """The code of a cell, at the lines where it stands in the notebook.

    Parameters
    ----------
    text : str
        The cell, its first line with the magic included.

    Returns
    -------
    str
        The same with an empty first line.
    """
    return "\n" + text.partition("\n")[2]


def remember(filename, text):
    """Lets tracebacks, and `inspect.getsource`, find a cell's lines.

    Parameters
    ----------
    filename : str
        What stands for a file name, such as ``"<isolated cell 3>"``.
    text : str
        The cell, its first line with the magic included.
    """
    linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename


def namespace():
    """The names of all cells: the variables of this process's ``__main__``.

    Returns
    -------
    dict
    """
    names = vars(sys.modules["__main__"])
    main = names.get("main")
    if getattr(main, "__module__", None) == "ipython_isolation.child":
        del names["main"], names["sys"]  # of the `-c` that this process was started with
    return names


def run(filename, text, show, names, values, outputs, store):
    """Runs a cell.

    Parameters
    ----------
    filename : str
        Of the cell, for tracebacks.
    text : str
        The cell, its first line with the magic included.
    show : bool
        Whether the value of the last expression is wanted.
    names, values : tuple
        Variables that are set before.
    outputs : tuple of str
        Variables that the session wants.
    store : callable or None
        Called with their values.

    Returns
    -------
    (object, tuple of str)
        The value of the last expression, or None; those outputs that do not exist. If there are any, none is stored.

    Raises
    ------
    BaseException
        Whatever the cell raises.
    """
    remember(filename, text)
    variables = namespace()
    body, last = _compiled(source_of(text), filename, show)
    variables.update(zip(names, values))
    exec(body, variables)
    value = None if last is None else eval(last, variables)
    missing = tuple(name for name in outputs if name not in variables)
    if outputs and not missing:
        store(*[variables[name] for name in outputs])
    return value, missing


def _compiled(source, filename, show):
    """Code for all but the last expression, and for that one, if there is one and it is to be shown."""
    tree = compile(source, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body.pop() if show and tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, filename, "exec", dont_inherit=True)
    if last is None:
        return body, None
    return body, compile(ast.Expression(last.value), filename, "eval", dont_inherit=True)


def strip(error, filename):
    """Has a traceback begin in a cell.

    Parameters
    ----------
    error : BaseException
    filename : str
        Of the cell. When nothing of it is in the traceback, that is left as it is.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename != filename:
        traceback = traceback.tb_next
    if traceback is not None:
        error.__traceback__ = traceback
