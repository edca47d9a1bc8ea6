#!/usr/bin/env bash
# Lint, types and tests in a virtual environment of their own: .venv (or $BNNCONVERT_VENV).
# Arguments go to pytest: bash tests/run.sh tests/cli -x
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${BNNCONVERT_VENV:-$root/.venv}
echo "bnnconvert: install into $venv, then ruff, mypy and pytest"
cd "$root"

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "run.sh: needs Python 3.11 or newer; install it, or set PYTHON." >&2
    return 1
}

if [ ! -e "$venv/.complete" ]; then
    python=$(find_python)
    "$python" -m venv --clear "$venv"
fi
# Quick where nothing has changed, and it picks up new dependencies.
"$venv/bin/python" -m pip install --quiet -c examples/constraints.txt --editable ".[test]"
touch "$venv/.complete"

unset PYTHONPATH
# Test-sized tensors gain nothing from threads, and threads of several processes only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH="$venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
# One process per core; -n 0 runs them in this one.
pytest -n auto --dist worksteal "$@"
