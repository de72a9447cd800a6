#!/bin/sh
# Writes requirements/*.lock from requirements/*.in: exact versions with hashes, and no host names.
set -eu
cd "$(dirname "$0")/../requirements"
for name in build control runtime supervisor spark test; do
  uv pip compile -q --upgrade --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links "$name.in" -o "$name.lock"
done
