#!/usr/bin/env bash
# Resolves setup.py anew into requirements.lock: the tested set, with hashes, for Python 3.11 and
# 3.12. torch is left out: its CPU build is another file on every platform.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/pip" install --quiet pip-tools
"$folder/bin/pip-compile" --quiet --upgrade --generate-hashes --extra test --strip-extras \
  --unsafe-package torch --unsafe-package setuptools \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o "$folder/lock" setup.py
sed '/^# WARNING/,$d' "$folder/lock" >requirements.lock
