#!/usr/bin/env bash
# Installs this tree and the tested versions for one kind of machine: install.sh tpu | gpu
# Images of TPU VMs have an older Python, so uv fetches one. VIDEORFT_VENV names another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=0.9.5
venv=${VIDEORFT_VENV:-$HOME/.videorft/venv}
case ${1-} in tpu | gpu) ;; *)
  echo "install: give tpu or gpu" >&2
  exit 2
  ;;
esac
PATH=$HOME/.local/bin:$PATH
command -v uv >/dev/null || curl -LsSf "https://astral.sh/uv/$UV/install.sh" | sh
[ -x "$venv/bin/python" ] || uv venv --quiet --python 3.12 "$venv"
uv pip install --quiet --python "$venv/bin/python" --constraint requirements.lock --editable ".[$1]"
echo "installed: $("$venv/bin/python" --version), $(cat REVISION 2>/dev/null || echo "this tree")"
