"""sqlite3, isolated and used as in its documentation."""

import datetime

import pytest
from behaviour.harness import both, raises, worlds  # noqa: F401

_open = []


@pytest.fixture(autouse=True)
def connections_are_closed():
    yield
    while _open:
        _open.pop().close()


def connect(sqlite3, **options):
    _open.append(sqlite3.connect(":memory:", **options))
    return _open[-1]


def base(sqlite3, **options):
    connection = connect(sqlite3, **options)
    connection.execute("create table t(name, n)")
    connection.executemany("insert into t values (?, ?)", [("a", 1), ("b", 2), ("c", 3)])
    return connection


@both
def test_queries(sqlite3, tmp_path):
    con = base(sqlite3)
    cursor = con.cursor()
    cursor.executemany("insert into t values (?, ?)", ((c, ord(c)) for c in "xy"))
    cursor.execute("insert into t values (:name, :n)", {"name": "d", "n": None})
    rows = list(cursor.execute("select * from t order by name"))
    with sqlite3.connect(tmp_path / "file.db") as file:
        con.commit()
        con.backup(file)
        copied = file.execute("select count(*) from t").fetchone()
    file.close()
    return (
        rows, cursor.rowcount, cursor.lastrowid, [d[0] for d in cursor.description], con.execute("select * from t").fetchmany(2),
        cursor.execute("select n from t").fetchone(), next(con.execute("select 1")), con.total_changes, copied, con.in_transaction,
        con.execute("select ?, ?, ?", (1.5, b"x\0", None)).fetchall(), list(con.iterdump())[0], sqlite3.paramstyle,
        (tmp_path / "file.db").exists(), con.execute("select 1 where 0").fetchone(),
    )  # fmt: skip


@both
def test_rows(sqlite3):
    con = base(sqlite3)
    con.row_factory = sqlite3.Row
    row = con.execute("select name, n from t").fetchone()
    con.row_factory = lambda cursor, values: {d[0]: v for d, v in zip(cursor.description, values)}
    mine = con.execute("select * from t").fetchall()
    con.row_factory = None
    con.text_factory = lambda b: b.decode().upper()
    text = con.execute("select name from t").fetchone()
    return row["name"], row[1], row.keys(), tuple(row), dict(row), len(row), row == row, mine, text, isinstance(row, sqlite3.Row)


@both
def test_functions_of_the_session(sqlite3):
    con = base(sqlite3)
    seen = []

    class Longest:
        def __init__(self):
            self.best = ""

        def step(self, value):
            self.best = max(self.best, value * 2)

        def finalize(self):
            return self.best

    con.create_function("half", 1, lambda x: x / 2)
    con.create_aggregate("longest", 1, Longest)
    con.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    con.set_trace_callback(seen.append)
    con.set_authorizer(lambda *args: sqlite3.SQLITE_OK)
    result = (
        con.execute("select half(n) from t").fetchall(), con.execute("select longest(name) from t").fetchone(),
        con.execute("select name from t order by name collate backwards").fetchall(),
    )  # fmt: skip
    con.set_trace_callback(None)
    con.create_function("bad", 0, lambda: 1 / 0)
    return result, seen, type(raises(con.execute, "select bad()")).__name__


@both
def test_adapters_and_converters(sqlite3):
    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __conform__(self, protocol):
            return f"{self.x};{self.y}" if protocol is sqlite3.PrepareProtocol else None

    class Other(Point):
        __conform__ = None

    sqlite3.register_adapter(Other, lambda p: f"other {p.x}")
    sqlite3.register_converter("point", lambda b: tuple(map(float, b.split(b";"))))
    con = connect(sqlite3, detect_types=sqlite3.PARSE_DECLTYPES)
    con.execute("create table p(p point, d date)")
    con.execute("insert into p values (?, ?)", (Point(1, 2), datetime.date(2024, 1, 2).isoformat()))
    return con.execute("select p from p").fetchone(), con.execute("select ?", (Other(5, 6),)).fetchone()


@both
def test_transactions(sqlite3):
    con = base(sqlite3)
    con.commit()
    with con:
        con.execute("insert into t values ('w', 1)")

    def failing():
        with con:
            con.execute("insert into t values ('z', 1)")
            raise KeyError("no")

    error = raises(failing)
    with_iterator = [r for r in con.execute("select name from t")]
    return type(error).__name__, with_iterator


@both
def test_subclasses(sqlite3):
    class Connection(sqlite3.Connection):
        def count(self):
            return self.execute("select count(*) from t").fetchone()[0]

        def cursor(self):
            return super().cursor(Cursor)

    class Cursor(sqlite3.Cursor):
        def first(self, sql):
            return self.execute(sql).fetchone()

    con = base(sqlite3, factory=Connection)
    return con.count(), con.cursor().first("select max(n) from t"), isinstance(con, sqlite3.Connection), type(con).__name__


@both
def test_errors(sqlite3):
    con = base(sqlite3)
    con.execute("create unique index u on t(name)")
    errors = [
        raises(con.execute, "selec"), raises(con.execute, "insert into t values ('a', 1)"), raises(con.execute, "select ?", ()), raises(con.execute, "select ?", (object,)),
        raises(sqlite3.connect, "/no/such/dir/x.db"),
    ]  # fmt: skip
    con.close()
    errors.append(raises(con.execute, "select 1"))
    return [(type(e).__name__, str(e), isinstance(e, sqlite3.Error), getattr(e, "sqlite_errorname", None)) for e in errors]
