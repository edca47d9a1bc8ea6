#!/usr/bin/env bash
# The kernel tests on 64-bit Arm: cross-built, and run by an emulator. Needs g++-aarch64-linux-gnu, qemu-user, cmake
# and the environment that run.sh makes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${BNNCONVERT_VENV:-$root/.venv}
build=${BNNCONVERT_BUILD:-$root/build}/aarch64
for tool in aarch64-linux-gnu-g++ qemu-aarch64 cmake; do
    command -v "$tool" >/dev/null || { echo "run_arm.sh: needs $tool (apt-get install g++-aarch64-linux-gnu qemu-user cmake)" >&2; exit 1; }
done
cmake -S "$root/bnnconvert/runtime/csrc" -B "$build" -DBNN_HOST=ON -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
cmake --build "$build" --parallel "$(nproc)"
export BNNCONVERT_TEST_HOST="qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=$build $build/host"
cd "$root"
"$venv/bin/python" -m pytest tests/runtime/test_native.py tests/runtime/test_hostile_plans.py -n "$(nproc)" "$@"
