"""The cluster that the other tests stand on."""

import tempfile
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, slurm_cluster

pytestmark = pytest.mark.slurm


def submit(slurm: SlurmCluster, command: str, *options: str) -> str:
    done = slurm.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_two_nodes_run_one_step(slurm: SlurmCluster) -> None:
    done = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", "sh", "-c", "echo $SLURM_PROCID on $SLURMD_NODENAME")
    assert sorted(done.stdout.splitlines()) == ["0 on n1", "1 on n2"]


def test_a_step_sees_the_gpus_it_asked_for(slurm: SlurmCluster) -> None:
    done = slurm.run("srun", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES $SLURM_GPUS_ON_NODE")
    assert done.stdout.split() == ["0,1", "2"]


def test_what_depends_on_a_failed_job_is_cancelled(slurm: SlurmCluster) -> None:
    failing = submit(slurm, "exit 3")
    waiting = submit(slurm, "true", f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes")
    assert slurm.wait([failing, waiting], 60) == {failing: "FAILED", waiting: "CANCELLED"}


def test_two_clusters_can_run_at_once(slurm: SlurmCluster) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tlbatch-slurm-", dir="/tmp") as folder,
        slurm_cluster(Path(folder)) as other,
    ):
        assert other.run("srun", "hostname").returncode == slurm.run("srun", "hostname").returncode == 0
