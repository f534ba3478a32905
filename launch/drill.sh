#!/usr/bin/env bash
# Breaks real runs of a tiny model, starts them again and prints what they survive; the arguments
# are those of tests/drills/drill.py, see --help. VENV names the folder of the environment that
# `launch/test.sh` has made (.venv), PYTHON an interpreter of another one.
set -euo pipefail
cd "$(dirname "$0")/.."

export JAX_PLATFORMS=cpu
python=${PYTHON:-${VENV:-.venv}/bin/python}
command -v "$python" >/dev/null || {
  echo "launch/drill.sh: no $python; \`bash launch/test.sh --fast\` makes it, VENV names another folder" >&2
  exit 2
}
exec "$python" tests/drills/drill.py "$@"
