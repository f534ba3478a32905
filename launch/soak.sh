#!/usr/bin/env bash
# Reads batches, trains and serves for long and finds out whether anything grows; the arguments are
# those of tests/drills/soak.py, see --help. VENV names the folder of the environment
# that `launch/test.sh` has made (.venv), PYTHON an interpreter of another one.
set -euo pipefail
cd "$(dirname "$0")/.."

export JAX_PLATFORMS=cpu
python=${PYTHON:-${VENV:-.venv}/bin/python}
command -v "$python" >/dev/null || {
  echo "launch/soak.sh: no $python; \`bash launch/test.sh --fast\` makes it, VENV names another folder" >&2
  exit 2
}
exec "$python" tests/drills/soak.py "$@"
