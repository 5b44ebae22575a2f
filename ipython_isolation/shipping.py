"""A function of the session as code, so that the child runs it: for ``context.call``.

Only what crosses by value, modules, classes that can be imported, and further functions may be in
its globals, closure and defaults. Both processes must run the same CPython version.
"""

import builtins
import importlib
import marshal
import sys
import types


def package(function):
    """Describes a Python function for `build`.

    Parameters
    ----------
    function : types.FunctionType

    Returns
    -------
    tuple
        Nested tuples of values that cross by value.

    Raises
    ------
    TypeError
        When the function refers to something that cannot be shipped.
    """
    return (tuple(sys.version_info[:2]), _function(function, {}))


def _function(function, seen):
    key = id(function)
    if key in seen:
        return ("again", seen[key])
    number = seen[key] = len(seen)
    closure = []
    for cell in function.__closure__ or ():
        try:
            closure.append(("value", _value(cell.cell_contents, seen, function)))
        except ValueError:
            closure.append(("empty", None))
    code = function.__code__
    names = {}
    for name in sorted(_global_names(code)):
        if name in function.__globals__:
            names[name] = _value(function.__globals__[name], seen, function)
        elif not hasattr(builtins, name):
            continue
    return (
        "function",
        number,
        marshal.dumps(code),
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        None
        if function.__defaults__ is None
        else tuple(_value(v, seen, function) for v in function.__defaults__),
        tuple((k, _value(v, seen, function)) for k, v in (function.__kwdefaults__ or {}).items()),
        tuple(closure),
        tuple(names.items()),
    )


def _global_names(code):
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def is_importable(o):
    """True when the child finds the very same definition by importing it."""
    module = sys.modules.get(getattr(o, "__module__", None) or "")
    if module is None or o.__module__ == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    found = module
    for part in getattr(o, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found is o


def undecorated(o):
    """What ``@isolated`` decorates: shipped by itself, it runs where it arrives and starts no other child from there.

    Parameters
    ----------
    o : object

    Returns
    -------
    object
        `o` itself when it is not decorated.
    """
    return vars(o).get("__isolated_function__", o) if type(o) is types.FunctionType else o


def _value(value, seen, function):
    from ipython_isolation import _core

    if isinstance(value, types.ModuleType):
        return ("module", value.__name__)
    if _core.isproxy(value):
        return ("plain", value)
    value = undecorated(value)
    if isinstance(value, (types.FunctionType, type, types.BuiltinFunctionType)) and is_importable(value):
        return ("named", value.__module__, value.__qualname__)
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, type):
        raise TypeError(
            f"{function.__qualname__}() uses the class {value.__qualname__} of the session, which"
            " cannot be shipped; define the class inside the function"
        )
    return ("plain", value)


def build(packed):
    """The function that `package` described, in this process.

    Returns
    -------
    types.FunctionType

    Raises
    ------
    TypeError
        When it comes from another version of CPython: code differs between versions.
    """
    version, description = packed
    if tuple(version) != tuple(sys.version_info[:2]):
        raise TypeError(
            f"a function of Python {version[0]}.{version[1]} cannot be shipped to Python"
            f" {sys.version_info[0]}.{sys.version_info[1]}; put it into a module that both import"
        )
    return _build(description, {})


def _build(value, made):
    kind = value[0]
    if kind == "plain":
        return value[1]
    if kind == "module":
        return importlib.import_module(value[1])
    if kind == "named":
        o = importlib.import_module(value[1])
        for part in value[2].split("."):
            o = getattr(o, part)
        return o
    if kind == "again":
        return made[value[1]]
    _, number, code, name, qualname, module, doc, defaults, kwdefaults, closure, names = value
    namespace = {"__builtins__": builtins, "__name__": module}
    cells = tuple(types.CellType() for _ in closure)
    function = types.FunctionType(marshal.loads(code), namespace, name, None, cells or None)
    made[number] = function
    function.__qualname__, function.__doc__ = qualname, doc
    if defaults is not None:
        function.__defaults__ = tuple(_build(v, made) for v in defaults)
    function.__kwdefaults__ = {k: _build(v, made) for k, v in kwdefaults} or None
    for cell, (filled, content) in zip(cells, closure):
        if filled == "value":
            cell.cell_contents = _build(content, made)
    for key, v in names:
        namespace[key] = _build(v, made)
    return function
