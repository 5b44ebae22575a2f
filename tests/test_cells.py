"""%%isolate and @isolated: whole cells and functions of the session, run in real children."""

import functools
import inspect
import linecache
import os
import re
import sys

import pytest
from IPython.core.error import UsageError
from kernels import AFFORDABLE, event_loop_of_jupyter, kernel, start_kernel, without_colors  # noqa: F401
from test_magics import complete, ip, run, shell  # noqa: F401

import ipython_isolation
from ipython_isolation import IsolationContext, ProcessTerminationError, isolated, isproxy
from ipython_isolation.context import contexts, named_context

# --- Results ---------------------------------------------------------------------------------------------


def test_a_cell_runs_in_the_default_context(ip):  # noqa: F811
    run(ip, "%isolate zoo")
    pid = run(ip, "%%isolate\nimport os\nos.getpid()")
    assert pid == named_context("default").remote_pid != os.getpid()
    assert "os" not in ip.user_ns


def test_a_context_of_its_own(ip):  # noqa: F811
    mine = run(ip, "%%isolate --context mine\nimport os\nwho = 'mine'\nos.getpid()")
    other = run(ip, "%%isolate\nimport os\nwho = 'default'\nos.getpid()")
    assert mine == named_context("mine").remote_pid and other == named_context("default").remote_pid != mine
    assert run(ip, "%%isolate --context mine\nwho") == "mine"
    assert run(ip, "%%isolate\nwho") == "default"


def test_a_context_that_is_there_already(ip):  # noqa: F811
    with IsolationContext(name="theirs", rollback="off") as context:
        assert run(ip, "%%isolate --context theirs\n__import__('os').getpid()") == context.remote_pid


def test_the_value(ip):  # noqa: F811
    assert run(ip, "%%isolate\nx = 6\nx * 7") == 42
    assert run(ip, "%%isolate\nx = 7") is None
    assert run(ip, "%%isolate\nx;  # hidden") is None
    assert run(ip, "%%isolate\nx;\n\n") is None
    assert run(ip, "%%isolate\nx; x + 1") == 8
    assert run(ip, "%%isolate\n'x;'") == "x;"
    value = run(ip, "%%isolate\n[x, 'new']")
    assert value == [7, "new"] and not isproxy(value)
    assert isproxy(run(ip, "%%isolate\nkept = object()\nkept"))


def test_no_value_where_the_session_shows_none(ip):  # noqa: F811
    ip.ast_node_interactivity = "none"
    try:
        assert ip.run_cell_magic("isolate", "", "x = 1\nx") is None
    finally:
        ip.ast_node_interactivity = "last_expr"
    assert ip.run_cell_magic("isolate", "", "x") == 1


def test_names_live_on(ip):  # noqa: F811
    run(ip, "%%isolate\nimport math\ndef area(r):\n    return math.pi * r * r * factor\nfactor = 1")
    run(ip, "%%isolate\nfactor = 2")
    assert run(ip, "%%isolate\nround(area(1), 3)") == 6.283


def test_the_name_space_is_that_of_a_script(ip):  # noqa: F811
    value = run(ip, "%%isolate\nimport sys\nclass Made: pass\n__name__, sys.modules['__main__'].Made is Made")
    assert value == ("__main__", True)
    assert run(ip, "%%isolate\nimport pickle\ntype(pickle.loads(pickle.dumps(Made()))) is Made") is True
    assert "main" not in run(ip, "%%isolate\ntuple(globals())")


def test_a_class_of_the_cell_is_not_the_session_s(ip):  # noqa: F811
    run(ip, "class Made: side = 'here'")
    run(ip, "%%isolate -o made\nclass Made: side = 'there'\nmade = Made()")
    assert run(ip, "made.__class__.side, made.side, isinstance(made, Made)") == ("there", "there", False)


# --- Variables -------------------------------------------------------------------------------------------


