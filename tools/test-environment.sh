#!/bin/sh
# Adds the linters and test tools to .venv, and Spark's Python from the bundle. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
wanted=$(cat requirements/*.lock tools/test-environment.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/.tested" 2>/dev/null)" = "$wanted" ] && exit 0
echo "test environment: installing the linters and test tools"
pip="$venv/bin/python -m pip --disable-pip-version-check -q"
for lock in runtime test; do
  $pip install --no-deps --require-hashes --only-binary :all: -r "requirements/$lock.lock"
done
rm -rf build/spark && mkdir -p build/spark
tar -xf "$GRIDSTEAD_BUNDLE"/spark-*.tar -C build/spark
for site in "$venv"/lib/python3.*/site-packages; do
  printf '%s\n' "$PWD/analytics/src" "$PWD/build/spark/python" "$PWD"/build/spark/python/lib/py4j-*-src.zip >"$site/gridstead.pth"
done
echo "$wanted" >"$venv/.tested"
