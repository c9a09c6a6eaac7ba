#!/usr/bin/env bash
# Run a job from images to leaderboard.
#
#   bash slurm/finetune.sh [JOB.toml ...] [key=value ...]      on this machine
#   sbatch [--nodes=2 --gpus-per-node=4 --ntasks-per-node=4] slurm/finetune.sh [JOB.toml ...] [key=value ...]
#
# Without a job file it runs jobs/quickstart.toml, which needs no data. Options of sbatch override the lines below.
# Set TLBATCH_CONTAINER=RUNTIME:IMAGE to run the tasks in a container, as slurm.container does.
#SBATCH --job-name=tlbatch
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --output=tlbatch-%j.log
set -euo pipefail

# SLURM runs a copy of this file from its spool folder, so look for the checkout where sbatch was called.
find_root() {
  local folder
  for folder in "${TLBATCH_HOME:-}" "$(dirname -- "${BASH_SOURCE[0]}")/.." "${SLURM_SUBMIT_DIR:-}" "${SLURM_SUBMIT_DIR:-}/.."; do
    if [ -n "$folder" ] && [ -f "$folder/slurm/env.sh" ]; then
      (CDPATH='' cd -- "$folder" && pwd)
      return
    fi
  done
  echo "error: cannot find the checkout of tlbatch from $PWD; set TLBATCH_HOME=PATH" >&2
  exit 2
}

root=$(find_root)

has_job() {
  local argument
  for argument; do
    case "$argument" in
      /*.toml | .*.toml) return ;;
      *=* | -*) if [ -f "$argument/job.json" ]; then return; fi ;;
      *) return ;;
    esac
  done
  return 1
}

has_job "$@" || set -- "$root/jobs/quickstart.toml" "$@"

# shellcheck disable=SC1091 # found only at run time
source "$root/slurm/run.sh"
run_module "$root" tlbatch.submit 120 "$@" # the seconds of --signal above
