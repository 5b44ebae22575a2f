"""Sessions in real kernels, as their users run them: the promise of the project, and what is around it."""

import re

import nbformat
import pytest
from conftest import wait_until
from kernels import alive, event_loop_of_jupyter, kernel, session_environment, sockets_of_a_kernel, start_kernel, without_colors  # noqa: F401
from nbclient import NotebookClient

# --- The promise -----------------------------------------------------------------------------------------


def test_the_session_outlives_a_segfault(tmp_path, event_loop_of_jupyter):  # noqa: F811
    """%load_ext, %isolate, import, work, segfault: an exception; all variables intact; the next call works."""
    sources = [
        "%load_ext ipython_isolation\n%isolate cv_module",
        "import os, numpy as np, cv_module\n"
        "photo = np.random.default_rng(7).integers(0, 256, (90, 120, 3), dtype=np.uint8)\n"
        "gray = np.asarray(cv_module.grayscale(photo))\nnotes = {'mean': float(gray.mean()), 'log': ['a', 'b']}\n"
        "kernel_pid = os.getpid()\n"
        "import hashlib, pickle\n"
        "def checksum():\n    return hashlib.sha256(pickle.dumps((photo, gray, notes))).hexdigest()\n"
        "before = checksum()",
        "cv_module.sobel_edges(gray[:0])",
        "assert checksum() == before and os.getpid() == kernel_pid",
        "edges = np.asarray(cv_module.sobel_edges(gray))\nedges.shape",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[2].metadata["tags"] = ["raises-exception"]
    with sockets_of_a_kernel() as config:
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=60, extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(tmp_path)}}, config=config,
        )  # fmt: skip
        # Closed here, with the sockets that it keeps until then.
        with client.setup_kernel(env=session_environment(tmp_path)):
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
    (error,) = (output for output in notebook.cells[2].outputs if output.output_type == "error")
    assert error.ename == "ProcessTerminationError"
    assert "died in cv_module.sobel_edges: SIGSEGV (segmentation fault" in error.evalue
    assert notebook.cells[4].outputs[-1].data["text/plain"] == "(90, 120)"


def test_the_traceback_in_a_cell(kernel):  # noqa: F811
    """The user's own lines, then the message; nothing of this package."""
    kernel.run("%isolate talker\nimport talker")
    cell = kernel.run_any("def analyse():\n    talker.die()\nanalyse()")
    text = without_colors("\n".join(cell.error["traceback"]))
    assert re.search(r"^-+> 3 analyse\(\)", text, re.M) and re.search(r"^-+> 2 +talker\.die\(\)", text, re.M)
    assert "ipython_isolation" not in text.replace("python -m ipython_isolation replay", "")
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("ProcessTerminationError: the isolated process (pid "))
    assert "died in talker.die: SIGSEGV" in lines[first]
    # Then the native frame where it died, and the Python one.
    assert any(line.startswith("--> string_at  ") for line in lines[first + 1 :]), text
    assert re.search(r'talker\.py", line \d+, in die$', text, re.M)


def test_a_thousand_inputs(kernel):  # noqa: F811
    """One loop, some inputs crash: exactly those are recorded, and every other result is there afterwards."""
    kernel.run("%config Isolate.rollback = 'off'\n%isolate talker\nimport talker")
    cell = kernel.run(
        "from ipython_isolation import ProcessTerminationError\nresults, crashed = {}, []\n"
        "for n in range(1000):\n    try:\n        results[n] = talker.check(n)\n"
        "    except ProcessTerminationError:\n        crashed.append(n)"
    )
    assert cell.out == ""
    # One cell says it once, however often its child was started again.
    assert cell.err.count("\n") == 1 and "was restarted" in cell.err
    assert kernel.run("crashed").value == str(list(range(3, 1000, 125)))
    assert kernel.run("results == {n: n * n for n in range(1000) if n not in crashed}").value == "True"
    # Another cell says it again: what it lost is another state.
    kernel.run_any("talker.die()")
    assert kernel.run("talker.check(1)").err.count("was restarted") == 1


def test_a_lost_object(kernel):  # noqa: F811
    """Looking at it says what it was; using it raises; nothing that lists variables fails."""
    kernel.run("%config Isolate.rollback = 'off'\n%isolate talker\nimport talker\nthing = talker.Thing('a')\nplain = 1")
    kernel.run_any("talker.die()")
    for _ in range(2):  # before and after the next life begins
        assert "Thing" in kernel.run("thing").value
        assert kernel.run_any("thing.name").error["ename"] == "StaleProxyError"
        listed = kernel.run("%whos").out
        assert re.search(r"^plain +int +1$", listed, re.M) and re.search(r"^thing +Thing", listed, re.M)
        assert re.search(r"^talker +module", listed, re.M)
        kernel.run("talker.check(1)")


