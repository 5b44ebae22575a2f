"""The README's table, from docs/benchmarks.md: the medians of its first table."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def table():
    """str: Markdown."""
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = next(block for block in text.split("\n\n") if block.startswith("| median"))
    return re.sub(r" \([\d.,]+\)", "", rows).replace("| median (p99), µs |", "| median, µs |")


def update():
    """Puts the table into the README."""
    readme = ROOT / "README.md"
    text = re.sub(r"(?ms)^(\| median, µs \|.*?\n(?=\n)|@TABLE@\n)", lambda _: table() + "\n", readme.read_text())
    readme.write_text(text)


if __name__ == "__main__":
    update()
