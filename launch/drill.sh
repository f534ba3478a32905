#!/usr/bin/env bash
# Breaks real runs of a tiny model, starts them again and prints what they survive; the arguments
# are those of tests/drills/drill.py, see --help. PYTHON names the interpreter of an environment
# that `launch/test.sh` has made.
set -euo pipefail
cd "$(dirname "$0")/.."

export JAX_PLATFORMS=cpu
exec "${PYTHON:-.venv/bin/python}" tests/drills/drill.py "$@"
