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

VENV=${VENV:-.venv}

die() {
    echo "setup-browser: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

if ! have chromium && ! have chromium-browser; then
    advice="missing: apt-get install chromium"
    if [ -n "${IPYTHON_ISOLATION_NO_APT:-}" ] || ! have apt-get; then
        die "$advice"
    elif [ "$(id -u)" = 0 ]; then
        sudo=()
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo=(sudo -n)
    else
        die "$advice (as root)"
    fi
    echo "setup-browser: installing chromium"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -qq || true # what is known already may do
    "${sudo[@]}" apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
        die "apt-get failed; $advice"
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
