#!/usr/bin/env bash
# The main job on a small scale: a float network in, three commands later a verified 1-bit file out.
# Makes its own virtual environment in .venv-quickstart (or $BNNCONVERT_VENV); works in a temporary folder.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$examples")
venv=${BNNCONVERT_VENV:-$root/.venv-quickstart}

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "quickstart.sh: needs Python 3.11 or newer; install it, or set PYTHON." >&2
    return 1
}

# Show a command as a user would type it, then run it.
step() {
    echo
    echo "\$ $*"
    "$@"
}

# A half-made environment (no marker) is made again; installing is quick where nothing has changed.
if [ ! -e "$venv/.complete" ]; then
    python=$(find_python)
    echo "Installing bnnconvert into $venv (once; a few minutes, most of it torch) ..."
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet -c "$examples/constraints.txt" "${root}[digits]"
touch "$venv/.complete"
export PATH="$venv/bin:$PATH"
unset PYTHONPATH
# Images of 8x8 give a second thread nothing to do but wait.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$examples/digits_net.py" "$examples/quickstart.py" "$work"
cd "$work"

step python quickstart.py train
step bnnconvert convert model.pt --model digits_net:build --recipe xnor
python quickstart.py converted
step bnnconvert finetune --data digits
bnnconvert evaluate --data digits --json > fine-tuned.json
step bnnconvert export --packed
bnnconvert evaluate model.packed.safetensors --data digits --json > packed.json
step bnnconvert verify model.packed.safetensors --against model.bnn --data digits
bnnconvert verify model.packed.safetensors --against model.bnn --data digits --json > verify.json
python quickstart.py table
