#!/bin/sh
# Adds the linters and test tools to .venv, Spark's Python from the bundle, and as root the programs of the test lab and of the tests of images.
# A second run does nothing.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
missing=
for program in debootstrap:debootstrap ip:iproute2 nft:nftables ssh:openssh-client unshare:util-linux skopeo:skopeo; do
  command -v "${program%:*}" >/dev/null || missing="$missing ${program#*:}"
done
[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "test environment: installing$missing for the test lab, the test cluster and the images"
  # shellcheck disable=SC2086 # several packages in one variable
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
    echo "test environment: that failed, so the tests that need them will be skipped"
fi
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
