#!/usr/bin/env bash
# What the tests in a browser need more than tools/setup.sh: Debian's chromium, and the extra `browser`
# (JupyterLab and Playwright, which drives that chromium and downloads none). Quick when all is there.
#
#   VENV=.venv tools/setup-browser.sh
#
# chromium is installed with apt-get by root or with passwordless sudo; with
# IPYTHON_ISOLATION_NO_APT=1, or where neither works, it is said what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/apt.sh

VENV=${VENV:-.venv}

die() {
    echo "setup-browser: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

if ! have chromium && ! have chromium-browser; then
    apt_install setup-browser chromium fonts-dejavu-core
fi

mapfile -t requirements < <("$VENV/bin/python" - <<'PY'
import tomllib

with open("pyproject.toml", "rb") as f:
    print("\n".join(tomllib.load(f)["project"]["optional-dependencies"]["browser"]))
PY
)
echo "setup-browser: Python packages for $VENV (browser)"
PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install -qq "${requirements[@]}" ||
    die "pip could not install: ${requirements[*]}"
