#!/bin/sh
# Compiles the victims for one Python, beside each other: build.sh [PYTHON]
#
# The ABI tag in the file names lets several Pythons share the directory. Nothing is done, and nothing
# printed, for what is newer than its sources.
set -eu

python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
cd "$(dirname "$0")"

config=$("$python" -c 'import sysconfig
print(sysconfig.get_config_var("EXT_SUFFIX"))
print(sysconfig.get_path("include"))')
suffix=$(printf '%s\n' "$config" | sed -n 1p)
include=$(printf '%s\n' "$config" | sed -n 2p)

# compile MODULE SOURCE-OR-HEADER...
compile() {
    output=$1$suffix
    shift
    sources= stale=
    [ -e "$output" ] || stale=yes
    for file in "$@" build.sh; do
        case $file in *.c) sources="$sources $file" ;; esac
        [ ! "$file" -nt "$output" ] || stale=yes
    done
    [ -n "$stale" ] || return 0
    echo "building $output"
    # Into place by a rename: a test that runs at the same time sees the old module or the new one.
    # shellcheck disable=SC2086  # the list of sources is meant to be split
    ${CC:-gcc} -O1 -g -Wall -Wextra -Werror -fPIC -shared -pthread -I"$include" $sources \
        -o "$output.$$" -lm
    mv "$output.$$" "$output"
}

compile cv_module cv_module/cv_module.c cv_module/cv.c cv_module/cv.h
compile _deaths _deaths.c
