"""Tests in a real JupyterLab in a real browser; `make browser` runs them. See conftest.py."""