def test_what_earlier_cells_made(kernel):  # noqa: F811
    """It is there after any number of crashes, and as the last cell before had left it."""
    kernel.run("%isolate talker\nimport talker")
    kernel.run("thing = talker.Thing('a')")
    kernel.run("thing.name = 'b'")
    for name in ("b", "c"):
        error = kernel.run_any("thing.name = 'half done'\ntalker.die()").error
        assert "earlier are kept" in error["evalue"]
        cell = kernel.run("thing.name")
        assert (cell.value, cell.err) == (repr(name), "")
        kernel.run("thing.name = 'c'")


# --- The life of the kernel ------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [False, True], ids=["asked", "killed"])
def test_shutdown_leaves_nothing(kernel, now):  # noqa: F811
    kernel.run("%isolate talker --context one\n%isolate zoo --context two\nimport talker, zoo")
    assert len(kernel.children()) >= 4
    kernel.stop(now=now)  # which asserts it


def test_shutdown_during_a_call(kernel):  # noqa: F811
    kernel.run("%isolate talker\nimport talker")
    kernel.wait(kernel.send("talker.block()"), "blocking")
    kernel.stop(now=True)


@pytest.mark.parametrize("during_a_call", [False, True])
def test_a_kernel_that_ends_at_once(kernel, during_a_call):  # noqa: F811
    """By os._exit(), which runs nothing of ours, also inside a callback of the child."""
    kernel.run("%isolate talker\nimport talker\ntalker.pid()")
    before = kernel.children()
    assert before
    kernel.send("talker.say_after(lambda: os._exit(1), 'a', 'b')" if during_a_call else "os._exit(1)")
    assert wait_until(lambda: not alive(before)), alive(before)


@pytest.mark.parametrize("end", ["context.close()", "os.kill(context.remote_pid, 9)"])
def test_variables_of_a_context_that_is_over(kernel, end):  # noqa: F811
    """What a front-end's view of the variables does with each of them, answers; none starts a child."""
    kernel.run(
        "%config Isolate.rollback = 'off'\n%isolate talker shown\nimport talker, shown\nthing = talker.Thing('a')\n"
        "table = shown.thing('dict'); items = shown.thing('deque'); function = shown.function; bound = thing.rename\n"
        f"from ipython_isolation.context import contexts\n[context] = contexts()\npid = context.remote_pid\n{end}"
    )
    cell = kernel.run(
        "def looked_at(value):\n"
        "    for look in (repr, str, len, sys.getsizeof, type, lambda o: o.__class__, lambda o: o.shape, lambda o: o.__doc__):\n"
        "        try: look(value)\n"
        "        except Exception: pass\n"
        "    return type(value).__name__\n"
        "[looked_at(value) for value in (talker, shown, thing, table, items, function, bound)]"
    )
    assert "Thing" in cell.value
    # VS Code's view asks this of all but modules, functions, methods and classes; one that raises, and it shows none.
    cell = kernel.run(
        "def described(value):\n"
        "    return type(value).__name__, hasattr(value, '__len__'), hasattr(value, '__dict__') or isinstance(value, dict), "
        "repr(value)\n[described(value)[:2] for value in (thing, table, items)]"
    )
    assert cell.value == "[('Thing', False), ('dict', True), ('deque', True)]"
    # %whos itself asks what is called dict, list or tuple for its length, and fails where that fails.
    listed = kernel.run("del table\n%whos").out
    assert re.search(r"^thing +Thing", listed, re.M) and re.search(r"^pid +int", listed, re.M)


def test_restart(kernel):  # noqa: F811
    """A kernel restart ends the children, and the new session is a clean one on the same ports."""
    kernel.run("%isolate talker\nimport talker\ntalker.keep(1)")
    before = kernel.children()
    kernel.restart()
    assert wait_until(lambda: not alive(before)), alive(before)
    assert kernel.run("%load_ext ipython_isolation\n%isolate talker\nimport talker\ntalker.keep(1)").value == "1"


# --- Interrupts ------------------------------------------------------------------------------------------


def test_reset(kernel):  # noqa: F811
    """%reset forgets the names; what is isolated stays so, and objects that nothing refers to any more are released."""
    kernel.run("%isolate talker\nimport talker\nthings = [talker.Thing('a') for _ in range(10)]\npid = talker.pid()")
    counted = "from ipython_isolation.context import contexts\n[c._peer.host_call('counts')['exports'] for c in contexts()]"
    before = int(kernel.run(counted).value.strip("[]"))
    pid = kernel.run("pid").value
    kernel.run("%reset -f")
    assert kernel.run_any("things").error["ename"] == "NameError"
    # The next request carries the releases, unless the service thread has just sent them: they may arrive after it.
    assert wait_until(lambda: int(kernel.run(counted).value.strip("[]")) <= before - 10)
    assert kernel.run("import talker, os; (talker.pid(), talker.pid() == os.getpid())").value == f"({pid}, False)"


