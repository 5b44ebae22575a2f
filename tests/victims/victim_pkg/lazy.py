"""Imported only when victim_pkg.lazy is looked up."""

from . import _core

_core.imported.append(__name__)

answer = 42
