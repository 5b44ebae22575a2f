"""A package as they are: a native-like core, a Python surface, relative imports, subpackages."""

from . import _core
from ._core import Counter, add
from .surface import describe

__all__ = ["Counter", "add", "describe", "shapes"]
__version__ = "1.2.3"

# One entry for each import of a submodule, in order: shows what was imported, and that it was so once.
# The core holds it, because the core is imported first.
imported = _core.imported
imported.append(__name__)


def __getattr__(name):
    """Submodules on demand (PEP 562), as scientific packages do."""
    if name == "lazy":
        import importlib

        return importlib.import_module(".lazy", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
