"""The transparency score: measured, explained, kept.

    python report.py               # measures with this interpreter, prints the score and what fails
    python report.py --check       # ... and fails below the floor in floor.json
    python report.py --docs        # ... and writes docs/transparency.md from what was measured on every version

Results go to build/transparency/. `make transparency` runs this on each CPython that is there. The reasons are in
reasons.txt: lines `PATTERN: KEY` (a test's name without the leading `test.`, as fnmatch takes it) and the
keys' texts.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "transparency"
VERSION = "%d.%d" % sys.version_info[:2]


def measure(pairs, via, timeout):
    """Runs transparency.py over pairs.

    Parameters
    ----------
    pairs : list of str
        ``MODULE:TEST`` each.
    via : {"none", "isolation"}
    timeout : float
        Seconds a pair may take.

    Returns
    -------
    dict of str to dict
        The row of each pair, as transparency.py prints it.
    """

    def one(pair):
        command = [sys.executable, str(HERE / "transparency.py"), "--via", via, "--timeout", str(timeout), pair]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
        if done.returncode != 0:
            sys.exit(f"{pair}: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout)

    # One at a time where it is isolated: a pair uses two processes, and some tests measure time.
    with concurrent.futures.ThreadPoolExecutor(1 if via == "isolation" else 2) as pool:
        return dict(zip(pairs, pool.map(one, pairs)))


def missing(base, isolated):
    """The tests of a pair that pass in-process and not isolated: dict of name to the last line of the error."""
    lost = sorted(set(base["ok"]) - set(isolated["ok"]))
    died = isolated.get("died")
    why = f"the run ended: {died} {' '.join(isolated.get('tail', []))}" if died is not None else "?"
    return {name.removeprefix("test."): isolated["bad"].get(name, why) for name in lost}


def read_reasons():
    """(patterns, texts): list of (pattern, key), and dict of key to text."""
    patterns, texts = [], {}
    for line in (HERE / "reasons.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        left, _, right = line.partition(": ")
        if left.startswith("= "):
            texts[left[2:]] = right
        else:
            patterns.append((left, right))
    unknown = {key for _, key in patterns} - set(texts)
    if unknown:
        sys.exit(f"reasons.txt: no text for {sorted(unknown)}")
    return patterns, texts


def reason_of(name, patterns):
    """The key of the first pattern that fits the name of a test, or None."""
    return next((key for pattern, key in patterns if fnmatch.fnmatchcase(name, pattern)), None)


def score(result):
    """(kept, all, fraction) over the pairs of a result."""
    total = sum(len(row["ok"]) for row in result["base"].values())
    kept = sum(len(set(row["ok"]) & set(result["isolated"][pair]["ok"])) for pair, row in result["base"].items())
    return kept, total, kept / max(total, 1)


def show(result, patterns):
    """Prints the score of each pair and each failure with its reason."""
    for pair, base in result["base"].items():
        lost = missing(base, result["isolated"][pair])
        n = len(base["ok"])
        seconds = result["isolated"][pair].get("seconds", "")
        print(f"{pair:32s} {n - len(lost):5d} / {n:5d}  {seconds} s")
        for name, error in lost.items():
            print(f"    {name}: {reason_of(name, patterns) or 'NO REASON GIVEN'}: {error[:160]}")
    print("score on CPython %s: %d of %d = %.1f %%" % (result["python"], *score(result)[:2], 100 * score(result)[2]))


def write_docs(patterns, texts):
    """docs/transparency.md, from all results in build/transparency/."""
    results = [json.loads(path.read_text()) for path in sorted(BUILD.glob("result-*.json"))]
    lines = [
        "# How transparent it is",
        "",
        "CPython's own test files, run with the module under test isolated: the share of the tests that pass in-process",
        "and also pass behind proxies. `make transparency` measures it and writes this page; the pairs of module and test",
        "file are in `tests/transparency/pairs.txt`.",
        "",
        "| pair | " + " | ".join(r["python"] for r in results) + " |",
        "| --- |" + " ---: |" * len(results),
    ]
    pairs = list(dict.fromkeys(pair for r in results for pair in r["base"]))
    for pair in pairs:
        cells = []
        for r in results:
            base = r["base"].get(pair)
            n = 0 if base is None else len(base["ok"])
            cells.append("" if base is None else f"{n - len(missing(base, r['isolated'][pair]))} / {n}")
        lines.append(f"| `{pair}` | " + " | ".join(cells) + " |")
    totals = ["**%d / %d = %.1f %%**" % (*score(r)[:2], 100 * score(r)[2]) for r in results]
    lines += ["| **all** | " + " | ".join(totals) + " |", "", "## What fails, and why", ""]
    by_reason = {}
    for r in results:
        for pair, base in r["base"].items():
            for name in missing(base, r["isolated"][pair]):
                key = reason_of(name, patterns)
                by_reason.setdefault(key, {}).setdefault(name, []).append(r["python"])
    for key in [*texts, None]:
        tests = by_reason.get(key)
        if not tests:
            continue
        lines += [f"**{'Not explained yet' if key is None else texts[key]}**", ""]
        for name, versions in sorted(tests.items()):
            where = "" if len(versions) == len(results) else f" ({', '.join(versions)})"
            lines.append(f"- `{name}`{where}")
        lines.append("")
    path = ROOT / "docs" / "transparency.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"wrote {path.relative_to(ROOT)} from {len(results)} version(s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a pair may take (default: 120)")
    parser.add_argument("pairs", nargs="*", help="MODULE:TEST; all of pairs.txt when none is given")
    options = parser.parse_args()
    patterns, texts = read_reasons()
    pairs = options.pairs or (HERE / "pairs.txt").read_text().split()
    result = {
        "python": VERSION,
        "base": measure(pairs, "none", options.timeout),
        "isolated": measure(pairs, "isolation", options.timeout),
    }
    show(result, patterns)
    unexplained = [
        name
        for pair, base in result["base"].items()
        for name in missing(base, result["isolated"][pair])
        if reason_of(name, patterns) is None
    ]
    if unexplained:
        print("no reason in reasons.txt for:", ", ".join(unexplained))
    if not options.pairs:
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / f"result-{VERSION}.json").write_text(json.dumps(result))
    if options.docs:
        write_docs(patterns, texts)
    if options.check:
        floor = json.loads((HERE / "floor.json").read_text())[VERSION]
        if not options.pairs and score(result)[0] < floor:
            sys.exit(f"the score fell: {score(result)[0]} tests pass isolated; floor.json says {floor}")


if __name__ == "__main__":
    main()
