#!/usr/bin/env bash
# The kernel tests under AddressSanitizer with UBSan, and under ThreadSanitizer. Needs cmake, a C++ compiler and the
# environment that run.sh makes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${BNNCONVERT_VENV:-$root/.venv}
cd "$root"
for sanitizers in address,undefined thread; do
    build=${BNNCONVERT_BUILD:-$root/build}/${sanitizers/,/-}
    echo "run_sanitized.sh: $sanitizers"
    cmake -S bnnconvert/runtime/csrc -B "$build" -DBNN_HOST=ON -DBNN_SANITIZE="$sanitizers" \
        -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
    cmake --build "$build" --parallel "$(nproc)"
    BNNCONVERT_TEST_HOST="$build/host" ASAN_OPTIONS=exitcode=99 UBSAN_OPTIONS=exitcode=99 TSAN_OPTIONS=exitcode=99 \
        "$venv/bin/python" -m pytest tests/runtime/test_native.py tests/runtime/test_hostile_plans.py -n "$(nproc)" "$@"
done
