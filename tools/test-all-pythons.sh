#!/usr/bin/env bash
# The suite (or, with TARGET=..., another target of the Makefile) on every CPython 3.11 to 3.13 found in PATH or under ~/.pyenv/versions, each with a virtual
# environment of its own (.venv-3.11 ...). Arguments go to make, e.g. ARGS="-k name".
set -euo pipefail
cd "$(dirname "$0")/.."
make=${MAKE:-make}
target=test
if [[ ${1:-} == TARGET=* ]]; then
    target=${1#TARGET=}
    shift
fi

tried=()
failed=()
for version in 3.11 3.12 3.13; do
    for python in "python$version" "$HOME"/.pyenv/versions/"$version".*/bin/python3; do
        # A pyenv shim may be there without working.
        found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [ "$found" = "$version" ] || continue
        echo "==== Python $version ($python)"
        tried+=("$version")
        "$make" --no-print-directory "$target" PYTHON="$python" VENV=".venv-$version" "$@" ||
            failed+=("$version")
        break
    done
done
[ ${#tried[@]} -gt 0 ] || { echo "no CPython 3.11 to 3.13 found" >&2; exit 1; }
echo "==== tried: ${tried[*]}; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
