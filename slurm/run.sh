# shellcheck shell=bash
# Shared by the scripts in this folder, which source it: run a module of tlbatch on this machine, as SLURM jobs, or as
# steps of the current allocation, which is requeued when its time has run out.

run_module() { # ROOT MODULE SIGNAL_DELAY_S [ARGUMENT...]
  local root=$1 module=$2 delay=$3 python code=0 where=() needed=()
  shift 3
  if [ -n "${TLBATCH_CONTAINER:-}" ]; then
    set -- "slurm.container=$TLBATCH_CONTAINER" "$@"
    [ "$TLBATCH_CONTAINER" = none ] || needed=(host)
  fi
  python=$(bash "$root/slurm/env.sh" "${needed[@]}")
  # Not in a batch script or under salloc. A shell that srun started is a step already and cannot start others.
  if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "${SLURM_STEP_ID:-}" ]; then
    if [ "$module" = tlbatch.submit ] || ! command -v sbatch > /dev/null; then where=(--local); fi
    exec "$python" -m "$module" "${where[@]}" "$@"
  fi
  # shellcheck disable=SC1091 # found only at run time
  source "$root/tlbatch/cluster/host.sh"
  tlbatch_begin "$delay"
  "$python" -m "$module" --in-allocation "$@" || code=$?
  if [ "$code" = 75 ]; then tlbatch_again $((${SLURM_RESTART_COUNT:-0} + 1)); fi # the module has checked slurm.max_restarts
  exit "$code"
}
