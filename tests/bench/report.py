"""What all benchmarks share: percentiles, tables, targets, plots, and the description of the machine."""

import os
import platform
import statistics
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"


@dataclass
class Target:
    """What is asked of a figure: at most (or at least) a bound.

    Attributes
    ----------
    what : str
    value, bound : float
    unit : str
    least : bool
        The value must not be below the bound.
    """

    what: str
    value: float
    bound: float
    unit: str = ""
    least: bool = False

    @property
    def met(self):
        return self.value >= self.bound if self.least else self.value <= self.bound

    def line(self):
        """A row of the table of targets: str, Markdown."""
        relation = "≥" if self.least else "≤"
        return (
            f"| {self.what} | {relation} {figure(self.bound)}{self.unit} | {figure(self.value)}{self.unit} |"
            f" {'met' if self.met else '**missed**'} |"
        )


@dataclass
class Section:
    """One benchmark's part of docs/benchmarks.md: Markdown below its title, and what it says of targets."""

    title: str
    text: str
    targets: list[Target] = field(default_factory=list)


def figure(value):
    """A number with three digits that count: str."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def p99(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def cell(values):
    """Median and 99th percentile of figures: str, for a cell of a table."""
    return f"{figure(statistics.median(values))} ({figure(p99(values))})"


def table(corner, columns, rows):
    """Markdown.

    Parameters
    ----------
    corner : str
        The title of the first column.
    columns : list of str
    rows : list of (str, list of str)
    """
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows]
    return "\n".join(lines)


def target_table(targets):
    lines = ["| target | bound | measured | |", "| --- | ---: | ---: | --- |"]
    return "\n".join(lines + [target.line() for target in targets])


def bars(results, title, unit, path, level=None):
    """Writes a plot of medians, with whiskers up to the 99th percentile, on a logarithmic axis.

    Parameters
    ----------
    results : dict
        {group: {label: list of float}}
    title, unit : str
    path : pathlib.Path
    level : (str, float) or None
        Drawn as a line across all groups.
    """
    plt = pyplot()
    labels = list(dict.fromkeys(label for group in results.values() for label in group))
    width = 0.8 / len(labels)
    figure_, axes = plt.subplots(figsize=(11, 4.2), layout="constrained")
    for i, label in enumerate(labels):
        at = [g for g, group in enumerate(results.values()) if label in group]
        values = [group[label] for group in results.values() if label in group]
        medians = [statistics.median(v) for v in values]
        above = [[0] * len(values), [max(0, p99(v) - statistics.median(v)) for v in values]]
        places = [x + (i - (len(labels) - 1) / 2) * width for x in at]
        axes.bar(places, medians, width * 0.95, yerr=above, label=label, capsize=2, ecolor="0.4")
        for x, y in zip(places, medians):
            axes.annotate(figure(y), (x, y), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
    if level is not None:
        axes.axhline(level[1], color="black", linewidth=1, linestyle="--", label=f"{level[0]}: {figure(level[1])}")
    axes.set_xticks(range(len(results)), [textwrap.fill(group, 20) for group in results], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{title}: median, whisker to the 99th percentile", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(labels) > 1:
        figure_.legend(*axes.get_legend_handles_labels(), ncols=len(labels) + 1, loc="outside lower center", frameon=False, fontsize=8)
    figure_.savefig(path, dpi=110)
    plt.close(figure_)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def memory(pid):
    """What a process has of memory.

    Returns
    -------
    dict of str to float
        MB: "Rss", resident; "Pss", the same, but what several share counts in parts; "Uss", what is its own.
    """
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes, *_ = line.split()
        found[name.rstrip(":")] = int(kilobytes) / 1024
    return {"Rss": found["Rss"], "Pss": found["Pss"], "Uss": found["Private_Clean"] + found["Private_Dirty"]}


def machine():
    """This machine and what was measured on it: list of str."""
    from ctypes import CDLL, byref, c_int
    from ctypes.util import find_library
    from importlib.metadata import version

    cpu, ram = "unknown processor", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            ram = f", {int(line.split()[1]) / 1024 / 1024:.0f} GB of memory"
    parts = [c_int() for _ in range(3)]
    CDLL(find_library("zmq") or "libzmq.so.5").zmq_version(*map(byref, parts))
    versions = []
    for name in ("numpy", "rpyc", "Pyro5", "ipyparallel"):
        try:
            versions.append(f"{name} {version(name)}")
        except ImportError:
            pass
    virtual = ", virtual" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    return [
        f"{cpu}, {len(os.sched_getaffinity(0))} processors usable{virtual}{ram}",
        f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        f"CPython {platform.python_version()}, libzmq {'.'.join(str(p.value) for p in parts)}, " + ", ".join(versions),
        f"load average: {os.getloadavg()[0]:.1f} in the last minute, {os.getloadavg()[1]:.1f} in the last five",
    ]