def test_input_and_output(ip):  # noqa: F811
    run(ip, "import numpy as np\nphoto = np.arange(6.0)\nnotes = ['a']\nfactor = 2")
    run(
        ip, "%%isolate -i photo,factor -i notes -o scaled,words\n"
        "scaled = photo * factor\nwords = {'n': notes + ['b']}\nphoto[0] = 9\nnotes.append('c')",
    )  # fmt: skip
    assert type(ip.user_ns["scaled"]) is type(ip.user_ns["photo"]) and type(ip.user_ns["words"]) is dict
    assert ip.user_ns["scaled"].tolist() == [0, 2, 4, 6, 8, 10]
    assert ip.user_ns["words"] == {"n": ["a", "b"]}
    assert (ip.user_ns["photo"][0], ip.user_ns["notes"]) == (9, ["a", "c"])  # written back, as after a call


def test_output_is_a_copy_of_containers_and_a_proxy_of_others(ip):  # noqa: F811
    run(ip, "%%isolate -o items,thing\nclass Thing: n = 1\nitems, thing = [1], Thing()")
    run(ip, "%%isolate\nitems.append(2)\nthing.n = 2")
    assert ip.user_ns["items"] == [1] and not isproxy(ip.user_ns["items"])
    assert ip.user_ns["thing"].n == 2 and isproxy(ip.user_ns["thing"])
    assert run(ip, "%%isolate\nitems") == [1, 2]


def test_spaces_between_names(ip):  # noqa: F811
    run(ip, "a, b = 1, 2")
    assert run(ip, "%%isolate -i a, b -o c d\nc, d = a + b, a\nc") == 3
    assert (ip.user_ns["c"], ip.user_ns["d"]) == (3, 1)


def test_an_object_comes_back_as_itself(ip):  # noqa: F811
    run(ip, "class Mine: pass\nmine = before = Mine()")
    run(ip, "%%isolate -i mine -o mine\nmine.n = 1")
    assert ip.user_ns["mine"] is ip.user_ns["before"] and ip.user_ns["before"].n == 1


def test_a_missing_output_is_one_line(ip, capsys):  # noqa: F811
    with pytest.raises(NameError) as caught:
        run(ip, "%%isolate -o there,b,c\nthere = 1")
    assert str(caught.value) == "the isolated cell has not made b, c, which -o names; nothing was assigned"
    assert type(caught.value) is NameError
    assert without_colors(capsys.readouterr().out).strip() == f"NameError: {caught.value}"
    assert "there" not in ip.user_ns


def test_a_cell_that_raises_assigns_nothing(ip):  # noqa: F811
    with pytest.raises(ZeroDivisionError):
        run(ip, "%%isolate -o there\nthere = 1\n1 / 0")
    assert "there" not in ip.user_ns


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--frobnicate", "unrecognized arguments: --frobnicate; %%isolate? shows the usage"),
        ("zoo", "unrecognized arguments: zoo; %%isolate? shows the usage"),
        ("-i", "argument -i/--input: expected at least one argument; %%isolate? shows the usage"),
        ("-o 'x", "No closing quotation; %%isolate? shows the usage"),
        ("-i here,not_here -i nor_here", "-i not_here,nor_here: there is no such variable in this session"),
        ("-o a.b", "-o a.b: that is not the name of a variable"),
    ],
)
def test_usage_errors_are_one_line_and_nothing_runs(ip, arguments, message):  # noqa: F811
    run(ip, "here = 1")
    with pytest.raises(UsageError) as caught:
        ip.run_cell_magic("isolate", arguments, "1 / 0")
    assert str(caught.value) == message
    assert contexts() == []


# --- Errors ----------------------------------------------------------------------------------------------


def frames(error):
    """(file, line, function, source) of a traceback, outermost first."""
    return [
        (f.f_code.co_filename, n, f.f_code.co_name, linecache.getline(f.f_code.co_filename, n).strip())
        for f, n in walk(error.__traceback__)
    ]


def walk(traceback):
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def test_an_exception_shows_the_lines_of_the_cell(ip):  # noqa: F811
    with pytest.raises(ZeroDivisionError) as caught:
        run(ip, "%%isolate\nx = 0\n\ndef f():\n    return 1 / x\n\nf()")
    outer, inner = frames(caught.value)[-2:]
    assert re.fullmatch(r"<isolated cell \d+>", outer[0]) and inner[0] == outer[0]
    assert outer[1:] == (7, "<module>", "f()") and inner[1:] == (5, "f", "return 1 / x")
    assert not [file for file, *_ in frames(caught.value) if file.endswith(("child.py", "cellspace.py"))]


