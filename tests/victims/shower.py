"""Displays things in every way that IPython knows, and asks. Run plain and isolated: tests/test_display.py."""

import sys
import threading


def html():
    from IPython.display import HTML, display

    print("before")
    display(HTML("<b>bold</b>"))
    print("between")
    display(HTML("<i>italic</i>"), metadata={"text/html": {"isolated": True}})
    print("after")
    return "returned"


def many():
    from IPython.display import Image, JSON, Latex, Markdown, SVG, display

    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
    )
    display(Latex("$x^2$"), Markdown("*x*"), Image(pixel), JSON({"a": [1, {"b": None}]}), SVG("<svg></svg>"))
    display({"text/plain": "raw", "text/html": "<p>raw</p>"}, raw=True)


def widget():
    """What ipywidgets displays: a view of a model that only the child has, and a text beside it."""
    from IPython.display import display

    display({"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider(value=7)"}, raw=True)


def updates():
    from IPython.display import clear_output, display

    handle = display("first", display_id="known")
    handle.update("second")
    clear_output(wait=True)
    display("third")


def show():
    import matplotlib.pyplot as plt

    plt.figure(figsize=(2, 1))
    plt.plot([1, 3, 2])
    print("drawn")
    plt.show()
    print("shown")


def draw():
    import matplotlib.pyplot as plt

    plt.figure(figsize=(1, 1))
    plt.plot([3, 1, 2])


def figure():
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(figsize=(1, 1))
    axes.plot([1, 2])
    plt.close(made)
    return made


class Html:
    def __repr__(self):
        return "Html()"

    def _repr_html_(self):
        return "<em>html</em>"

    def _repr_png_(self):
        return b"\x89PNG", {"width": 3}

    def _repr_latex_(self):
        return None


class Bundle:
    """No repr of its own: the address differs, so it is taken away."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "bundle", "text/html": "<p>bundle</p>"}, {"text/html": {"a": 1}}


class Itself:
    def _ipython_display_(self):
        from IPython.display import HTML, display

        display(HTML("<p>by itself</p>"))


class Pretty:
    def _repr_pretty_(self, printer, cycle):
        printer.text("pretty!")


class Broken:
    def __repr__(self):
        return "Broken()"

    def _repr_html_(self):
        raise ValueError("no html today")


class BrokenText:
    def __repr__(self):
        raise ValueError("no text today")


class BrokenItself(Html):
    def _ipython_display_(self):
        print("first")
        raise KeyError("not today")


class BrokenBundle(Html):
    def _repr_mimebundle_(self, include=None, exclude=None):
        raise KeyError("not today")


class NotImplementedHere(Html):
    def _repr_markdown_(self):
        raise NotImplementedError


class Prints:
    """Says in which order its methods are called."""

    def __repr__(self):
        print("text")
        return "Prints()"

    def _repr_html_(self):
        print("html")
        return "<p>html</p>"

    def _repr_latex_(self):
        print("latex")
        return "$x$"


class WrongTypes:
    def __repr__(self):
        return "WrongTypes()"

    def _repr_html_(self):
        return 5

    def _repr_mimebundle_(self, include=None, exclude=None):
        return 5


class OnInstance:
    """A method that only this instance has."""

    def __init__(self):
        self._repr_html_ = lambda: "<p>instance</p>"

    def __repr__(self):
        return "OnInstance()"


class Everything:
    """Has every name."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: name

    def __repr__(self):
        return "Everything()"


class KeyCompletions:
    def __getitem__(self, key):
        return key

    def _ipython_key_completions_(self):
        return ["alpha", "beta"]


def ask(*args):
    return input(*args)


def ask_hidden():
    import getpass

    return getpass.getpass("secret: ")


def ask_then_print():
    print("asking")
    name = input("name? ")
    print("hello", name)


def later(started):
    """Displays from a thread, after the call has returned."""

    def run():
        from IPython.display import HTML, display

        started.wait()
        display(HTML("<p>late</p>"))
        print("late text")

    threading.Thread(target=run).start()


def progress(n):
    from tqdm import tqdm

    return [i for i in tqdm(range(n), file=sys.stdout, ascii=True, mininterval=0, ncols=40)]


def shell():
    from IPython import get_ipython

    return type(get_ipython()).__name__
