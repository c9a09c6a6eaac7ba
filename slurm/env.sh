#!/usr/bin/env bash
# Create the environment of tlbatch: a virtual environment with the pinned packages, in .venv or $TLBATCH_ENV.
#
#   bash slurm/env.sh [EXTRA,...]      default: quickstart,export; the tests need dev,quickstart,export
#   bash slurm/env.sh host             without torch, where tasks run in a container (200 MB instead of 6 GB)
#
# Without EXTRA, an existing host environment is kept. Bytecode is compiled at once: where Python cannot write it, each
# stage would spend ten seconds on it. The environment is updated only when the pins change. Run this on a login node if
# compute nodes have no internet access. It prints the path of its Python.
set -euo pipefail

UV_VERSION=0.13.9
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
env=${TLBATCH_ENV:-$root/.venv}
case "$env" in /*) ;; *) env=$PWD/$env ;; esac

extras=${1:-}
if [ "${extras:-host}" = host ]; then # a full environment can do this too
  whole=("$env"/.tlbatch-*quickstart*)
  if [ -f "${whole[0]}" ] || { [ -z "$extras" ] && [ ! -f "$env/.tlbatch-host" ]; }; then
    extras=quickstart,export
  else
    extras=host
  fi
fi

find_python() {
  local name
  local names=(python3 python3.13 python3.12 python3.11)
  [ -z "${TLBATCH_PYTHON:-}" ] || names=("$TLBATCH_PYTHON")
  for name in "${names[@]}"; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or later with venv on PATH; load one, or set TLBATCH_PYTHON=PATH" >&2
  exit 2
}

pins() {
  { cat "$root/constraints.txt" "$root/pyproject.toml"; echo "$root uv $UV_VERSION"; } | sha256sum | cut -d' ' -f1
}

install() { # ARGUMENT...
  "$env/bin/uv" pip install --quiet --compile-bytecode --python "$env/bin/python" --constraint constraints.txt "$@" >&2
}

make_env() {
  local python stamp
  stamp="$env/.tlbatch-$extras"
  [ "$(cat "$stamp" 2>/dev/null)" = "$(pins)" ] && return
  python=$(find_python)
  echo "creating the environment $env (once; needs about $([ "$extras" = host ] && echo 200 MB || echo 6 GB) and a package" \
    "index)" >&2
  [ -x "$env/bin/python" ] || "$python" -m venv "$env" >&2
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" >&2
  (
    CDPATH='' cd -- "$root" # so that the checkout's name cannot be read as a URL or as extras
    if [ "$extras" = host ]; then
      install --group host
      install --no-deps --editable .
    else
      install --editable ".[$extras]"
    fi
  )
  pins > "$stamp"
}

mkdir -p -- "$(dirname -- "$env")"
exec 9> "$env.lock"
flock 9 # two jobs may start at the same time
make_env
echo "$env/bin/python"
