import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tlbatch.cluster.create import new_run, resolve
from tlbatch.cluster.sbatch import HOST, one_run, render
from tlbatch.config.load import load_job

pytestmark = pytest.mark.chain

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=eyes
#SBATCH --cpus-per-task=4
#SBATCH --dependency=afterok:17
#SBATCH --gpus-per-node=2
#SBATCH --job-name=flowers17-train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=16384M
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='{logs}/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
foreign=$(find '{run}' '{logs}' -prune '(' -perm /022 -o '!' -user "$(id -u)" ')') && [ -z "$foreign" ] || {{ echo \
"error: others can write to the run folder: $foreign; submit the job as a new run" >&2; exit 78; }}
{host}TLBATCH_NOTIFY=''
tlbatch_begin 120 '{run}' train
export SLURM_EXPORT_ENV=ALL
export NCCL_DEBUG=WARN || exit 78
trap '((${{#BASH_SOURCE[@]}} > 1)) || {{ echo "error: slurm.setup.$setup_line failed; fix this line of the job, or \
ignore the failure with || true" >&2; exit 78; }}' ERR
setup_line=0; eval 'module load cuda'
trap - ERR
set +eu
export SRUN_CPUS_PER_TASK=4

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '{logs}/%j_%t_log.out' --kill-on-bad-exit=1 --output="$TLBATCH_LOG" env \
--block-signal=USR2 {python} -u -m submitit.core._submit '{logs}'


# teardown
tlbatch_end $? "$TLBATCH_AGAIN" 100 '{run}/markers/train.json'
"""


def test_the_script_of_a_stage_is_the_golden_one_and_quotes_its_paths(jobs: Path, tmp_path: Path) -> None:
    space = tmp_path / "a b"
    options = [
        "slurm.nodes=3", "slurm.gpus_per_node=2", "slurm.cpus_per_task=4", "slurm.mem_gb=16", "slurm.partition=gpu",
        "slurm.account=eyes", "slurm.timeout_min=60", "slurm.setup=['module load cuda']", "run=r", "model.weights=none",
        "slurm.environment.NCCL_DEBUG=WARN",
    ]  # fmt: skip
    record = resolve(load_job([jobs / "flowers17.toml"], [*options, f"data.images={tmp_path}", f"workspace={space}"]))
    run, folder = new_run(record), space / "runs" / "r"
    text = render(one_run(run, "train"), after="afterok:17")
    assert text == GOLDEN.format(run=folder, logs=folder / "logs", python=sys.executable, host=HOST).rstrip()
    alone = render(one_run(run, "shard"), after=None)
    assert "#SBATCH --nodes=1" in alone
    assert "gpus" not in alone
    assert "dependency" not in alone


def test_help_is_light() -> None:
    """A login node is slow and may have no torch: --help must import none of the heavy packages."""
    heavy = {"torch", "torchvision", "accelerate", "webdataset", "sklearn", "pandas", "timm", "numpy", "submitit"}
    code = (
        "import sys\ntry:\n    from tlbatch.submit import main; main(['--help'])\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"--help took {time.perf_counter() - start:.2f} s")
    assert "HEAVY []" in done.stdout


def test_the_environment_of_the_host_has_what_its_commands_import() -> None:
    """Where tasks run in a container it holds no more than the group host of pyproject.toml."""
    commands = [
        "submit", "nightly", "registry", "status", "task", "container_image", "cluster.job_arrays", "cluster.launch",
        "cluster.results", "cluster.submission", "promotion.night",
    ]  # fmt: skip
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        f"for name in {commands}: __import__(f'tlbatch.{{name}}')\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_module = metadata.packages_distributions()
    used = {one.lower() for module in done.stdout.split() for one in of_module.get(module, [])}
    known = set[str]()
    left = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["host"]
    while left:
        name = re.split(r"[^A-Za-z0-9_.-]", left.pop())[0].lower()
        if name not in known:
            known.add(name)
            left += [one for one in metadata.requires(name) or [] if ";" not in one]
    same = {name.replace("_", "-") for name in known}
    assert {name.replace("_", "-") for name in used} - same == {"tlbatch"}
    assert len(used) > 8
