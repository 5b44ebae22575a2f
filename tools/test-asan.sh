#!/usr/bin/env bash
# The suite with the C parts under the address and undefined-behaviour sanitizers.
#
#   tools/test-asan.sh [pytest's arguments]
#
# PARALLEL: arguments of pytest-xdist (default -n auto).
#
# It works in a copy of the tree (build/asan/tree), since both builds put _core into the package, and
# in a venv of its own (.venv-asan). Tests marked no_asan are left out. A sanitizer's report in any
# process, also in a child whose death a test expects, fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
tree=$root/build/asan/tree
logs=$root/build/asan/logs
make=${MAKE:-make}
read -ra parallel <<<"${PARALLEL--n auto}"
venv=$root/.venv-asan

# The copy: sources anew, with their times; build/ stays, so that unchanged C is not compiled again.
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 -not -name build -exec rm -rf {} +
tar -c --exclude=./build --exclude=./dist --exclude='./.venv*' --exclude=./.git \
    --exclude='*.so' --exclude=./ipython_isolation/_supervisor --exclude=__pycache__ \
    --exclude=.pytest_cache . | tar -x -C "$tree"
rm -rf "$logs"
mkdir -p "$logs"

cd "$tree"
"$make" --no-print-directory build c-tests victims VENV="$venv" SANITIZE=address,undefined

# libstdc++ too: else the sanitizer finds no real __cxa_throw when a C++ library throws.
preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)"
common="log_path=$logs/report:print_stacktrace=1:handle_segv=0:handle_abort=0:handle_sigbus=0"
common="$common:handle_sigfpe=0:handle_sigill=0:allow_user_segv_handler=1:use_sigaltstack=0"
status=0
LD_PRELOAD=$preload \
    ASAN_OPTIONS="$common:detect_leaks=0:allocator_may_return_null=1:disable_coredump=1" \
    UBSAN_OPTIONS="$common:halt_on_error=1" \
    IPYTHON_ISOLATION_SANITIZER_LOG="$logs/report" PYTHONMALLOC=malloc \
    IPYTHON_ISOLATION_ASAN=1 \
    "$venv/bin/python" -m pytest "${@:-tests}" "${parallel[@]}" -m "not no_asan" -o timeout=180 -o faulthandler_timeout=240 \
    -p no:cacheprovider || status=$?

shopt -s nullglob
# An allocation that fails as it should (a garbled frame that claims terabytes) is only a warning.
mapfile -t reports < <(grep -lE 'ERROR:|runtime error:' "$logs"/* 2>/dev/null || true)
if [ ${#reports[@]} -gt 0 ]; then
    echo "test-asan: ${#reports[@]} report(s) of the sanitizers:"
    for report in "${reports[@]:0:5}"; do
        echo "---- $report"
        head -60 "$report"
    done
    [ $status -ne 0 ] || status=1
fi
exit $status
