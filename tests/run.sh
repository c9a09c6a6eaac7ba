#!/usr/bin/env bash
# All checks: format, lint, spelling, types, import contracts, tests. Installs what it needs, and says what it leaves out.
#
#   bash tests/run.sh [fast|chain|cluster|campaign] [PYTEST OPTIONS]
#
# A tier runs its tests alone, fast with the other checks before them; without one, everything runs. See tests/README.md.
#
# TLBATCH_TEST_DATA=FOLDER    real images to test on (without it those tests are skipped)
# TLBATCH_REQUIRE_SLURM=1     fail where the tests on a real SLURM and in a real browser cannot run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(slurm-wlm munge dataset-fashion-mnist curl chromium chromium-driver charliecloud-runtime fuse3 squashfs-tools)

install_packages() {
  command -v slurmctld slurmd munged sbatch curl chromium chromedriver ch-run mksquashfs > /dev/null &&
    [ -d /usr/share/datasets/fashion-mnist ] && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "left out: tests on SLURM, in containers, of Fashion-MNIST, downloads or pages (not all of ${packages[*]} are" \
      "installed, and only root on Debian or Ubuntu can)"
    return
  fi
  echo "installing ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
}

tier=all
case "${1:-}" in fast | chain | cluster | campaign) tier=$1 && shift ;; esac
export PATH="$PATH:/usr/sbin:/sbin"
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
[ "$tier" = fast ] || install_packages &
python=$(bash slurm/env.sh dev,quickstart,export)
wait "$!" # for the packages
bin=$(dirname "$python")

check() {
  "$bin/mypy" &
  "$bin/ruff" format --check --quiet .
  "$bin/ruff" check --quiet .
  "$bin/codespell" tlbatch tests jobs slurm ./*.md Containerfile
  "$bin/lint-imports" --no-cache > /dev/null || "$bin/lint-imports" --no-cache
  if command -v shellcheck > /dev/null; then
    shellcheck slurm/*.sh tests/*.sh .ci/run && shellcheck --shell=bash tlbatch/cluster/*.sh
  fi
  wait "$!" # for mypy
}

case $tier in all | fast) check ;; esac
# One thread a process where several run at once; a test that measures sets its own.
export OMP_NUM_THREADS=1
case $tier in all) marked= ;; *) marked=$tier ;; esac
"$python" -m pytest -m "$marked" -n 2 --durations=8 "$@"
