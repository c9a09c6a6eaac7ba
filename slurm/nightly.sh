#!/usr/bin/env bash
# Nightly retraining: look for new images or labels, retrain, test, and promote the new model or keep the champion.
#
#   scrontab -e      #SCRON --time=08:00:00 --ntasks-per-node=1 --signal=USR2@120
#                    0 2 * * * TLBATCH_HOME=/path/of/tlbatch /path/of/tlbatch/slurm/nightly.sh JOB.toml
#   crontab -e       0 2 * * * cd /path/of/jobs && /path/of/tlbatch/slurm/nightly.sh JOB.toml >> nightly.log 2>&1
#   sbatch [--gpus-per-node=4 --ntasks-per-node=4] slurm/nightly.sh JOB.toml [key=value ...]
#
# In an allocation the stages run as its steps; elsewhere each is a separate SLURM job with the settings of slurm.*, or
# without SLURM all run on this machine. Nights of one registry never overlap: a second one prints a message and ends.
# Set TLBATCH_CONTAINER=RUNTIME:IMAGE to run the tasks in a container, as slurm.container does.
#SBATCH --job-name=tlbatch-nightly
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=USR2@120
#SBATCH --output=tlbatch-nightly-%j.log
#SBATCH --open-mode=append
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
# shellcheck disable=SC1091 # found only at run time
source "$root/slurm/run.sh"
run_module "$root" tlbatch.nightly 120 "$@" # the seconds of --signal above
