"""Tab in a real shell: with isolated modules it finds what it finds with plain ones, in a handful of requests."""

import json
import subprocess
import sys

import pytest
from kernels import run_python, session_environment

#: Whole libraries under the sanitizer take minutes, and are not ours.
pytestmark = [pytest.mark.no_asan, pytest.mark.slow, pytest.mark.timeout(85)]

SETUP = """
import pandas as pd, zoo
df = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
tables = {"x": df, 1: [df]}
class Holder: pass
holder = Holder(); holder.df = df
class Mine(zoo.Animal):
    def introduce(self): return 1
    def more(self, x: int = 2): "m"
mine, animal, bag, held = Mine("x"), zoo.Animal("rex"), zoo.Bag({"abc": 1}), zoo.get_held_list()
zoo_dict, number = zoo.get_held_dict(), 3
"""

#: What is before the cursor.
TEXTS = """
df. | df.gro | df.is | df._ | df.__ | pd. | pd.DataFrame. | pd.DataFrame.gro | pd.api.types.is_ | zoo. | zoo.Animal. | zoo.Color.
zoo.Color.RED. | animal. | animal.introduce. | mine. | Mine. | bag. | held. | zoo_dict. | df.a. | df["a"]. | df.head().
df.groupby("a"). | pd.DataFrame({"a": [1]}). | zoo.Animal("a"). | tables["x"]. | tables[1][0].he | holder.df. | holder.
df[' | zoo_dict[' | tables["x"][' | -df.ab | [df.h | print(animal.na | f'{df.h | [q.na for q in animal. | lambda: animal.n
%time df.h | pd.read_csv(se | animal.rename( | zoo.identity( | df.merge(df, ho | pd.merge(df, df, how="left", su | print(df.merge(df, ho
df.nothing(x | zoo.identity(df.h | number. | import pandas. | import pandas.api.t
from zoo import A | from pandas.a | import zoo as z; z.An | x = df; x.h | x = df; y = x; y.h | df = 3; df.
 with zoo.Animal("x") as a: a. | import os; os.pa | pd.DataFrame.gro
"""
CASES = list(dict.fromkeys(part.strip().replace("; ", "\n").replace(": a", ":\n    a").replace(": o", ":\n    o")
                           for line in TEXTS.splitlines() for part in line.split(" | ") if part.strip()))  # fmt: skip
CASES.append("(df\n  .gro")



#: Makes a shell that completes, and tells what it finds and how many requests that takes.
SHELL = f"""
import json, sys
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from ipython_isolation.context import contexts
from traitlets.config import Config

shell = InteractiveShell.instance(config=Config(HistoryManager={{"enabled": False}}), user_ns={{}})

def start(isolated):
    shell.run_line_magic("load_ext", "ipython_isolation")
    if isolated:
        shell.run_line_magic("isolate", isolated)
    shell.run_cell({SETUP!r}).raise_error()

def complete(text, jedi):
    shell.Completer.use_jedi = jedi
    # Kinds and signatures of all, but not where there are hundreds of them.
    big = text.endswith((".", "_")) and any(word in text for word in ("df", "pd", "DataFrame", "tables"))
    shell.Completer.jedi_compute_type_timeout = 0 if big else 30_000
    before = sum(context.info()["requests"] for context in contexts())
    with provisionalcompleter():
        found = {{one.text: (one.type, one.signature) for one in shell.Completer.completions(text, len(text))}}
    return found, sum(context.info()["requests"] for context in contexts()) - before
"""

