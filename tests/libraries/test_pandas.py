"""pandas, isolated and used as in its own introduction; numpy is that of the session."""

import copy
import io
import pickle

import ipython_isolation
import numpy as np
from behaviour.harness import both, raises, worlds  # noqa: F401

CSV = "name,team,points,when\nann,red,3,2024-01-01\nbob,blue,5,2024-01-02\ncid,red,7,2024-01-05\ndee,blue,,2024-01-09\n"


def frame(pandas):
    return pandas.read_csv(io.StringIO(CSV), parse_dates=["when"])


@both
def test_making(pandas):
    df = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"], "c": np.arange(3) / 2})
    s = pandas.Series([1, 3, 5, np.nan, 6, 8], name="s")
    dates = pandas.date_range("20130101", periods=6)
    wide = pandas.DataFrame(np.arange(24).reshape(6, 4), index=dates, columns=list("ABCD"))
    records = pandas.DataFrame([{"a": 1, "b": 2}, {"a": 3}])
    return str(df), repr(s), str(dates), str(wide), str(records), df.shape, df.size, len(s), df.ndim


@both
def test_looking(pandas):
    df = frame(pandas)
    buffer = io.StringIO()
    df.info(buf=buffer)
    return (
        str(df.head(2)), str(df.tail(1)), str(df.dtypes), list(df.columns), list(df.index), str(df.describe()),
        df._repr_html_(), str(df.T), list(df), "points" in df, buffer.getvalue(), df.to_string(),
    )  # fmt: skip


@both
def test_selecting(pandas):
    df = frame(pandas)
    return (
        repr(df["points"]), repr(df.points), str(df[["name", "team"]]), str(df[1:3]), str(df[df["points"] > 3]),
        str(df[(df.team == "red") & (df.points < 5)]), str(df.loc[1]), df.loc[1, "name"], str(df.loc[:, ["name"]]),
        str(df.iloc[0]), df.iloc[0, 1], str(df.iloc[[0, 2], 1:3]), df.at[0, "name"], df.iat[1, 2],
        str(df[df["team"].isin(["blue"])]), str(df.query("points > 3")), str(df.filter(like="e")),
        str(df.set_index("name").loc["bob"]), df["points"][0], df["name"].tolist(),
    )  # fmt: skip


@both
def test_setting(pandas):
    df = frame(pandas)
    df["double"] = df["points"] * 2
    df.loc[0, "points"] = 30
    df.loc[:, "k"] = np.array([5] * len(df))
    df.iloc[1, 0] = "BOB"
    df["flag"] = df["points"] > 4
    df["const"] = 1
    df["list"] = [1, 2, 3, 4]
    del df["const"]
    popped = df.pop("k")
    df.columns = [c.upper() for c in df.columns]
    df.index = list("wxyz")
    return str(df), str(popped), str(df.rename(columns={"NAME": "n"})), str(df.drop(columns="TEAM")), str(df.drop("w"))


@both
def test_missing_data(pandas):
    df = frame(pandas)
    return (
        str(df.isna()), str(df.dropna()), str(df.fillna({"points": 0})), df["points"].isna().sum(), df.points.mean(),
        pandas.isna(df.loc[3, "points"]), str(df.points.fillna(df.points.mean())), pandas.NA is pandas.NA,
        pandas.NaT is pandas.NaT, repr(pandas.NA),
    )  # fmt: skip


