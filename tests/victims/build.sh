#!/bin/sh
# Compiles the victims for one Python, beside each other: build.sh [PYTHON [MODULE]]
#
# All of them need Cython, cffi and pybind11 in that Python, `cv_module` alone needs nothing.
#
# The ABI tag in the file names lets several Pythons share the directory. Nothing is done, and nothing
# printed, for what is newer than its sources.
set -eu

python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
only=${2:-}
cd "$(dirname "$0")"

config=$("$python" -c 'import sysconfig
print(sysconfig.get_config_var("EXT_SUFFIX"))
print(sysconfig.get_path("include"))')
suffix=$(printf '%s\n' "$config" | sed -n 1p)
include=$(printf '%s\n' "$config" | sed -n 2p)

wanted() {
    [ -z "$only" ] || [ "$only" = "$1" ]
}

# compile MODULE SOURCE-OR-HEADER...
compile() {
    wanted "$1" || return 0
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

# compile_cxx MODULE SOURCE [FLAG...]
compile_cxx() {
    wanted "$1" || return 0
    output=$1$suffix source=$2
    if [ -e "$output" ] && [ "$output" -nt "$source" ] && [ "$output" -nt build.sh ]; then return 0; fi
    shift 2
    echo "building $output"
    ${CXX:-g++} -std=c++17 -O1 -g -w -fPIC -shared -pthread -I"$include" "$@" "$source" -o "$output.$$"
    mv "$output.$$" "$output"
}

generated=../../build/victims

# generated MODULE SOURCE EXTENSION COMMAND...: the source that a generator writes, then a module of it
generated() {
    wanted "$1" || return 0
    output=$1$suffix source=$2 target=$generated/$1$suffix.$3
    if [ -e "$output" ] && [ "$output" -nt "$source" ] && [ "$output" -nt build.sh ]; then return 0; fi
    shift 3
    echo "building $output"
    mkdir -p "$generated"
    "$@"
    case $target in *.cpp) compiler="${CXX:-g++} -std=c++17 -fvisibility=hidden -I$pybind" ;; *) compiler=${CC:-gcc} ;; esac
    # shellcheck disable=SC2086  # a command and its flags
    $compiler -O1 -g -w -fPIC -shared -pthread -I"$include" "$target" -o "$output.$$" -lm
    mv "$output.$$" "$output"
}

compile cv_module cv_module/cv_module.c cv_module/cv.c cv_module/cv.h
compile _deaths _deaths.c
compile_cxx _crashes _crashes.cpp
# The same with the address sanitizer, for a child that runs under it.
if [ -e "$(${CXX:-g++} -print-file-name=libasan.so)" ]; then
    compile_cxx _sanitized _crashes.cpp -fsanitize=address -DPyInit__crashes=PyInit__sanitized
fi

generated cythonic cythonic.pyx c \
    "$python" -m cython -3 cythonic.pyx -o "$generated/cythonic$suffix.c"
generated _ffi_zoo cffi_build.py c \
    "$python" cffi_build.py "$generated/_ffi_zoo$suffix.c"
wanted bound_zoo || exit 0
pybind=$("$python" -c 'import pybind11; print(pybind11.get_include())')
generated bound_zoo bound_zoo.cpp cpp cp bound_zoo.cpp "$generated/bound_zoo$suffix.cpp"
