"""`from victim_pkg.with_all import *` brings exactly what __all__ lists, underscores or not."""

from . import _core

__all__ = ["public", "_listed"]

_core.imported.append(__name__)

public = 1
unlisted = 2
_listed = 3
