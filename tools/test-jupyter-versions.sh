#!/usr/bin/env bash
# The tests in real kernels and shells with the oldest and the newest supported generation of Jupyter's kernel.
#
#   PYTHON=python3.12 tools/test-jupyter-versions.sh [pytest's arguments]
#
# Each pair has a venv of its own in build/jupyter/, with the package installed there as a user installs
# it (a wheel, no editable install) and the tests in a copy beside it, so that no source tree comes first.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$(command -v "${PYTHON:-python3}")
pairs=("ipykernel>=6.17,<7 ipython>=8,<9" "ipykernel>=7,<8 ipython>=9,<10")
files=()
for name in notebook magics completion output cells display printing terminal tutorials profile; do
    [ ! -e "tests/test_$name.py" ] || files+=("tests/test_$name.py")
done

failed=()
for pair in "${pairs[@]}"; do
    read -r kernel shell <<<"$pair"
    case $kernel in *"<7") name=ipykernel6-ipython8 ;; *) name=ipykernel7-ipython9 ;; esac
    venv=$root/build/jupyter/$name/venv
    tree=$root/build/jupyter/$name/tree
    [ -e "$venv/bin/python" ] || "$python" -m venv "$venv"
    mapfile -t requirements < <("$venv/bin/python" - <<'PY'
import tomllib

with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)
wanted = project["build-system"]["requires"] + project["project"]["optional-dependencies"]["test"]
print("\n".join(wanted))
PY
    )
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "${requirements[@]}" "$kernel" "$shell"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps \
        --force-reinstall . -Cbuild-dir="build/jupyter/$name/cmake"
    echo "==== $("$venv/bin/python" -c '
import platform, IPython, ipykernel, jupyter_client
print("Python", platform.python_version(), "ipykernel", ipykernel.__version__, "IPython", IPython.__version__,
      "jupyter_client", jupyter_client.__version__)')"
    # The tests, without the package's own sources.
    rm -rf "$tree"
    mkdir -p "$tree"
    cp -r pyproject.toml tests "$tree"
    bash "$tree/tests/victims/build.sh" "$venv/bin/python" >/dev/null
    (cd "$tree" && "$venv/bin/python" -m pytest "${files[@]}" -p no:cacheprovider "$@") || failed+=("$name")
done
echo "==== tried: ${#pairs[@]}; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
