"""``make bench``: all benchmarks, each in a section of docs/benchmarks.md.

    python tests/bench/run.py [--docs] [--only NAME ...]

--docs writes docs/benchmarks.md, docs/recovery.md, the plots and the README's table. The exit code is not 0 when a check
fails (the other process has not done its work); a missed target is said, but is no failure.
"""

import argparse
import sys
import time

import arrays
import big_objects
import callbacks
import endurance
import iteration
import latency
import readme_table
import recovery
import report
import start

SECTIONS = [latency, callbacks, iteration, arrays, big_objects, start, endurance]


def page(sections):
    """docs/benchmarks.md: str."""
    targets = [target for section in sections for target in section.targets]
    missed = sum(not target.met for target in targets)
    parts = ["# Benchmarks", "Made by `make bench ARGS=--docs`; nothing here is typed in by hand. `make bench-check` is the short one"]
    parts[-1] += " that fails when a ratio grows (tests/bench/check.py)."
    parts.append("## Machine\n\n" + "\n".join(f"- {line}" for line in report.machine()))
    parts.append(f"## Targets\n\n{len(targets) - missed} met, {missed} missed, of medians.\n\n{report.target_table(targets)}")
    parts += [f"## {section.title}\n\n{section.text}" for section in sections]
    return "\n\n".join(parts) + "\n"


def main(arguments=None):
    names = [module.__name__ for module in SECTIONS] + ["recovery"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the pages, plots and the README's table")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="these alone; not with --docs")
    options = parser.parse_args(arguments)
    if options.docs and set(options.only) != set(names):
        parser.error("--docs writes the results of all benchmarks")
    start.compiled()
    sections = []
    for module in SECTIONS:
        if module.__name__ in options.only:
            began = time.monotonic()
            sections.append(module.section(docs=options.docs))
            print(f"{module.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    text = page(sections)
    print(text)
    if options.docs:
        (report.DOCS / "benchmarks.md").write_text(text)
        readme_table.update()
    if "recovery" in options.only:
        recovery.main(["--docs"] if options.docs else [])


if __name__ == "__main__":
    main()
