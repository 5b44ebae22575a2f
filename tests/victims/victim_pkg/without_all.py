"""`from victim_pkg.without_all import *` brings all names without a leading underscore."""

from ._core import add  # noqa: F401  (comes along with the star)
from ._core import imported as _imported

_imported.append(__name__)

public = 1
_private = 2


def function():
    return "function"