def test_lines_of_an_earlier_cell(ip):  # noqa: F811
    """Also in what the child itself prints, and after the later cell."""
    run(ip, "%%isolate\ndef f():\n    raise KeyError('early')")
    text = run(ip, "%%isolate\nimport traceback\ntry:\n    f()\nexcept KeyError:\n    t = traceback.format_exc()\nt")
    assert "raise KeyError('early')" in text and "    f()" in text
    assert run(ip, "%%isolate\nimport inspect\ninspect.getsource(f)") == "def f():\n    raise KeyError('early')\n"


def test_a_syntax_error_has_its_line_and_nothing_is_sent(ip):  # noqa: F811
    with pytest.raises(SyntaxError) as caught:
        run(ip, "%%isolate\nx = 1\nx = = 2")
    assert (caught.value.lineno, caught.value.text.strip()) == (3, "x = = 2")
    assert re.fullmatch(r"<isolated cell \d+>", caught.value.filename)
    with pytest.raises(SyntaxError, match="'return' outside function"):
        run(ip, "%%isolate\nreturn 1")
    assert contexts() == []


def test_await_outside_of_a_function_is_refused(ip):  # noqa: F811
    with pytest.raises(UsageError) as caught:
        run(ip, "%%isolate\nimport asyncio\nawait asyncio.sleep(0)")
    assert "no await outside of a function" in str(caught.value) and "\n" not in str(caught.value)
    assert contexts() == []
    code = "%%isolate\nimport asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 1\nasyncio.run(f())"
    assert run(ip, code) == 1


def test_a_warning_is_given_once(ip):  # noqa: F811
    with pytest.warns(SyntaxWarning, match="with .*literal") as caught:
        run(ip, "%%isolate\nx = 5\nx is 5")
    assert [(warning.filename.startswith("<isolated cell"), warning.lineno) for warning in caught] == [(True, 3)]


# --- Crashes ---------------------------------------------------------------------------------------------


def test_a_crash_and_the_next_cell(ip):  # noqa: F811
    run(ip, "rows = [1, 2]")
    with pytest.raises(ProcessTerminationError) as caught:
        run(ip, "%%isolate -i rows -o rows\nimport _deaths\nrows.append(3)\n_deaths.segfault()")
    error = caught.value
    assert re.search(r"died in <isolated cell \d+>: SIGSEGV", str(error))
    assert re.fullmatch(r"<isolated cell \d+>", error.operation)
    assert [argument.partition("=")[0] for argument in error.arguments] == ["rows"]
    assert [(frame.file, frame.line) for frame in error.python_stack] == [(error.operation, 4)]
    report = error.report()
    assert f'File "{error.operation}", line 4, in <module>' in report and "        _deaths.segfault()" in report
    assert ip.user_ns["rows"] == [1, 2]  # a call that dies has changed nothing
    assert run(ip, "%%isolate\n1 + 1") == 2


@pytest.mark.usefixtures("affordable")
def test_roll_back_keeps_the_names_of_earlier_cells(ip):  # noqa: F811
    thing = run(ip, "%%isolate\nimport _deaths\nclass Thing: n = 1\nthing = Thing()\nthing")
    for n in range(2):
        with pytest.raises(ProcessTerminationError):
            run(ip, "%%isolate\nthing.n = 'half done'\nnew = 1\n_deaths.segfault()")
        assert run(ip, "%%isolate\nthing.n, 'new' in globals()") == (n + 1, False)
        assert thing.n == n + 1
        run(ip, "%%isolate\nthing.n += 1")


def test_names_are_gone_after_a_restart(ip):  # noqa: F811
    pid = run(ip, "%%isolate\nimport os\nx = 1\nos.getpid()")
    other = run(ip, "%%isolate --context other\nimport os\nx = 1\nos.getpid()")
    run(ip, "%isolate --restart --context default")
    assert run(ip, "%%isolate\nimport os\n'x' in globals(), os.getpid() == " + str(pid)) == (False, False)
    assert run(ip, "%%isolate --context other\nx, os.getpid()") == (1, other)
    run(ip, "%isolate --restart")
    assert run(ip, "%%isolate --context other\n'x' in globals()") is False


