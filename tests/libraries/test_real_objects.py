"""Objects of pandas, Arrow and Pillow, and NumPy's scalars and dtypes, as arguments and results: real on both sides,
and changed as in-process."""

import datetime
import enum
import io
import pickle
import subprocess
import sys

import dateutil.tz
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401
from PIL import Image, ImageDraw

from ipython_isolation import IsolationContext, ProcessTerminationError, isproxy


def mixed():
    return pd.DataFrame(
        {
            "whole": np.arange(4),
            "real": np.arange(4) / 2,
            "text": ["a", "b", None, "d"],
            "when": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-02-29"]),
            "kind": pd.Categorical(["x", "y", "x", None]),
            "perhaps": pd.array([1, None, 3, 4], dtype="Int64"),
            "yes": [True, False, True, True],
        },
        index=list("wxyz"),
    )


def labelled():
    frame = pd.DataFrame({"a": [1, 2]})
    frame.attrs["unit"] = "cm"
    return frame.set_flags(allows_duplicate_labels=False)


TABLES = {
    "mixed": mixed,
    "empty": pd.DataFrame,
    "no rows": lambda: mixed().iloc[:0],
    "one block": lambda: pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list("abcd")),
    "big": lambda: pd.DataFrame(np.arange(400_000.0).reshape(100_000, 4)),
    "levels": lambda: mixed().set_index(["text", "whole"]),
    "columns of levels": lambda: pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "attributes": labelled,
    "zones": lambda: pd.DataFrame({"t": pd.date_range("2020-01-01", periods=3, tz="Europe/Berlin")}),
    "periods": lambda: pd.DataFrame({"p": pd.period_range("2020-01", periods=3, freq="M")}),
    "intervals": lambda: pd.DataFrame({"i": pd.interval_range(0, 3)}),
    "texts as objects": lambda: pd.DataFrame({"o": np.array(["a", "b", None], dtype=object)}),
    "numbers as objects": lambda: pd.DataFrame({"o": np.array([1, 10**30], dtype=object)}),
    "same name twice": lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "of Arrow": lambda: pd.DataFrame({"a": pd.array([1, None], dtype="int64[pyarrow]")}),
    "a view": lambda: mixed().iloc[1:3, 1:],
    "sparse": lambda: pd.DataFrame({"s": pd.arrays.SparseArray([0, 0, 1])}),
    "series": lambda: pd.Series([1.5, 2.5], name="s", index=["a", "b"]),
    "series of text": lambda: pd.Series(["a", "b"], name="s"),
    "index": lambda: pd.Index([3, 1, 2], name="i"),
    "range": lambda: pd.RangeIndex(3),
    "times": lambda: pd.date_range("2020-01-01", periods=3, freq="h"),
    "index of levels": lambda: pd.MultiIndex.from_product([[1, 2], ["a", "b"]], names=["n", "t"]),
    "index of kinds": lambda: pd.CategoricalIndex(["a", "b", "a"]),
}


def shown(o):
    dtypes = str(o.dtypes) if isinstance(o, pd.DataFrame) else str(o.dtype)
    return type(o).__name__, repr(o), dtypes, str(getattr(o, "attrs", "")), str(getattr(o, "flags", ""))


SHOW = "r = type(o).__name__, repr(o), str(o.dtypes if type(o).__name__ == 'DataFrame' else o.dtype), str(getattr(o, 'attrs', '')), str(getattr(o, 'flags', ''))"


@pytest.mark.parametrize("name", TABLES)
@both
def test_tables_are_read(load, name):
    workshop = load("workshop")
    o = TABLES[name]()
    before = shown(o)
    assert workshop.is_real(o)
    seen = workshop.do(SHOW, o)
    assert seen == before == shown(o)
    assert workshop.identity(o) is o
    assert workshop.do("r = [o, (o, {'o': o})]; r = r[0] is r[1][0]", o)
    return seen


@pytest.mark.parametrize("name", TABLES)
@both
def test_tables_move_as_results(load, name):
    workshop = load("workshop")
    workshop.keep(TABLES[name]())
    o = workshop.do("import workshop; r = workshop.kept.pop()")
    copy = workshop.do("r = o.copy() if type(o).__name__ != 'RangeIndex' else o[:]", TABLES[name]())
    assert not isproxy(copy) and type(copy) is type(TABLES[name]())
    o.names if isinstance(o, pd.Index) else o.attrs.update(more=1)
    return shown(o), shown(copy)