@both
def test_arithmetic(pandas):
    s, t = pandas.Series([1, 2, 3]), pandas.Series([10, 20, 30])
    results = [s + t, s + 1, 1 + s, 2 ** s, s / 2, 7 // s, -s, s == 2, s > t, s % 2, np.sqrt(s), s + np.arange(3), np.arange(3) + s]
    s += 1
    return [str(r) for r in results], str(s), s.sum(), s.max(), s.std(), (s > 1).all(), bool((s > 9).any()), float(s.median())


@both
def test_grouping(pandas):
    df = frame(pandas)
    groups = df.groupby("team")
    return (
        str(groups["points"].sum()), str(groups["points"].agg(["min", "max"])), str(groups.size()),
        [(name, len(part)) for name, part in groups], str(groups["points"].apply(lambda s: s.max() - s.min())),
        str(groups["points"].transform(lambda s: s - s.mean())), str(groups.get_group("red")),
        str(df.pivot_table(values="points", index="team", aggfunc="sum")), str(df["team"].value_counts()),
        str(groups.agg(total=("points", "sum"), who=("name", list))), str(pandas.crosstab(df.team, df.name)),
    )  # fmt: skip


@both
def test_functions_of_the_session(pandas):
    df = frame(pandas)
    seen = []

    def row(r):
        seen.append(r["name"])
        return f"{r['name']}:{r['points']}"

    return (
        str(df.apply(row, axis=1)), seen, str(df["name"].map(str.upper)), str(df["name"].map({"ann": 1, "bob": 2})),
        str(df["points"].apply(lambda x: x * 2)), str(df[["points"]].map(lambda x: -x)),
        str(df[["points"]].apply(np.sum)), df.pipe(lambda d, n: len(d) + n, 5), str(df.assign(p2=lambda d: d.points ** 2)),
        str(df.sort_values("name", key=lambda s: s.str[::-1])),
    )  # fmt: skip


@both
def test_joining_and_sorting(pandas):
    df = frame(pandas)
    right = pandas.DataFrame({"team": ["red", "blue"], "city": ["Rome", "Bonn"]})
    return (
        str(df.merge(right, on="team")), str(pandas.concat([df, df], ignore_index=True)), str(df.sort_values("points", ascending=False)),
        str(pandas.merge(df, right, how="left", on="team")), str(df.sort_index(ascending=False)), str(df.drop_duplicates("team")),
        str(df.join(right, rsuffix="_r")), str(df.nlargest(2, "points")), str(df["points"].rank()), str(df["points"].cumsum()),
        str(df.melt(id_vars="name", value_vars=["points"])), str(df.set_index(["team", "name"]).sort_index()),
    )  # fmt: skip


@both
def test_iterating(pandas):
    df = frame(pandas)
    return (
        [(i, r["name"]) for i, r in df.iterrows()], [t.name for t in df.itertuples()], [tuple(t) for t in df.itertuples()][0][:3],
        list(df["name"]), [c for c, s in df.items()], dict(df["points"].dropna()), list(zip(df.name, df.team)),
        {k: v for k, v in df["name"].items()}, sorted(df["name"], reverse=True), max(df["points"][:3]), sum(df["points"][:3]),
    )  # fmt: skip


@both
def test_text_and_time(pandas):
    df = frame(pandas)
    when = df["when"]
    stamp = pandas.Timestamp("2024-02-29 12:30")
    return (
        str(df["name"].str.upper()), str(df["name"].str.contains("n")), str(when.dt.day), str(when.dt.day_name()), str(when.diff()),
        stamp, stamp + pandas.Timedelta(days=1), stamp.year, stamp.strftime("%d.%m.%Y"), stamp.to_pydatetime(),
        str(pandas.to_datetime(["2024-01-01", "2024-03-01"])), str(df.set_index("when")["points"].resample("W").sum()),
        pandas.to_numeric("5"), str(pandas.to_datetime("2024-01-01") - stamp), stamp > pandas.Timestamp(2020, 1, 1), str(when.max()),
    )  # fmt: skip


@both
def test_files(pandas, tmp_path):
    df = frame(pandas)
    path = tmp_path / "table.csv"
    df.to_csv(path, index=False)
    text, raw = io.StringIO(), io.BytesIO()
    df.to_csv(text)
    df.to_pickle(tmp_path / "t.pkl")
    df.to_json(tmp_path / "t.json")
    with open(path) as file:
        again = pandas.read_csv(file)
    with open(path, "rb") as file:
        binary = pandas.read_csv(file, usecols=[0, 2])
    df.to_csv(raw)
    chunks = [len(part) for part in pandas.read_csv(path, chunksize=3)]
    return (
        path.read_text(), text.getvalue(), raw.getvalue(), str(again), str(binary), chunks, df.to_json(), df.to_dict("records"),
        df.to_dict(), str(pandas.read_pickle(tmp_path / "t.pkl")), str(pandas.read_json(tmp_path / "t.json")), df.to_csv(),
        str(pandas.read_csv(str(path), converters={"name": lambda s: s.title()})),
    )  # fmt: skip


@both
def test_with_numpy_of_the_session(pandas):
    df = frame(pandas)
    values = df["points"].to_numpy()
    matrix = df[["points"]].values
    return (
        isinstance(values, np.ndarray), type(np.asarray(df["points"])) is np.ndarray, np.asarray(df["name"]).tolist(), np.asarray(df["points"]).tolist()[:3], np.array(df[["points"]]).shape, values[:3].sum(),
        matrix.shape, np.mean(df["points"]), np.where(df["points"] > 4, 1, 0).tolist(), np.isnan(df["points"]).tolist(),
        np.log(df["points"]).round(3).tolist()[:3], df["points"].dtype == np.float64, df["points"].dtype.kind,
        str(np.concatenate([df["points"], df["points"]])), np.isnan(values).tolist(), str(pandas.Series(np.float32([1, 2]))),
    )  # fmt: skip


@both
def test_categories_and_indexes(pandas):
    c = pandas.Series(["a", "b", "a"], dtype="category")
    index = pandas.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["l", "n"])
    df = pandas.DataFrame({"v": [1, 2, 3]}, index=index)
    stacked = df.unstack()
    return (
        list(c.cat.categories), str(c.cat.codes), str(df.loc["a"]), df.loc[("a", 2), "v"], str(stacked), str(df.xs(1, level="n")),
        str(pandas.cut([1, 5, 9], bins=[0, 3, 6, 10])), str(pandas.get_dummies(c)), str(df.index), str(df.reset_index()),
        str(pandas.Index([1, 2, 3]).union([5])), pandas.Index(["a", "b"]).get_loc("b"), str(pandas.interval_range(0, 3)),
    )  # fmt: skip