ALL = f"""{SHELL}
start(sys.argv[1] if len(sys.argv) > 1 else "")
cases = {CASES!r}
for text in ("df.", "pd.", "zoo.", "animal.", "pd.DataFrame.", "pd.read_csv("):  # what is described at first use
    complete(text, True)
print(json.dumps([[text, jedi, *complete(text, jedi)] for jedi in (True, False) for text in cases]))
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """What is found plain and isolated: two dicts of (text, jedi) -> (found, requests)."""
    directory, running = tmp_path_factory.mktemp("completion"), []
    for isolated in ([], ["pandas zoo"]):
        command = [sys.executable, "-c", ALL, *isolated]
        # jedi's cache is written in place: who reads it meanwhile finds nothing.
        environment = session_environment(directory) | {"XDG_CACHE_HOME": str(directory / f"cache{len(running)}")}
        running.append(subprocess.Popen(command, env=environment, cwd=directory, stdout=subprocess.PIPE, text=True))
    try:
        lines = [process.communicate(timeout=70)[0].splitlines()[-1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return [{(text, jedi): (found, requests) for text, jedi, found, requests in json.loads(line)} for line in lines]


#: Methods that a class of the session gives to an isolated one are stand-ins in the child: jedi does not see functions.
UNLIKE = {"mine.", "Mine."}


@pytest.mark.parametrize("jedi", [True, False])
@pytest.mark.parametrize("text", CASES)
def test_as_plain(worlds, text, jedi):
    expected, found = (world[text, jedi][0] for world in worlds)
    assert sorted(found) == sorted(expected)
    if jedi and text not in UNLIKE:
        assert found == expected


#: More than the usual one: what IPython asks beside jedi, and jedi of the session after that of the child found nothing.
BOUNDS = {"Mine.": 16}


@pytest.mark.parametrize("jedi", [True, False])
@pytest.mark.parametrize("text", CASES)
def test_a_handful_of_requests(worlds, text, jedi):
    requests = worlds[1][text, jedi][1]
    assert requests <= BOUNDS.get(text, 9)
    if text in ("df.", "df.gro", "pd.", "zoo.", "animal.", "df.a.", "holder.df.") and (jedi or text != "df.a."):
        assert requests == 1


def test_the_cases_find_something(worlds):
    plain = worlds[0]
    assert sum(bool(found) for found, _ in plain.values()) > len(plain) * 0.7
    assert plain["df.", True][0].keys() > {"groupby", "a", "b"} and plain["df.gro", True][0] and plain["animal.", True][0]["rename"][0] == "function"


KILLS = """
import os, signal
class Meta(type):
    def __dir__(cls):
        os.kill(os.getpid(), signal.SIGKILL)
class Kills(metaclass=Meta):
    pass
"""


def test_a_death_while_jedi_looks(tmp_path):
    """Then nothing is found, the session's jedi is not told to look as well, and the next Tab works."""
    (tmp_path / "kills.py").write_text(KILLS)
    code = f"""{SHELL}
sys.path.insert(0, "")
shell.run_line_magic("load_ext", "ipython_isolation")
shell.run_cell("%isolate kills\\nimport kills").raise_error()
[context] = contexts()
print(complete("kills.Kills.ab", True)[0], context.info()["crashes"], list(complete("kills.Ki", True)[0]))
"""
    done = run_python(tmp_path, code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "{} 1 ['Kills']", (done.returncode, done.stdout, done.stderr)


def test_without_jedi_in_the_child(tmp_path):
    """The session's jedi finds the same, at some cost."""
    code = f"""{SHELL}
shell.run_line_magic("load_ext", "ipython_isolation")
shell.run_cell("%isolate zoo\\nimport zoo\\nanimal = zoo.Animal('rex')").raise_error()
[context] = contexts()
found, one = complete("animal.", True)
context.call(exec, "import sys; sys.modules['jedi'] = None", {{}})
again, some = complete("animal.", True)
print(again.keys() == found.keys(), len(found) > 10, one < some)
"""
    done = run_python(tmp_path, code)
    assert done.stdout.splitlines()[-1] == "True True True", (done.returncode, done.stdout, done.stderr)


def test_a_closed_context_and_unload(tmp_path):
    code = f"""{SHELL}
ours = lambda: sum("_complete_import" in str(hook) for hook in shell.strdispatchers["complete_command"].s_matches("import"))
start("zoo")
made = "_jedi_matches" in vars(shell.Completer), ours()
contexts()[0].close()
complete("animal.", True)  # whatever it finds, it answers
shell.run_line_magic("unload_ext", "ipython_isolation")
print(made, "_jedi_matches" in vars(shell.Completer), ours())
"""
    done = run_python(tmp_path, code)
    assert done.stdout.splitlines()[-1] == "(True, 1) False 0", (done.returncode, done.stdout, done.stderr)
