#!/usr/bin/env bash
# Puts the tree that holds this file in the place of ~/.videorft/tree. The old tree is kept beside it
# where it holds anything that was not installed: runs, recipes that were edited, files of your own.
set -euo pipefail
cd "$(dirname "$0")/.."
new=$PWD home=$(dirname "$PWD")
find . -type f -exec sha256sum {} + >"$home/installed.new"
cd "$home"
if [ -e tree ]; then
  old=$(mktemp -d "$home/before.XXXXXX")
  mv -T tree "$old/tree"
  mv "$new" tree
  if [ -f installed ]; then # removes what is as it was installed, and what Python and pip made of it
    cd "$old/tree"
    { sha256sum --check ../../installed 2>/dev/null || true; } | sed -n 's/: OK$//p' |
      while IFS= read -r file; do rm -f -- "$file"; done
    find . -depth -type d \( -name __pycache__ -o -name '*.egg-info' \) -exec rm -rf {} +
    cd "$home"
  fi
  find "$old" -depth -type d -empty -delete
  [ ! -e "$old" ] || echo "$old/tree holds files that setup did not install: kept"
else
  mv "$new" tree
fi
mv installed.new installed
