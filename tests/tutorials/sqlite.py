# %% [markdown]
# # A small library
#
# Tables, queries, transactions and functions of one's own.
# %%
import sqlite3
# %%
db = sqlite3.connect(":memory:")
db.row_factory = sqlite3.Row
db.executescript("""
    create table author (id integer primary key, name text unique);
    create table book (title text, year integer, author integer references author);
""")
# %%
authors = ["Lem", "Le Guin", "Čapek"]
db.executemany("insert into author (name) values (?)", [(name,) for name in authors])
books = [("Solaris", 1961, 1), ("The Dispossessed", 1974, 2), ("R.U.R.", 1920, 3), ("Fiasco", 1986, 1)]
with db:
    db.executemany("insert into book values (?, ?, ?)", books)
db.total_changes
# %%
for row in db.execute("select title, year from book order by year"):
    print(row["year"], row["title"])
# %%
row = db.execute("select name, count(*) as n from author join book on author = author.id group by name order by n desc").fetchone()
row.keys(), tuple(row), len(row)
# %%
db.create_function("decade", 1, lambda year: year // 10 * 10, deterministic=True)
[tuple(r) for r in db.execute("select decade(year) as d, group_concat(title, '; ') from book group by d order by d")]
# %%
class Median:
    def __init__(self):
        self.values = []

    def step(self, value):
        self.values.append(value)

    def finalize(self):
        return sorted(self.values)[len(self.values) // 2]

db.create_aggregate("median", 1, Median)
db.execute("select median(year) from book").fetchone()[0]
# %%
try:
    with db:
        db.execute("insert into author (name) values ('Strugatsky')")
        db.execute("insert into author (name) values ('Lem')")
except sqlite3.IntegrityError as error:
    print(type(error).__mro__[1].__name__, error)
db.execute("select count(*) from author").fetchone()[0]
# %%
copy = sqlite3.connect(":memory:")
db.backup(copy)
copy.execute("select sum(year) from book").fetchone()
# %%
"\n".join(line for line in copy.iterdump() if "insert" in line.lower())[:120]
# %%
copy.close()
try:
    copy.execute("select 1")
except sqlite3.ProgrammingError as error:
    print(error)
# %%
db.close()
