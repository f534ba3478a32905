#!/usr/bin/env bash
# Reads batches, trains and serves for long and finds out whether anything grows; the arguments are
# those of tests/drills/soak.py, see --help. PYTHON names the interpreter of an environment that
# `launch/test.sh` has made.
set -euo pipefail
cd "$(dirname "$0")/.."

export JAX_PLATFORMS=cpu
exec "${PYTHON:-.venv/bin/python}" tests/drills/soak.py "$@"