def test_a_crash_without_roll_back(ip, capsys):  # noqa: F811
    run(ip, "%config Isolate.rollback = 'off'")
    with pytest.raises(ProcessTerminationError):
        run(ip, "%%isolate\nimport _deaths\nx = 1\n_deaths.segfault()")
    assert run(ip, "%%isolate\n'x' in globals()") is False
    assert "was restarted: objects made in it before are lost" in capsys.readouterr().err


# --- Help, completion, unloading -------------------------------------------------------------------------


def test_help(ip, capsys):  # noqa: F811
    run(ip, "%%isolate?")
    text = without_colors(capsys.readouterr().out)
    assert "%%isolate [-i VAR" in text and "[--context NAME]" in text and "edges.mean()" in text
    run(ip, "%isolate?")
    text = without_colors(capsys.readouterr().out)
    assert "%isolate [--context NAME] [--off]" in text and "%%isolate" in text


@pytest.mark.parametrize("jedi", [True, False])
def test_completion(ip, jedi):  # noqa: F811
    ip.Completer.use_jedi = jedi
    run(ip, "photo, _hidden = 1, 2")
    named_context("mine")
    assert {"-i", "-o", "--context"} <= set(complete(ip, "%%isolate -"))
    assert "--off" not in complete(ip, "%%isolate --")
    assert "photo" in complete(ip, "%%isolate -i ph")
    assert "mine" in complete(ip, "%%isolate -i photo --context m")
    assert "--off" in complete(ip, "%isolate --")


def magics_of(shell):  # noqa: F811
    """What the cell magic adds to a shell."""
    hooks = shell.strdispatchers.get("complete_command")
    return (
        [type(configurable).__name__ for configurable in shell.configurables].count("IsolatedCells"),
        "isolate" in shell.magics_manager.magics["cell"],
        "IsolatedCells" in shell.magics_manager.registry,
        len([*hooks.s_matches("%%isolate")]) if hooks is not None else 0,
    )


def test_unload_undoes_it(shell):  # noqa: F811
    assert magics_of(shell) == (0, False, False, 0)
    for _ in range(2):
        shell.run_line_magic("load_ext", "ipython_isolation")
        assert magics_of(shell) == (1, True, True, 1)
        run(shell, "%%isolate --context mine\n1")
        made = contexts()
        shell.run_line_magic("unload_ext", "ipython_isolation")
        assert magics_of(shell) == (0, False, False, 0)
        assert [context.info()["state"] for context in made] == ["closed"]


# --- In a real kernel ------------------------------------------------------------------------------------


def test_what_a_notebook_shows(kernel):  # noqa: F811
    kernel.run("%%isolate\nimport os")
    cell = kernel.run("%%isolate -o total\nprint('from the child')\nos.system('echo from C')\ntotal = 3\ntotal")
    assert cell.value == "3"
    assert sorted(cell.out.split("\n")) == ["", "from C", "from the child"]
    assert kernel.run("total").value == "3"
    cell = kernel.run("%%isolate\nprint('only this')\ntotal;")
    assert cell.out == "only this\n" and {kind for kind, _ in cell.outputs} == {"stdout"}
    assert kernel.run("%%isolate\ntotal = 4").outputs == []
    page = kernel.run("%%isolate\nclass Page:\n    def _repr_html_(self):\n        return '<b>rich</b>'\nPage()")
    assert dict(page.outputs)["data"]["text/html"] == "<b>rich</b>"


def test_the_traceback_in_a_notebook(kernel):  # noqa: F811
    cell = kernel.run_any("%%isolate\ndef f():\n    return 1 / 0\nf()")
    assert cell.error["ename"] == "ZeroDivisionError"
    text = without_colors("\n".join(cell.error["traceback"]))
    assert re.search(r"^-+> 4 f\(\)", text, re.M) and re.search(r"^-+> 3 +return 1 / 0", text, re.M)
    assert "ipython_isolation" not in text
    missing = kernel.run_any("%%isolate -o nothing\n1").error
    assert missing["ename"] == "NameError" and len(missing["traceback"]) == 1