CHANGES = [
    "o.iloc[0, 0] = 77",
    "o.loc['x', 'real'] = 8.5",
    "o['real'] = o['real'] * 2",
    "o['new'] = 1",
    "del o['text']",
    "o.insert(0, 'first', ['p', 'q', 'r', 's'])",
    "o.loc['v'] = o.loc['w']",
    "o.drop('w', inplace=True)",
    "o.rename(columns={'whole': 'W'}, inplace=True)",
    "o.index = [1, 2, 3, 4]",
    "o.columns.name = 'C'",
    "o.index.name = 'I'",
    "o.attrs['unit'] = 'm'",
    "o.sort_values('real', ascending=False, inplace=True)",
    "o.fillna({'text': '-'}, inplace=True)",
    "o['kind'] = o['kind'].cat.add_categories('z')",
    "o['perhaps'] = o['perhaps'] + 1",
    "o.at['y', 'text'] = 'set'",
    "o.reset_index(inplace=True)",
    "o.flags.allows_duplicate_labels = False",
    "o.iloc[0, 0] = 77; o['new'] = 2; 1 / 0",
    "f(); r = repr(o)",
    "o['mine'] = 1; f(); r = repr(o)",
    "o['mine'] = 1; f(); o['later'] = 2; r = repr(o)",
    "r = f(o)",
]


@pytest.mark.parametrize("source", CHANGES)
@both
def test_tables_are_changed(load, source):
    workshop = load("workshop")
    o = mixed()
    column, rows, copy = o["real"], o.iloc[1:3], o.copy(deep=False)

    def f(given=o):
        assert given is o
        o["theirs"] = len(o.columns)
        return repr(o)

    try:
        result = workshop.do(source, o, f)
    except ZeroDivisionError as error:
        result = str(error)
    # Others of the same memory are as in-process, too.
    return result, shown(o), shown(column), shown(rows), shown(copy), o["real"] is o["real"]


@pytest.mark.parametrize("source", ["o.iloc[0] = 9", "o[:] = 0.5", "o.name = 'n'", "o['z'] = 1", "o.index = [5, 6]", "o.attrs['a'] = 1"])
@both
def test_series_are_changed(load, source):
    o = TABLES["series"]()
    load("workshop").do(source, o)
    return shown(o), o.name


@both
def test_an_index_is_renamed(load):
    frame = mixed()
    load("workshop").do("o.name = 'n'", frame.index)
    return frame.index.name, shown(frame)


@both
def test_big_tables_are_changed(load):
    workshop = load("workshop")
    o = TABLES["big"]()
    seen = []
    for step in range(4):
        seen.append(workshop.do("r = float(o.to_numpy().sum())", o))
        workshop.do("o.iloc[50_000, 1] = -1.0", o)
        o.iloc[step, 2] = 3.0
        seen.append((float(o.to_numpy().sum()), o.iloc[50_000, 1]))
    return seen


@both
def test_tables_inside_of_others(load):
    workshop = load("workshop")
    o = {"a": [mixed()], "b": mixed()}
    workshop.do("o['a'][0]['n'] = 1; o['b'].drop(columns='real', inplace=True); o['a'].append(o['b'])", o)
    return [shown(x) for x in o["a"]], shown(o["b"]), o["a"][1] is o["b"]


@both
def test_what_the_child_keeps(load):
    """An object that has others is what it was, and changes are seen."""
    workshop = load("workshop")
    workshop.do("import workshop, pandas; workshop.kept[:] = [pandas.DataFrame({'a': [1, 2]})]")
    kept = workshop.do("import workshop; r = workshop.kept[0]")
    kept["b"] = 3
    workshop.do("import workshop; workshop.kept[0]['c'] = 4")
    return list(kept.columns), kept["c"].tolist(), isinstance(kept, kept.__class__), workshop.is_kept(kept)


