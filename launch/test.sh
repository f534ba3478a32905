#!/usr/bin/env bash
# Makes a virtual environment, installs the tested versions and runs the whole test suite, or with
# --fast what needs no compilation: lint, types, documentation and the quick tests.
# PYTHON names the interpreter (3.11 or 3.12), VENV the folder; arguments go to pytest.
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
pip install --quiet -e '.[test]' # adds the pinned torch, the oracle of the tests, and this package
pip check

pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
NO_MKDOCS_2_WARNING=1 "$VENV/bin/mkdocs" build --quiet --strict --site-dir "$pages"
"$VENV/bin/mypy"

tests=()
if [ "${1-}" = --fast ]; then
  shift
  mapfile -t tests < <(grep -v '^#' tests/fast.txt)
fi
# In the order of their names: by number of tests, the few long ones would all come last.
"$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${tests[@]}" "$@"