def test_interrupt_of_a_call(kernel):  # noqa: F811
    """KeyboardInterrupt in the cell; this session's and the child's state are as they were."""
    kernel.run("%isolate talker\nimport talker\nmine = [1, 2]\nthing = talker.Thing('a')\ntalker.keep('kept')")
    pid = kernel.run("talker.pid()").value
    message = kernel.send("talker.work(600)")
    kernel.wait(message, "working")
    kernel.manager.interrupt_kernel()
    cell = kernel.wait(message)
    assert cell.error["ename"] == "KeyboardInterrupt"
    text = without_colors("\n".join(cell.error["traceback"]))
    assert "talker.work(600)" in text
    assert "while time.monotonic() < end" in text or "pass" in text  # where it was, in the child
    assert kernel.run("talker.pid()").value == pid
    assert kernel.run("(mine, thing.name, talker.kept)").value == "([1, 2], 'a', ['kept'])"


def test_interrupt_of_something_else(kernel):  # noqa: F811
    """The interrupt of a cell that computes here harms no child, idle ones included."""
    kernel.run("%isolate talker\n%isolate zoo --context other\nimport talker, zoo\ntalker.keep('kept')")
    before = kernel.run("(talker.pid(), os.getpid())").value
    message = kernel.send("print('looping')\nwhile True: pass")
    kernel.wait(message, "looping")
    kernel.manager.interrupt_kernel()
    assert kernel.wait(message).error["ename"] == "KeyboardInterrupt"
    cell = kernel.run("(talker.pid(), os.getpid())")
    assert cell.value == before and cell.err == ""
    assert kernel.run("talker.kept, zoo.CONSTANT").value == "(['kept'], 42)"
    assert "-1" not in kernel.run("%isolate").value


def test_interrupt_of_c_code(kernel):  # noqa: F811
    """C code does not see the first interrupt, and a line says what to do; the second ends the child."""
    kernel.run("%isolate talker\nimport talker\nmine = [1, 2]")
    message = kernel.send("talker.block()")
    kernel.wait(message, "blocking")
    kernel.manager.interrupt_kernel()
    kernel.wait(message, "interrupt again to kill")
    kernel.manager.interrupt_kernel()
    assert kernel.wait(message).error["ename"] == "KeyboardInterrupt"
    assert kernel.run("mine, talker.check(2)").value == "([1, 2], 4)"


# --- Introspection ---------------------------------------------------------------------------------------


def complete(kernel, code):
    reply = kernel.client.complete(code, len(code), reply=True, timeout=60)["content"]
    assert reply["status"] == "ok"
    return {match.rpartition(".")[2] for match in reply["matches"]}


@pytest.mark.parametrize("jedi", [True, False])
def test_completion(kernel, jedi):  # noqa: F811
    kernel.run(f"%config Completer.use_jedi = {jedi}\n%isolate talker\nimport talker\nthing = talker.Thing('a')")
    assert {"say", "say_in_c", "say_after", "say_later"} <= complete(kernel, "talker.s")
    assert {"name", "rename"} <= complete(kernel, "thing.")
    assert "rename" in complete(kernel, "talker.Thing.re")
    kernel.run_any("talker.die()")
    assert "say" in complete(kernel, "talker.s")
    complete(kernel, "thing.")  # whatever it finds, it answers


def test_help(kernel):  # noqa: F811
    kernel.run("%isolate talker\nimport talker\nthing = talker.Thing('a')")

    def inspect(code, level=0):
        content = kernel.client.inspect(code, len(code), level, reply=True, timeout=60)["content"]
        assert content["found"]
        return without_colors(content["data"]["text/plain"])

    assert "talker.write(*chunks)" in inspect("talker.write")
    assert "Each chunk is a system call of its own" in inspect("talker.write")
    assert "os.write(1, chunk)" in inspect("talker.write", 1)
    assert "Prints in every way there is" in inspect("talker")
    assert "Gives it another name" in inspect("thing.rename")
    assert "A thing that is lost with its process" in inspect("talker.Thing")
    assert "talker.Thing(name)" in inspect("talker.Thing")
    assert "Thing" in inspect("thing")
    # And as typed, through the pager.
    reply = kernel.client.execute("talker.write?", reply=True, timeout=60)["content"]
    assert "Each chunk" in reply["payload"][0]["data"]["text/plain"]