@both
def test_scalars_of_pandas(load):
    workshop = load("workshop")
    o = [
        pd.Timestamp("2020-01-02 03:04:05.000000006"),
        pd.Timestamp("2020-06-01", tz="Europe/Berlin"),
        pd.Timedelta("1 days 2ns"),
        pd.Period("2020-03", "M"),
        pd.Interval(1, 2, closed="both"),
        pd.CategoricalDtype(["a", "b"], ordered=True),
        pd.StringDtype(),
        pd.Int64Dtype(),
        pd.offsets.MonthEnd(2),
        pd.NaT,
        pd.NA,
    ]
    seen = workshop.do("r = repr(o), [type(x).__name__ for x in o]", o)
    new = workshop.do("import pickle; r = pickle.loads(o)", pickle.dumps(o))
    assert not any(map(isproxy, new)) and all(map(workshop.is_real, o))
    assert new[-2] is pd.NaT and new[-1] is pd.NA
    return seen, repr(new), [type(a) is type(b) and (a is b or a == b) for a, b in zip(o, new)]


# -- what goes by reference ------------------------------------------------------------------------------------------


class Thing:
    def __init__(self):
        self.seen = []


@both
def test_tables_of_objects(load):
    """A copy could not stand for what is in them."""
    workshop = load("workshop")
    thing = Thing()
    frame = pd.DataFrame({"o": [thing, None], "n": [1, 2]})
    workshop.do("o['o'].iloc[0].seen.append(1); o['m'] = 3", frame)
    series = pd.Series([[1], [2]])
    workshop.do("o[0].append(5)", series)
    return thing.seen, list(frame.columns), frame["o"].iloc[0] is thing, series.tolist()


class Frame(pd.DataFrame):
    """A class of the session."""

    @property
    def _constructor(self):
        return Frame

    def double(self):
        return self * 2


@both
def test_tables_of_other_classes(load):
    workshop = load("workshop")
    frame = Frame({"a": [1, 2]})
    seen = workshop.do("o['b'] = 3; r = o.double()['b'].tolist()", frame)
    return seen, type(frame).__name__, frame["b"].tolist()


def test_the_library_isolated():
    with IsolationContext(restart="auto", rollback="off") as context:
        pandas = context.load_module("pandas")
        workshop = context.load_module("workshop")
        frame = pandas.DataFrame({"a": [1, 2]})
        assert isproxy(frame) and workshop.identity(frame) is frame
        workshop.do("o['b'] = 3", frame)
        assert list(frame.columns) == ["a", "b"]
        real = pd.DataFrame({"a": [1]})
        workshop.do("o['b'] = 3", real)
        assert list(real.columns) == ["a", "b"]


def test_a_child_without_the_library(tmp_path):
    """What it cannot have it gets as a proxy."""
    (tmp_path / "no_pandas.py").write_text(
        "import sys\nsys.modules['pandas'] = None\nclass Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Finder())\ndel sys.modules['pandas']\n"
        "def columns(frame):\n    from ipython_isolation import isproxy\n    return isproxy(frame), list(frame.columns)\n"
    )
    with IsolationContext(rollback="off") as context:
        module = context.load_module("no_pandas", [str(tmp_path)])
        assert module.columns(pd.DataFrame({"a": [1]})) == (True, ["a"])


# -- what a copy cannot stand for -------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Zone(datetime.tzinfo):
    """A time zone of the program's."""

    def utcoffset(self, when):
        return datetime.timedelta(hours=1)

    def dst(self, when):
        return None

    def tzname(self, when):
        return "Z"


def small():
    return pd.DataFrame({"a": [1.0, 2.0], "t": ["x", "y"]})


@pytest.mark.parametrize(
    "source",
    [
        "o['f'] = [lambda: 4, len]; r = 1",
        "import sys; o['f'] = [sys, 1]",
        "o['f'] = [f, 1]",
        "o['f'] = [[1, 2], {3}]",
        "o.attrs['f'] = f",
        "o.attrs['f'] = lambda: 3",
        "import zoo; o['f'] = [zoo.Dog('rex'), 0]; o.index = [zoo.Dog('a').name, 'b']",
        "object.__setattr__(o, 'more', [1])",
    ],
)
@both
def test_what_is_put_into_a_table(load, source):
    """It goes by its own rules: a function can be called, an object of the session is itself."""
    load("zoo")
    workshop = load("workshop")
    o, thing = small(), Thing()
    workshop.do(source, o, thing)
    cells = list(o["f"]) if "f" in o else []
    facts = [cell is thing or (callable(cell), isinstance(cell, Thing), type(cell).__name__) for cell in cells]
    attr = o.attrs.get("f")
    return facts, attr is thing, callable(attr) and attr(), list(o.columns), list(o.index), getattr(o, "more", None)