def test_a_crash_in_a_notebook(kernel):  # noqa: F811
    kernel.run(AFFORDABLE)
    kernel.run("%%isolate\nimport talker\nbefore = 1")
    error = kernel.run_any("%%isolate\nbefore = 2\ntalker.die()").error
    assert error["ename"] == "ProcessTerminationError"
    text = without_colors("\n".join(error["traceback"]))
    assert re.search(r'File "<isolated cell \d+>", line 3, in <module>\n +talker\.die\(\)$', text, re.M)
    assert kernel.run("%%isolate\nbefore").value == "1"


def test_interrupt(kernel):  # noqa: F811
    pid = kernel.run("%%isolate\nimport os\nos.getpid()").value
    message = kernel.send("%%isolate\nkept = 1\nprint('looping')\nwhile True:\n    pass")
    kernel.wait(message, "looping")
    kernel.manager.interrupt_kernel()
    cell = kernel.wait(message)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert "while True:" in without_colors("\n".join(cell.error["traceback"]))
    assert kernel.run("%%isolate\nkept, os.getpid()").value == f"(1, {pid})"


# --- @isolated -------------------------------------------------------------------------------------------


def test_the_list_of_isolated_modules_is_what_it_was(ip):  # noqa: F811
    assert isolated is ipython_isolation.isolated
    assert isolated() == {}
    run(ip, "%isolate zoo")
    assert isolated() == {"zoo": named_context("default")}


@isolated
def pid(more=0):
    """Of the process that this runs in."""
    import os

    return os.getpid() + more


def test_a_decorated_function(ip):  # noqa: F811
    assert pid() == named_context("default").remote_pid != os.getpid()
    assert pid(more=1) == pid() + 1
    assert (pid.__name__, pid.__doc__, pid.__module__) == ("pid", "Of the process that this runs in.", __name__)
    assert str(inspect.signature(pid)) == "(more=0)" and pid.__wrapped__() == os.getpid()


def test_a_decorated_function_of_the_session(ip):  # noqa: F811
    run(ip, "from ipython_isolation import isolated\nn = 2\n@isolated\ndef times(x):\n    return x * n")
    assert run(ip, "times(3)") == 6
    assert run(ip, "n = 10\ntimes(3)") == 30  # shipped as it is when it is called
    with pytest.raises(TypeError) as caught:
        run(ip, "times(None)")
    assert frames(caught.value)[-1][2:] == ("times", "return x * n")


def test_the_context_of_a_decorated_function():
    named = isolated(context="mine")(pid.__wrapped__)
    assert named() == named_context("mine").remote_pid
    with IsolationContext() as context:

        @isolated(context=context)
        def here():
            return os.getpid()

        assert here() == context.remote_pid
    assert contexts() == [named_context("mine")]


def test_decorated_functions_call_each_other_there():
    @isolated
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    @isolated(context="mine")
    def both():
        return factorial(5), pid(), os.getpid()

    value, one, other = both()
    assert value == 120 and one == other == named_context("mine").remote_pid
    assert [context.name for context in contexts()] == ["mine"]
    assert named_context("mine").call(pid) == one


def test_a_decorated_function_that_crashes():
    """Its calls are no set-up, which would be made again at each restart."""

    @isolated
    def risky(log, die):
        import _deaths

        log.append(die)
        if die:
            _deaths.segfault()
        return os.getpid()

    first, second = [], []
    pid = risky(first, False)
    with pytest.raises(ProcessTerminationError, match=r"died in .*risky: SIGSEGV"):
        risky(second, True)
    assert risky(second, False) not in (pid, os.getpid())
    assert named_context("default")._setup == []
    assert (first, second) == ([False], [False])


class Owner:
    def method(self):
        pass


@pytest.mark.parametrize(
    "wrong", [Owner, Owner.method, Owner().method, staticmethod(pid.__wrapped__), print, functools.partial(pid), "pid"]
)
def test_what_cannot_be_decorated(wrong):
    with pytest.raises(TypeError, match="^@isolated is for"):
        isolated(wrong)


def test_a_context_that_is_none():
    with pytest.raises(TypeError, match="^context is an IsolationContext or the name of one, not int"):
        isolated(context=3)
    assert sys.modules["ipython_isolation"].isolated() == {}