def test_source_as_typed(kernel):  # noqa: F811
    """`?` and `??` through the pager, of functions, objects and modules."""
    kernel.run("%isolate talker\nimport talker\nthing = talker.Thing('a')")

    def paged(code):
        reply = kernel.client.execute(code, reply=True, timeout=60)["content"]
        return without_colors(reply["payload"][0]["data"]["text/plain"])

    assert "os.write(1, chunk)" in paged("talker.write??") and "os.write(1, chunk)" not in paged("talker.write?")
    assert "Gives it another name" in paged("thing.rename?") and "def rename" in paged("thing.rename??")
    assert "class Thing" in paged("talker.Thing??") and "def write" in paged("talker??")


def test_magics_of_ipython(kernel):  # noqa: F811
    kernel.run("%isolate talker\nimport talker\nthing = talker.Thing('a')")
    lines = {line.split()[0]: line.split()[1:] for line in kernel.run("%whos").out.splitlines()[2:]}
    assert lines["talker"][0] == "module" and lines["thing"][0] == "Thing"
    assert set(kernel.run("%who_ls module").value[1:-1].split(", ")) >= {"'os'", "'talker'"}
    timed = kernel.run("result = %timeit -o -q -n 5 -r 2 talker.check(2)\nresult.loops, result.repeat").value
    assert timed == "(5, 2)"
    profile = kernel.run("stats = %prun -r -q talker.check(2)\nstats.total_calls > 0").value
    assert profile == "True"
    assert "Wall time" in kernel.run("%time talker.check(2)").out


def test_debug(kernel):  # noqa: F811
    """The debugger after an error in the child, and after a crash: it is in the cell, whose variables it knows."""
    kernel.run("%isolate talker\nimport talker")
    kernel.run_any("def mine(given):\n    return talker.check(given)\nmine(None)")
    asked = kernel.run_asked("%debug", ["where", "q"])
    assert "ipdb> " in [prompt for prompt, _ in kernel.asked] and "mine(None)" in without_colors(asked.out)
    kernel.run_any("def dies(given):\n    talker.die()\ndies('here')")
    asked = kernel.run_asked("%debug", ["p given", "q"])
    assert "'here'" in without_colors(asked.out)
    assert kernel.run("talker.check(2)").value == "4"


def test_the_table(kernel):  # noqa: F811
    kernel.run("%isolate talker\n%isolate zoo --context other\nimport talker")
    bundle = dict(kernel.run("%isolate").outputs)["data"]
    lines = bundle["text/plain"].splitlines()
    assert [line.split()[0] for line in lines] == ["module", "talker", "zoo"]
    # Columns: each cell begins below its heading.
    for heading in ("context", "state"):
        start = lines[0].index(heading)
        assert all(line[start - 1] == " " != line[start] for line in lines)
    assert bundle["text/html"].count("<tr>") == 3


# --- Beside other extensions -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode, first", [("2", "autoreload"), ("3", "ipython_isolation")])
def test_autoreload(start_kernel, tmp_path, mode, first):  # noqa: F811
    """It follows changes of the session's modules, and leaves isolated ones to the child."""
    here, there = tmp_path / "made_here.py", tmp_path / "made_there.py"
    here.write_text("value = 1\n")
    there.write_text("import os\nvalue = 1\ndef pid(): return os.getpid()\n")
    kernel = start_kernel()  # noqa: F811
    extensions = ["autoreload", "ipython_isolation"]
    for extension in sorted(extensions, key=lambda name: name != first):
        kernel.run(f"%load_ext {extension}")
    kernel.run(f"%autoreload {mode}\n%isolate made_there\nimport made_here, made_there")
    pid = kernel.run("made_there.pid()").value
    for file in (here, there):
        file.write_text(file.read_text().replace("value = 1", "value = 'changed'"))
    cell = kernel.run("(made_here.value, made_there.value)")
    assert cell.value == "('changed', 1)"
    assert cell.err == ""
    assert kernel.run("import os; (made_there.pid(), made_there.pid() == os.getpid())").value == f"({pid}, False)"
    kernel.run("import importlib; importlib.reload(made_there)")
    assert kernel.run("(made_there.value, made_there.pid())").value == f"('changed', {pid})"


def test_reload_ext_and_unload(kernel):  # noqa: F811
    kernel.run("%isolate talker\nimport talker")
    pid = int(kernel.run("talker.pid()").value)
    kernel.run("%reload_ext ipython_isolation")
    assert wait_until(lambda: not alive([pid]))
    assert kernel.run("%isolate").value.startswith("Nothing is isolated")
    assert kernel.run("%isolate talker\nimport talker\ntalker.pid() != os.getpid()").value == "True"
    kernel.run("%unload_ext ipython_isolation")
    assert wait_until(lambda: not kernel.children())
    assert "not found" in kernel.run_any("%isolate").err
    assert kernel.run("import talker\ntalker.pid() == os.getpid()").value == "True"