def test_nothing_is_imported_here_for_it(context):
    """What an isolated module has put into a table stays there."""
    workshop, zoo = context.load_module("workshop"), context.load_module("zoo")
    before = sys.modules.pop("zoo", None)
    try:
        o = small()
        workshop.do("import zoo; o['f'] = [zoo.Dog('rex'), 0]", o)
        assert isproxy(o["f"][0]) and isinstance(o["f"][0], zoo.Dog) and "zoo" not in sys.modules
    finally:
        sys.modules.update({} if before is None else {"zoo": before})


@both
def test_what_a_callback_puts_into_a_table(load):
    workshop = load("workshop")
    o, thing = small(), Thing()

    def f():
        o["f"] = [thing, len]

    return workshop.do("f(); r = list(o.columns), o['f'][1]('abc')", o, f), o["f"][0] is thing


@both
def test_objects_of_the_program_in_others(load):
    """They are what they are, and are not copied by the name of their class."""
    workshop = load("workshop")
    seen = []
    table, image = small(), Image.new("L", (3, 3))
    for holder in (table.attrs, image.info):
        holder["f"] = Thing()
    seen.append(workshop.do("o.attrs['f'].seen.append(1); r = o.attrs['f'].seen", table))
    seen.append(workshop.do("o.info['f'].seen.append(2); r = o.info['f'].seen", image))
    seen.append(workshop.do("r = len(o), o.name[0].seen", pd.Series([1], name=(Thing(),))))
    seen.append(workshop.do("r = o[0] + 1", pd.Series([Colour.RED], dtype=object)))
    zones = [pd.Timestamp("2020-01-01", tz=Zone()), datetime.datetime(2020, 1, 1, tzinfo=Zone())]
    zones += [pd.Timestamp("2020-01-01", tz=dateutil.tz.gettz("Europe/Berlin")), pd.date_range("2020", periods=2, tz=Zone())[0]]
    seen.append([workshop.do("r = str(o.utcoffset())", zone) for zone in zones])
    seen.append(workshop.do("r = o.kind", np.dtypes.StringDType(na_object=Thing())))
    return seen, table.attrs["f"].seen, image.info["f"].seen


@both
def test_whoever_holds_on_to_parts(load):
    workshop = load("workshop")
    o, image = small(), picture()
    attrs, index, texts, info = o.attrs, o.index, o.attrs.setdefault("l", [1]), image.info
    workshop.do("o.attrs['l'].append(2); o.attrs['k'] = 1; o.index.name = 'q'", o)
    workshop.do("o.info['k'] = [1]", image)
    empty = small()
    attrs_of_empty = empty.attrs
    workshop.do("o.attrs['k'] = 1", empty)
    return texts, attrs, o.attrs is attrs, index.name, o.index is index, info, image.info is info, attrs_of_empty, empty.attrs is attrs_of_empty


@both
def test_whoever_has_the_memory(load):
    """Arrays of a table's memory see what is written in place, and not what takes its place."""
    workshop = load("workshop")
    a, b = np.arange(6.0).reshape(3, 2), np.arange(3.0)
    frame, view = pd.DataFrame(a, copy=False), pd.DataFrame({"b": b}, copy=False)
    values = frame.to_numpy()
    workshop.do("o.iloc[0, 0] = 55", frame)
    workshop.do("o['b'] = o['b'] * 2", view)
    workshop.do("import numpy, pandas, workshop; workshop.kept[:] = [numpy.ones((3, 2))]")
    kept = workshop.do("import pandas, workshop; r = pandas.DataFrame(workshop.kept[0], copy=False)")
    kept.iloc[0, 0] = 66
    workshop.do("from PIL import Image; import workshop; i = Image.new('L', (2, 2)); workshop.kept += [i.load(), i]")
    image = workshop.do("import workshop; r = workshop.kept.pop()")
    image.putpixel((0, 0), 7)
    return a[0, 0], values[0, 0], b.tolist(), workshop.do("import workshop; r = float(workshop.kept[0][0, 0]), workshop.kept[1][0, 0]")


