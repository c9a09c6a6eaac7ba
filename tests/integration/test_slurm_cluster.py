"""The SLURM cluster used by the other tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster as module
from slurm_cluster import SlurmCluster, cluster_processes, slurm_cluster, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for munged's socket."""
    with tempfile.TemporaryDirectory(prefix="tlbatch-slurm-", dir="/tmp") as folder:
        yield Path(folder)


def submit(slurm: SlurmCluster, command: str, *options: str) -> str:
    done = slurm.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_both_nodes_are_idle_with_eight_cpus_and_four_gpus(slurm: SlurmCluster) -> None:
    def nodes() -> list[str]:
        return slurm.run(
            "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T %c %G"
        ).stdout.splitlines()

    until(lambda: nodes() == ["n1 idle 8 gpu:4", "n2 idle 8 gpu:4"], 30)


def test_a_batch_job_runs_and_completes(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = submit(slurm, "echo ran", f"--output={tmp_path / 'log'}")
    assert slurm.wait([job], 30) == {job: "COMPLETED"}
    assert (tmp_path / "log").read_text(encoding="utf-8") == "ran\n"


def test_two_nodes_run_one_step(slurm: SlurmCluster) -> None:
    done = slurm.run("srun", "--nodes=2", "--ntasks-per-node=1", "sh", "-c", "echo $SLURM_PROCID on $SLURMD_NODENAME")
    assert sorted(done.stdout.splitlines()) == ["0 on n1", "1 on n2"]


def test_a_step_sees_the_gpus_it_asked_for(slurm: SlurmCluster) -> None:
    done = slurm.run("srun", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES $SLURM_GPUS_ON_NODE")
    assert done.stdout.split() == ["0,1", "2"]


def test_a_job_starts_as_soon_as_it_fits(slurm: SlurmCluster) -> None:
    assert "queued" not in slurm.run("srun", "true").stderr


def test_what_depends_on_a_failed_job_is_cancelled(slurm: SlurmCluster) -> None:
    failing = submit(slurm, "exit 3")
    waiting = submit(slurm, "true", f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes")
    assert slurm.wait([failing, waiting], 60) == {failing: "FAILED", waiting: "CANCELLED"}


def test_a_requeued_job_reruns_without_the_hold_of_two_minutes(slurm: SlurmCluster, tmp_path: Path) -> None:
    once = tmp_path / "once"
    job = submit(slurm, f"test -e {once} || {{ touch {once}; sleep 60; }}")
    until(once.exists, 30)
    assert slurm.run("scontrol", "requeue", job).returncode == 0
    until(lambda: slurm.job_field(job, "JobState") == "PENDING", 30)
    # A rerun in the very second of the requeue is refused: "Job credential revoked".
    assert slurm.run("scontrol", "update", f"jobid={job}", "starttime=now+2").returncode == 0
    assert slurm.wait([job], 30) == {job: "COMPLETED"}
    assert slurm.job_field(job, "Restarts") == "1"


def test_a_field_may_contain_spaces(slurm: SlurmCluster) -> None:
    job = submit(slurm, "true", "--job-name=two words=three")
    assert slurm.job_field(job, "JobName") == "two words=three"
    assert slurm.job_field("999999", "JobName") is None


def test_two_clusters_can_run_at_once(slurm: SlurmCluster, short_folder: Path) -> None:
    with slurm_cluster(short_folder) as other:
        assert other.run("srun", "hostname").returncode == slurm.run("srun", "hostname").returncode == 0
        assert cluster_processes(short_folder)
    assert not cluster_processes(short_folder)
    assert slurm.run("srun", "hostname").returncode == 0


def test_interrupt_leaves_no_process_of_a_job_that_ignores_signals(short_folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), slurm_cluster(short_folder) as other:
        ready = short_folder / "ready"
        submit(other, f"trap '' TERM; srun sh -c \"trap '' TERM; touch {ready}; sleep 300\"")
        until(ready.exists, 30)
        raise KeyboardInterrupt
    assert not cluster_processes(short_folder)


def test_a_start_that_fails_shows_the_logs_and_leaves_no_process(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLURM_CONF", module.SLURM_CONF.replace("NodeName=n2", "NodeName=n3"))
    with pytest.raises(RuntimeError, match=r"(?s)did not come up.*== slurmd-n2.out"), slurm_cluster(short_folder):
        pass
    assert not cluster_processes(short_folder)


def test_existing_devices_replace_gpus_if_none_can_be_created(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.mknod", refuse)
    with slurm_cluster(short_folder) as other:
        done = other.run("srun", "--nodes=2", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES")
    assert done.stdout.split() == ["0,1", "0,1"]
