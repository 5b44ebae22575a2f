#!/usr/bin/env bash
# Set-up of everything a build and a test run need; quick when there is nothing to do.
#
#   PYTHON=python3.12 VENV=.venv-3.12 tools/setup.sh
#
# PYTHON: the interpreter to use (default: python3, else python3.13 ... python3.11, the first that is
# 3.11 or later). VENV: the virtual environment to make (default .venv).
# Missing system packages are installed with apt-get by root or with passwordless sudo; with
# IPYTHON_ISOLATION_NO_APT=1, or where neither works, it is said what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/apt.sh

VENV=${VENV:-.venv}
EXTRAS=${EXTRAS:-test,bench,demo,dev}

die() {
    echo "setup: $*" >&2
    exit 1
}

# ---- what the system must have -------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

packages=()
have gcc || packages+=(gcc libc6-dev)
have g++ || packages+=(g++)
have make || packages+=(make)
have cmake || packages+=(cmake)
have ninja || packages+=(ninja-build)
have pkg-config || packages+=(pkg-config)
{ have pkg-config && pkg-config --exists libzmq; } || packages+=(libzmq3-dev)
{ have pkg-config && pkg-config --exists libdw; } || packages+=(libdw-dev) # names in native stacks

is_python() { # 3.11 or later, and really there (a pyenv shim may not be)
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 \
        "$HOME"/.pyenv/versions/3.1[123].*/bin/python3; do
        if is_python "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}
if [ -n "${PYTHON:-}" ] && [ "$PYTHON" != python3 ]; then
    is_python "$PYTHON" || die "$PYTHON is not a working CPython 3.11 or later"
else
    PYTHON=$(find_python)
fi
if [ -z "$PYTHON" ]; then
    packages+=(python3 python3-dev python3-venv)
else
    # `version include prefix`; a distribution's python may come without headers and ensurepip.
    read -r version include debian < <("$PYTHON" -c '
import sys, sysconfig
print("%d.%d" % sys.version_info[:2], sysconfig.get_path("include"), int(sys.base_prefix == "/usr"))')
    need_python=()
    [ -e "$include/Python.h" ] || need_python+=("python$version-dev")
    "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 || need_python+=("python$version-venv")
    if [ ${#need_python[@]} -gt 0 ]; then
        [ "$debian" = 1 ] || die "$PYTHON lacks its headers or ensurepip ($include/Python.h)"
        packages+=("${need_python[@]}")
    fi
fi

if [ ${#packages[@]} -gt 0 ]; then
    apt_install setup "${packages[@]}"
    [ -n "$PYTHON" ] || PYTHON=$(find_python)
    [ -n "$PYTHON" ] || die "no Python 3.11 or later: install one, and say PYTHON=..."
fi

# ---- the virtual environment ---------------------------------------------------------------------

full() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

if [ -e "$VENV" ] && ! is_python "$VENV/bin/python"; then
    [ -e "$VENV/pyvenv.cfg" ] || die "$VENV is there and is no virtual environment"
    echo "setup: $VENV is broken, making it anew"
    rm -rf "$VENV"
fi
if [ ! -e "$VENV" ]; then
    echo "setup: making $VENV from $PYTHON ($(full "$PYTHON"))"
    "$PYTHON" -m venv "$VENV"
elif [ "$(full "$VENV/bin/python")" != "$(full "$PYTHON")" ]; then
    die "$VENV holds Python $(full "$VENV/bin/python"), not $(full "$PYTHON"): say VENV=.venv-$(full "$PYTHON")"
fi

# The build's and the extras' requirements, from pyproject.toml; the project itself comes later.
mapfile -t requirements < <(EXTRAS=$EXTRAS "$VENV/bin/python" - <<'PY'
import os, tomllib

with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)
extras = project["project"]["optional-dependencies"]
wanted = list(project["build-system"]["requires"]) + list(project["project"]["dependencies"])
for extra in os.environ["EXTRAS"].split(","):
    wanted += extras[extra]
print("\n".join(dict.fromkeys(wanted)))
PY
)
echo "setup: Python packages for $VENV (${EXTRAS})"
PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install -qq "${requirements[@]}" ||
    die "pip could not install: ${requirements[*]}"
