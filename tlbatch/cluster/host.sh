# The part of a batch script that runs around the tasks of a stage, on the host: it needs no container and no Python.
# tlbatch.cluster.sbatch writes it into every script; slurm/run.sh sources it.

# Set what the tasks need to know: when the job's time ends, how long SLURM waits before it kills them, where to log.
tlbatch_begin() { # SIGNAL_DELAY_S [RUN STAGE]
  local end
  trap : USR2 # a signal meant for the tasks (scancel --full) must not end the script
  # The plain id of the last element of an array is that of the entire array.
  TLBATCH_ID=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  TLBATCH_ID=${TLBATCH_ID:-$SLURM_JOB_ID}
  end=$(squeue --noheader --jobs="$TLBATCH_ID" --format=%e 2> /dev/null || true)
  if [ -n "$end" ] && end=$(date --date="$end" +%s 2> /dev/null); then export TLBATCH_DEADLINE=$((end - $1)); fi
  TLBATCH_KILL_WAIT=$(scontrol show config 2> /dev/null | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p' || true)
  export TLBATCH_KILL_WAIT
  if [ $# -gt 1 ]; then
    export TLBATCH_AGAIN="$2/markers/$3.again.$TLBATCH_ID.${SLURM_RESTART_COUNT:-0}"
    TLBATCH_RUN=$2 TLBATCH_STAGE=$3
    export TLBATCH_LOG="${2//%/%%}/logs/$3-$TLBATCH_ID.${SLURM_RESTART_COUNT:-0}-rank%t.log"
  fi
}

# Exit at once if the previous stage did not succeed for this run, which SLURM cannot check where runs share a job.
tlbatch_need() { # DONE_FILE
  local tries
  for tries in 0 1 2 3; do
    sleep "$tries"
    if [ -e "$1" ]; then return; fi
  done
  echo "error: $1 is missing: the previous stage failed for this run; resume with tlbatch.submit RUN" >&2
  exit 1
}

# Exit with 0 only if the work is done, so that dependent jobs never start on incomplete results.
tlbatch_end() { # EXIT_CODE AGAIN_FILE MOST_RESTARTS DONE_FILE...
  local tries
  for tries in 1 2 3 4 5; do # a file written on another node can appear late
    if tlbatch_all_there "${@:4}"; then tlbatch_tell finished && exit 0; fi
    if [ -e "$2" ]; then tlbatch_again "$3"; fi
    if [ "$1" != 0 ]; then tlbatch_tell failed && exit "$1"; fi
    sleep "$tries"
  done
  tlbatch_tell failed && exit 1
}

# Call the user's program, if there is one; its outcome changes nothing here.
tlbatch_tell() { # finished|again|failed
  if [ -n "${TLBATCH_NOTIFY:-}" ]; then
    timeout 30 "$TLBATCH_NOTIFY" "$TLBATCH_STAGE" "$TLBATCH_RUN" "$1" || echo "slurm.notify failed, the job continues" >&2
  fi
}

tlbatch_all_there() { # FILE...
  local file
  for file; do if [ ! -e "$file" ]; then return 1; fi; done
}

# Requeue the job, up to some number of times.
tlbatch_again() { # MOST_RESTARTS
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$1" ]; then
    echo "error: restarted as often as slurm.max_restarts = $1 allows; raise it, and resume with tlbatch.submit RUN" >&2
    tlbatch_tell failed
    exit 77
  fi
  tlbatch_tell again
  echo "its time has run out: requeueing job $TLBATCH_ID"
  if scontrol requeue "$TLBATCH_ID"; then sleep 600; fi # SLURM ends this script
  echo "error: job $TLBATCH_ID could not be requeued; resume with tlbatch.submit RUN" >&2
  exit 77
}