@both
def test_images_of_files(load):
    workshop = load("workshop")
    drafted = workshop.do("r = o.draft('L', (16, 16)) is not None", from_file("JPEG"))
    image = from_file("JPEG")
    image.load()
    seen = workshop.do("r = o.format, o.layers, o.quantization == f, o.tile", image, image.quantization)
    workshop.do("o.close()", image)
    palette = Image.new("P", (2, 2))
    palette.putpalette([1, 2, 3, 128] * 256, "RGBA")
    own = Image.new("L", (3, 3))
    own.note = 3
    workshop.do("o.note += 1; o.other = [1]", own)
    pixel = workshop.do("r = o.convert('RGBA').getpixel((0, 0))", palette)
    return drafted, seen, image.size, str(raises(image.tobytes)), pixel, own.note, own.other


@both
def test_a_view_that_is_released(load):
    workshop = load("workshop")
    data = bytearray(5)
    workshop.do("o[0] = 7; o.release()", memoryview(data))
    big = bytearray(1_000_000)
    workshop.do("with o: o[3] = 7", memoryview(big))
    return data, big[:5]


def test_a_change_that_cannot_be_told():
    """An error, whatever it is, and no hang; other arguments get what was done to them, and the next call works."""
    with IsolationContext(rollback="off") as context:
        workshop = context.load_module("workshop")
        table, items = pd.DataFrame({"a": [1]}), [1]
        with pytest.raises(TypeError, match="DataFrame argument was given something of the module 'workshop'"):
            workshop.do("import workshop, pandas; o[0].columns = pandas.Index([workshop.Thing()]); o[1].append(2)", (table, items))
        assert items == [1, 2] and list(table.columns) == ["a"]
        assert workshop.identity(3) == 3


# -- death -----------------------------------------------------------------------------------------------------------


def test_results_outlive_the_child(context):
    workshop, deaths = context.load_module("workshop"), context.load_module("_deaths")
    frame = workshop.do("import pandas, numpy; r = pandas.DataFrame(numpy.ones((100_000, 3)))")
    mean = workshop.do("import numpy; r = numpy.ones(5).mean()")
    for _ in range(2):
        with pytest.raises(ProcessTerminationError):
            deaths.segfault()
    assert float(frame.to_numpy().sum()) == 300_000.0
    assert type(mean) is np.float64 and mean == 1.0


@pytest.mark.no_asan
def test_a_call_that_dies_has_changed_nothing(context):
    workshop = context.load_module("workshop")
    frame, image = TABLES["big"](), Image.new("L", (4, 4))
    before = frame.copy()
    for o, write in ((frame, "o.iloc[:] = 7.0"), (image, "o.putpixel((0, 0), 9)")):
        with pytest.raises(ProcessTerminationError):
            workshop.do(f"{write}; import ctypes; ctypes.string_at(0)", o)
    assert frame.equals(before) and image.getpixel((0, 0)) == 0
    assert workshop.do("r = float(o.iloc[3, 0])", frame) == 12.0


# -- NumPy -----------------------------------------------------------------------------------------------------------

SCALARS = [
    np.float64(1.5), np.float32(0.1), np.float16(-0.0), np.longdouble(1) / 3, np.int8(-3), np.uint64(2**64 - 1), np.longlong(5), np.intc(-1),
    np.int64(5), np.True_, np.False_, np.complex64(1 + 2j), np.complex128(complex("nan")), np.str_("aä\U0001f40d"), np.str_(""), np.bytes_(b"x\0y"),
    np.datetime64("2020-01-02T03", "s"), np.datetime64("NaT", "s"), np.timedelta64(5, "D"), np.float64("nan"), np.float64(-np.inf),
]  # fmt: skip


