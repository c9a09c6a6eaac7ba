"""A chain on a real SLURM whose folders, variables and setup lines contain characters that break shell scripts."""

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import submitit
from slurm_cluster import SlurmCluster

from tlbatch.cluster import launch, sbatch
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.runs.run import Run

pytestmark = pytest.mark.cluster
WORKSPACE = "a b'c\"d $(touch pwned) `touch pwned` #e;f&g|h*i?[j]{k}~!ü"
IMAGES = f"{WORKSPACE} %j %% back\\slash\\ new\nline"
VALUE = f"{IMAGES}\n#SBATCH --qos=high\n,x=y\t"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, write_folders: Callable[..., Path]) -> Path:
    return write_folders(tmp_path_factory.mktemp("nasty") / IMAGES)


def options(images: Path, *more: str) -> list[str]:
    return [f"data.images={images}", f"workspace={images.parent / WORKSPACE}", *more]


@pytest.fixture
def prepare(images: Path, tiny_job: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Return a function that creates runs, with this process configured for the cluster."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)

    def prepared(*more: str, **values: object) -> Run:
        job = load_job([tiny_job], options(images, *more))
        section = type(job.slurm).model_validate(job.slurm.model_dump() | values)
        return make_run(resolve(job.model_copy(update={"slurm": section})))

    return prepared


def submit_work(run: Run, folder: Path) -> str:
    """Submit a job that records the variable in each task, with the script of the stage train; return its id."""

    def write(folder: str) -> None:  # pickled whole, since no task could import this file
        Path(folder, os.environ["SLURM_PROCID"]).write_text(os.environ["VALUE"], encoding="utf-8")
        marker = Path(os.environ["TLBATCH_AGAIN"]).with_name("train.json")
        marker.parent.mkdir(exist_ok=True)
        marker.touch()

    folder.mkdir()
    executor = submitit.SlurmExecutor(run.paths.logs)
    executor.update_parameters(**sbatch.slurm_parameters(sbatch.one_run(run, "train"), after=None))
    job_id: str = executor.submit(write, str(folder)).job_id
    return job_id


def test_chain_runs_with_any_folder_names_and_prints_no_secret(
    images: Path, tiny_job: Path, slurm: SlurmCluster, tmp_path: Path
) -> None:
    site = tmp_path / "a=b 'site.toml"
    shutil.copy(tiny_job, tmp_path / "tiny.toml")
    variable = json.dumps(VALUE + "whisper")
    site.write_text(
        "[slurm]\nnodes = 2\nshard_tasks = 2\ninterface = 'lo'\n"
        f'setup = [\'true # whisper\', """\nPLACE=whisper\n"""]\nenvironment = {{ HUSH = {variable} }}\n',
        encoding="utf-8",
    )
    done = slurm.run(
        sys.executable, "-m", "tlbatch.submit", str(site), str(tmp_path / "tiny.toml"), *options(images, "run=chain"),
        "data.shard_images=8", "--wait", timeout_s=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = images.parent / WORKSPACE / "runs" / "chain"
    assert f"report          {folder}/report/report.html\n" in done.stdout
    assert "train 2 ranks on CPU, 1 thread each" in done.stdout
    for made in (folder, folder / "logs"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    told = [(folder / "report" / name).read_text("utf-8") for name in ("report.html", "report.json")]
    assert "whisper" in (folder / "job.json").read_text("utf-8")
    assert [text for text in told if "whisper" in text or "HUSH" in text] == []
    assert not [file for place in (images.parent, tmp_path, Path.cwd()) for file in place.glob("**/pwned")]


@pytest.mark.parametrize("export", ["ALL", "NONE"])
def test_every_task_on_every_node_has_the_variables_unchanged(
    prepare: Callable[..., Run], slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: str
) -> None:
    monkeypatch.setenv("SBATCH_EXPORT", export)
    run = prepare(f"run={export}", nodes=2, environment={"VALUE": VALUE}, setup=["cd /"])
    job_id = submit_work(run, tmp_path / "seen")
    assert slurm.wait([job_id], 60) == {job_id: "COMPLETED"}
    assert {file.name: file.read_text("utf-8") for file in (tmp_path / "seen").iterdir()} == {"0": VALUE, "1": VALUE}


@pytest.mark.parametrize(
    "line", ["true; false", "false; true", "false && true", "false\ntrue", "it's open", "no-such # x"]
)
def test_a_failing_setup_line_stops_the_job_before_it_starts(
    prepare: Callable[..., Run], slurm: SlurmCluster, tmp_path: Path, line: str
) -> None:
    run = prepare(f"run={line.encode().hex()}", environment={"VALUE": VALUE}, setup=["true", line])
    job_id = submit_work(run, tmp_path / "seen")
    assert slurm.wait([job_id], 60) == {job_id: "FAILED"}
    assert slurm.job_field(job_id, "ExitCode") == "78:0"
    assert list((tmp_path / "seen").iterdir()) == []
    log = (run.paths.logs / f"{job_id}_0_log.out").read_text("utf-8")
    assert log.endswith("error: slurm.setup.1 failed; fix this line of the job, or ignore the failure with || true\n")


def test_a_run_folder_that_was_opened_since_stops_the_job(prepare: Callable[..., Run], slurm: SlurmCluster) -> None:
    run = prepare("run=opened")
    slurm.run("scontrol", "update", "partition=main", "state=down")
    jobs = launch.submit_chain(run)
    run.folder.chmod(0o770)
    slurm.run("scontrol", "update", "partition=main", "state=up")
    assert slurm.wait([jobs["shard"]], 60) == {jobs["shard"]: "FAILED"}
    assert slurm.job_field(jobs["shard"], "ExitCode") == "78:0"
    log = (run.paths.logs / f"{jobs['shard']}_0_log.out").read_text("utf-8")
    assert log == f"error: others can write to the run folder: {run.folder}; submit the job as a new run\n"


@pytest.mark.parametrize("key", ["account", "constraint"])
def test_names_reach_slurm_as_they_are(prepare: Callable[..., Run], slurm: SlurmCluster, key: str) -> None:
    name = 'it\'s "a" $(b) #c;d' if key == "account" else "a&b"
    run = prepare(f"run={key}", **{key: name})
    text = sbatch.render(sbatch.one_run(run, "shard"), after=None)
    assert re.search(rf"^#SBATCH --{key}='", text, re.MULTILINE)
    file = run.folder / "script.sh"
    file.write_text(text.replace("srun", "true srun"), encoding="utf-8")
    done = slurm.run("sbatch", "--hold", "--parsable", str(file))
    if key == "constraint":  # no node has them, which SLURM says at once
        assert "Invalid feature" in done.stderr, done
        return
    shown = slurm.run("scontrol", "show", "job", done.stdout.strip()).stdout
    slurm.run("scancel", done.stdout.strip())
    assert f" Account={name} QOS=" in shown
