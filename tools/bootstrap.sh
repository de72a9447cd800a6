#!/bin/sh
# Prepares the control machine: a Python environment in .venv with Ansible, from the bundle where it has the wheels.
# As root it installs what is missing; else it says exactly what to install. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."
bundle=${GRIDSTEAD_BUNDLE:-bundle}
venv=.venv

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() { for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do usable "$python" && command -v "$python" && return; done; return 1; }
require() { # COMMAND PACKAGE WHY
  command -v "$1" >/dev/null && return
  echo "bootstrap: $1 is missing ($3)"
  missing="$missing $2"
}

missing=
find_python >/dev/null || { echo "bootstrap: no Python of at least 3.11 with venv"; missing="python3 python3-venv"; }
require java openjdk-17-jre-headless "every server but our own runs on it"
[ -f "$bundle/manifest.json" ] || require mvn maven "it resolves the servers for the bundle"
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "bootstrap: installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # several packages in one variable
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
  else
    echo "bootstrap: ERROR: only root may install packages. Next: sudo apt-get install$missing, then run this again." >&2
    exit 1
  fi
fi

python=$(find_python)
wanted=$(cat requirements/build.lock requirements/control.lock tools/bootstrap.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/.bootstrapped" 2>/dev/null)" = "$wanted" ] && exit 0
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"
mkdir -p "$bundle/wheels"
if [ "$(cat "$bundle/wheels/.complete" 2>/dev/null)" != "$wanted" ]; then
  echo "bootstrap: fetching Ansible (60 MB)"
  $pip download -q --no-deps --require-hashes --only-binary :all: -d "$bundle/wheels" -r requirements/build.lock -r requirements/control.lock
  echo "$wanted" >"$bundle/wheels/.complete"
fi
echo "bootstrap: installing Ansible into $venv"
$pip install -q --no-deps --no-index --find-links "$bundle/wheels" --require-hashes -r requirements/build.lock -r requirements/control.lock
echo "$wanted" >"$venv/.bootstrapped"
