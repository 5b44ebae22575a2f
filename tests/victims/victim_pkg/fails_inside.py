"""Fails in a relative import, two files away from the import that the user typed."""

from .shapes import Circle  # noqa: F401  (there is none)