@both
def test_scalars_of_numpy(load):
    workshop = load("workshop")
    seen = []
    for o in SCALARS:
        there = workshop.do("r = type(o).__name__, repr(o), str(o.dtype)", o)
        assert there == (type(o).__name__, repr(o), str(o.dtype))
        assert workshop.is_real(o) and workshop.identity(o) is o
        back = workshop.do("import numpy; r = numpy.array([o])[0]", o)
        assert type(back) is type(o) and back.dtype == o.dtype
        seen.append((there, repr(back)))
    mean = workshop.do("r = o.mean()", np.arange(5.0))
    assert type(mean) is np.float64 and isinstance(mean, np.floating)
    return seen, mean.item(), workshop.do("r = o.sum(axis=0)[1]", np.ones((3, 2))) + np.float32(1)


@both
def test_records_of_numpy(load):
    """A record may be a part of its array."""
    workshop = load("workshop")
    a = np.zeros(2, [("x", "i4"), ("y", "f8")])
    workshop.do("o['x'] = 5", a[1])
    return a.tolist(), workshop.do("r = o['y']", a[0])


@both
def test_dtypes(load):
    workshop = load("workshop")
    texts = ["f8", ">f8", "O", "U5", "S", "M8[ns]", "m8[s]", "V8", "g", "?", "q", "l", "e", "D"]
    dtypes = [*map(np.dtype, texts), np.dtype([("a", "f8"), ("b", "O")]), np.dtype([("a", "i4", (2,))])]
    seen = []
    for o in dtypes:
        assert workshop.is_real(o) and workshop.identity(o) is o
        back = workshop.do("import numpy; r = numpy.empty(0, o).dtype", o)
        assert type(back) is type(np.empty(0, o).dtype) and back == np.empty(0, o).dtype
        seen.append((repr(back), back is np.empty(0, o).dtype, workshop.do("import numpy; r = o is numpy.dtype(o.str)", o)))
    return seen, workshop.do("r = o.dtype.type", np.ones(2)) is np.float64, workshop.do("import numpy; r = numpy.ndarray") is np.ndarray


@both
def test_ufuncs(load):
    workshop = load("workshop")
    assert workshop.is_real(np.sin) and workshop.do("import numpy; r = numpy.add") is np.add
    return workshop.do("import numpy; r = o is numpy.sin, o(0.0)", np.sin), workshop.identity(np.hypot) is np.hypot


@both
def test_numpy_is_compared_with_numbers(load):
    workshop = load("workshop")
    x = workshop.do("import numpy; r = numpy.float64(2.5)")
    return x == 2.5, 2.5 == x, x + 1, 1 + x, round(x), f"{x:.2f}", [1, 2, 3][workshop.do("import numpy; r = numpy.int64(1)")], bool(x)


# -- Pillow ----------------------------------------------------------------------------------------------------------


def picture(mode="RGB", size=(40, 30)):
    image = Image.new("RGB", size, (200, 100, 50))
    image.paste((0, 0, 255), (5, 5, 20, 20))
    return image.convert(mode)


def from_file(kind, **options):
    out = io.BytesIO()
    picture().save(out, kind, **options)
    return Image.open(out)


