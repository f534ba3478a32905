#!/usr/bin/env bash
# Installs the tested versions into a virtual environment and runs the demo: the whole method on
# synthetic clips, on two CPU cores, in minutes. Run it again to go on where it was stopped.
# PYTHON names the interpreter (3.11 or 3.12), VENV the folder, WORKDIR where everything is written;
# arguments go to the demo: `bash launch/demo.sh --config.seed=1`.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
"$PYTHON" -c 'import sys; v = sys.version_info[:2]; sys.exit(
    None if v in ((3, 11), (3, 12)) else f"Python {v[0]}.{v[1]}: set PYTHON to 3.11 or 3.12")'

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
echo "installing into $VENV"
pip install --quiet --no-deps --require-hashes -r requirements.lock
pip install --quiet --no-deps -e .

export JAX_PLATFORMS=cpu
# XLA for CPU asks the system for its scratch memory in each step, and gives it back. In huge pages
# that is a fraction of the faults; glibc takes the advice of this variable alone.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec "$VENV/bin/videorft" demo --config=configs/demo.py --workdir="${WORKDIR:-runs/demo}" "$@"
