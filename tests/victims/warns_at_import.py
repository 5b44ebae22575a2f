"""Warns while it is imported: of itself, and of whoever imports it."""

import warnings

warnings.warn("of itself", DeprecationWarning)
warnings.warn("of the importer", DeprecationWarning, stacklevel=2)