@both
def test_errors(pandas):
    df = frame(pandas)
    errors = [
        raises(lambda: df["nope"]), raises(lambda: df.loc[99]), raises(lambda: df.iloc[99]), raises(lambda: df.nope),
        raises(lambda: bool(df)), raises(lambda: pandas.read_csv("/no/such/file.csv")), raises(pandas.to_datetime, "xx"),
        raises(lambda: df.merge(df, on="zz")), raises(pandas.read_csv, io.StringIO("")), raises(lambda: pandas.DataFrame({"a": [1], "b": [1, 2]})),
        raises(lambda: df.astype("int64")), raises(lambda: df.apply(lambda r: 1 / 0)),
    ]  # fmt: skip
    return [(type(e).__name__, str(e), isinstance(e, (KeyError, ValueError))) for e in errors], isinstance(errors[8], pandas.errors.EmptyDataError)


@both
def test_types(pandas):
    df = frame(pandas)
    return (
        isinstance(df, pandas.DataFrame), type(df) is pandas.DataFrame, isinstance(df["name"], pandas.Series), type(df.index).__name__,
        df.astype({"name": "string"}).dtypes["name"].name, str(df.points.astype("Int64")), pandas.api.types.is_numeric_dtype(df.points),
        df.equals(df.copy()), df is df, df.copy() is df, str(df.memory_usage()), pandas.__version__, pandas.DataFrame.__name__,
    )  # fmt: skip


@both
def test_subclass_and_accessor(pandas):
    class Table(pandas.DataFrame):
        @property
        def _constructor(self):
            return Table

        def total(self):
            return self["a"].sum()

    @pandas.api.extensions.register_series_accessor("twice")
    class Twice:
        def __init__(self, series):
            self.series = series

        def value(self):
            return self.series * 2

    t = Table({"a": [1, 2, 3]})
    return t.total(), type(t).__name__, type(t[t.a > 1]).__name__, t[t.a > 1].total(), str(pandas.Series([1, 2]).twice.value())


def test_copies(bare_context):
    with_pandas = ipython_isolation.import_isolated("pandas", context=bare_context)
    s = with_pandas.Series([1.5, 2.5])  # no texts: they are in arrays of objects, which pass as references
    again = pickle.loads(pickle.dumps(s))
    assert ipython_isolation.isproxy(again) and again.equals(s) and again is not s
    assert str(again) == str(s) and repr(copy.copy(s)) == repr(s) and copy.deepcopy(s).equals(s)


@both
def test_rolling_and_options(pandas):
    s = pandas.Series(range(6))
    with pandas.option_context("display.max_rows", 3):
        short = str(s)
    return short, str(s.rolling(2).mean()), str(s.rolling(3).apply(lambda w: w.max())), str(s.shift()), str(s.expanding().sum()), str(s.ewm(2).mean()), str(s.quantile([0.1, 0.9])), str(s.clip(1, 3)), str(s.between(1, 3))
