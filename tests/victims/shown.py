"""Objects of every type for which IPython has a printer of its own, and of some for which it has none.

Run plain and isolated: tests/test_printing.py. What is here stays here, so that the session holds proxies.
"""

import collections
import datetime
import enum
import functools
import os
import re
import types


class Plain:
    """Has no repr; its address differs."""


class Lines:
    def __repr__(self):
        return "Lines(\n  1,\n  2)\n"


class Pretty:
    def __init__(self, *parts):
        self.parts = parts

    def _repr_pretty_(self, p, cycle):
        with p.group(8, "Pretty<(", ")>"):
            for i, part in enumerate(self.parts):
                if i:
                    p.text(",")
                    p.breakable()
                p.pretty(part)


class MyDict(dict):
    pass


class MyDictWithRepr(dict):
    def __repr__(self):
        return "MyDictWithRepr here"


class MyList(list):
    pass


class MySet(set):
    pass


class MyCounter(collections.Counter):
    pass


class MyError(ValueError):
    pass


class Bundle(dict):
    """The text of its bundle is not what IPython shows: there is a printer for dicts."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "bundle", "text/html": "<p>bundle</p>"}


class Html(dict):
    def _repr_html_(self):
        return "<b>table</b>"


class BrokenRepr:
    def __repr__(self):
        raise ValueError("no text today")


class Meta(type):
    def __repr__(cls):
        return "a class of Meta"


class WithMeta(metaclass=Meta):
    pass


class Color(enum.Enum):
    RED = 1


class Flags(enum.IntFlag):
    ONE = 1
    TWO = 2


Point = collections.namedtuple("Point", "x y")


def function(a, b=2, *args, c: int = 3, **kwargs) -> "str":
    """Has a signature."""


class Methods:
    def method(self, a):
        pass

    @classmethod
    def of_class(cls):
        pass

    @staticmethod
    def static(b):
        pass

    def __repr__(self):
        return "Methods()"


def _generator():
    yield 1


def _cycles():
    items = [1]
    items.append(items)
    table = {"a": items}
    table["self"] = table
    ordered = collections.OrderedDict(a=1)
    ordered["self"] = ordered
    return [items, table, ordered]


_long = ["word" * n for n in range(12)]
THINGS = {
    "dict": {"b": [1, 2.5], "a": (1,), 3: {"x": None}},
    "empty dict": {},
    "long dict": {word: list(range(n)) for n, word in enumerate(_long)},
    "list": [1, "two", b"three", 4.5, None, True],
    "long list": list(range(3000)),
    "nested list": [[word, [word]] for word in _long],
    "set": {3, 1, 2},
    "empty set": set(),
    "set that cannot be sorted": {1, 2j, (3,)},
    "frozenset": [frozenset({2, 1})],
    "tuple": [(1,), (), (1, 2)],
    "bytearray": bytearray(b"abc"),
    "OrderedDict": collections.OrderedDict(b=1, a=[2]),
    "empty OrderedDict": collections.OrderedDict(),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "Counter": collections.Counter("abracadabra"),
    "empty Counter": collections.Counter(),
    "deque": collections.deque([1, [2]]),
    "bounded deque": collections.deque([1, 2, 3], maxlen=3),
    "ChainMap": collections.ChainMap({"a": 1}, {"b": 2}),
    "UserDict": collections.UserDict(a=1),
    "UserList": collections.UserList([1, 2]),
    "UserString": collections.UserString("text"),
    "SimpleNamespace": types.SimpleNamespace(a=1, b=[2]),
    "mappingproxy": types.MappingProxyType({"a": 1}),
    "class members": vars(Lines)["__repr__"],
    "pattern": re.compile("a(b)", re.I | re.M),
    "patterns": [re.compile("a")],
    "match": re.match("a(b)", "abc"),
    "environ": os.environ,
    "function": function,
    "lambda": lambda x, *, y: x,
    "builtin": len,
    "builtin of a module": os.getpid,
    "partial": functools.partial(int, base=2),
    "method": Methods().method,
    "class method": Methods.of_class,
    "static method": Methods.static,
    "method of a builtin": [].append,
    "descriptor of a method": str.join,
    "slot wrapper": str.__add__,
    "property": vars(types.DynamicClassAttribute).get("nothing", property()),
    "class": Lines,
    "builtin class": dict,
    "class with a metaclass": WithMeta,
    "exception class": MyError,
    "exception": MyError("a", 1),
    "builtin exception": KeyError("k"),
    "exceptions": [MyError("a", [1])],
    "super": super(MyDict, MyDict(a=1)),
    "MyDict": MyDict(a=1, b=[2]),
    "MyDict with a repr": MyDictWithRepr(a=1),
    "MyList": MyList([1, 2]),
    "MySet": MySet([1, 2]),
    "MyCounter": MyCounter("aab"),
    "namedtuple": [Point(1, 2.5)],
    "enum": [Color.RED, Flags.ONE | Flags.TWO],
    "enum class": Color,
    "plain": Plain(),
    "plains": [Plain()],
    "lines": Lines(),
    "list of lines": [Lines(), Lines()],
    "pretty": Pretty(1, [2], "three" * 30),
    "pretties": {"a": Pretty(Pretty(), Pretty(1))},
    "generator": _generator(),
    "iterator": iter([1]),
    "keys": {"a": 1}.keys(),
    "items": collections.OrderedDict(a=1).items(),
    "memoryview": memoryview(b"abc"),
    "dates": [datetime.datetime(2020, 1, 2), datetime.timedelta(3)],
    "date": datetime.datetime(2020, 1, 2),
    "range and slice": [range(3), slice(1, 2), Ellipsis, NotImplemented],
    "module": types,
    "floats": [0.1, 1e300, float("nan"), 2.0],
    "float": {"x": 3.14159},
    "numbers": [10**30, 1j, True],
    "texts": ["a\nb", "it's", "é"],
    "bundle": Bundle(a=1),
    "html": Html(a=1),
    "broken": [BrokenRepr()],
    "file": open(os.devnull),  # noqa: SIM115
    "code": function.__code__,
    "generic alias": list[int],
    "union": [int | None],
    "cycles": _cycles(),
    "weak": __import__("weakref").WeakValueDictionary(),
}


def thing(name):
    return THINGS[name]


def names():
    return tuple(THINGS)


def register():
    """As a library may that is used in notebooks, such as SymPy."""
    from IPython import get_ipython

    formatter = get_ipython().display_formatter.formatters["text/plain"]
    formatter.for_type(Plain, lambda o, p, cycle: p.text("Plain of its library"))
    formatter.for_type(bytearray, lambda o, p, cycle: p.text("bytes of its library"))