IMAGES = {
    **{mode: lambda mode=mode: picture(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA")},
    "big": lambda: picture(size=(1000, 800)),
    "png": lambda: from_file("PNG", dpi=(300, 300)),
    "jpeg": lambda: from_file("JPEG", quality=70),
    "tiff": lambda: from_file("TIFF"),
    "bmp": lambda: from_file("BMP"),
}


def facts(o):
    palette = o.getpalette() and o.getpalette()[:12]
    return type(o).__name__, o.format, o.mode, o.size, palette, sorted(k for k, v in o.info.items()), hash(o.tobytes())


@pytest.mark.parametrize("name", IMAGES)
@both
def test_images_are_read(load, name):
    workshop = load("workshop")
    o = IMAGES[name]()
    before = facts(o)
    assert workshop.is_real(o)
    code = "p = o.getpalette(); r = type(o).__name__, o.format, o.mode, o.size, p and p[:12], sorted(o.info), o.tobytes()"
    seen = workshop.do(code, o)
    assert seen[:6] == before[:6] and hash(seen[6]) == before[6]
    assert workshop.identity(o) is o and facts(o) == before
    copy = workshop.do("r = o.copy()", o)
    assert not isproxy(copy) and copy.tobytes() == o.tobytes()
    return facts(copy)[:6], seen[:6], getattr(o, "layers", 0), workshop.do("r = getattr(o, 'layers', 0)", o)


@pytest.mark.parametrize(
    "source",
    [
        "o.putpixel((1, 2), (9, 8, 7))",
        "o.paste((1, 1, 1), (0, 0, 5, 5))",
        "from PIL import ImageDraw; ImageDraw.Draw(o).line((0, 0, 39, 29), fill='red')",
        "o.thumbnail((10, 10))",
        "o.putalpha(77)",
        "o.info['note'] = 'x'",
        "o.putpixel((1, 2), (9, 8, 7)); f(o); r = o.getpixel((0, 0))",
        "o.load()[3, 3] = (4, 5, 6)",
    ],
)
@both
def test_images_are_changed(load, source):
    o = picture()
    draw = ImageDraw.Draw(o)
    o.info["old"] = "y"

    def f(given):
        assert given is o
        o.putpixel((0, 0), (250, 251, 252))

    result = load("workshop").do(source, o, f)
    if o.size == (40, 30) and o.mode == "RGB":
        draw.point((39, 29), fill=(1, 2, 3))  # who has drawn on it draws on
    return result, facts(o)[:6], o.getpixel((0, 0)), list(o.getdata())[-1], dict(o.info), o.getpixel((3, 3))


@both
def test_images_with_several_frames(load):
    out = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (90 * i, 0, 0)) for i in range(3)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    o = Image.open(out)
    return load("workshop").do("o.seek(2); r = o.tell(), o.n_frames, o.size", o), o.tell()


# -- Arrow -----------------------------------------------------------------------------------------------------------

ARROW = {
    "table": lambda: pa.table({"a": [1, 2, None], "t": ["x", None, "z"]}),
    "big": lambda: pa.table({"a": np.arange(200_000), "b": np.ones(200_000)}),
    "slice": lambda: pa.table({"a": np.arange(200_000)}).slice(1000, 5),
    "batch": lambda: pa.record_batch({"a": [1.5, 2.5]}),
    "array": lambda: pa.array([1, None, 3]),
    "nested": lambda: pa.array([[1, 2], None, [3]]),
    "structs": lambda: pa.array([{"x": 1, "y": "a"}, None]),
    "dictionary": lambda: pa.array(["a", "b", "a"]).dictionary_encode(),
    "chunks": lambda: pa.chunked_array([[1, 2], [3]]),
    "bools": lambda: pa.array([True, None, False]),
    "times": lambda: pa.array(pd.date_range("2020", periods=2, tz="UTC")),
    "scalar": lambda: pa.scalar(5.5),
    "schema": lambda: pa.schema([("a", pa.int64()), ("b", pa.list_(pa.string()))], metadata={"k": "v"}),
    "type": lambda: pa.list_(pa.float32()),
    "field": lambda: pa.field("f", pa.int8(), nullable=False),
}


@pytest.mark.parametrize("name", ARROW)
@both
def test_arrow(load, name):
    workshop = load("workshop")
    o = ARROW[name]()
    assert workshop.is_real(o) and workshop.identity(o) is o
    seen = workshop.do("r = type(o).__name__, str(o)[:500]", o)
    workshop.keep(o)
    back = workshop.do("import workshop; r = workshop.kept[0]")
    assert not isproxy(back) and type(back) is type(o) and back.equals(o)
    if hasattr(o, "validate"):
        back.validate()
    return seen, str(back)[:500]


@both
def test_arrow_computes(load):
    workshop = load("workshop")
    sums = [workshop.do("import pyarrow.compute as pc; r = pc.sum(o['b']).as_py()", ARROW["big"]()) for _ in range(3)]
    result = workshop.do("r = o.filter(o['a'].is_valid())", ARROW["table"]())
    return sums, result.to_pylist(), result.num_rows


def test_nothing_is_imported_for_it():
    """Neither here nor in the child, as long as no such object crosses."""
    script = (
        "import sys, ipython_isolation as ii\n"
        "with ii.IsolationContext() as c:\n"
        "    m = c.load_module('operator')\n"
        "    m.add([1], [2])\n"
        "    names = ('pandas', 'numpy', 'PIL', 'pyarrow', 'ipython_isolation.libraries')\n"
        "    there = c.call(lambda names: [n for n in names if n in __import__('sys').modules], names)\n"
        "    print([n for n in names if n in sys.modules], there)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[] []", done.stderr
