"""Nights on a real SLURM: in a requeued allocation, and as separate jobs."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import Campaign, write_images
from slurm_cluster import SlurmCluster, until

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


@pytest.fixture
def campaign(slurm: SlurmCluster) -> Iterator[Campaign]:
    folder = Path(tempfile.mkdtemp(prefix="tlbatch-nights-"))
    write_images(folder / "images")
    try:
        yield Campaign(slurm, folder, random.Random(0))
    finally:
        shutil.rmtree(folder)


def job_of(campaign: Campaign, *more: str) -> list[str]:
    return [str(faults.TINY), f"data.images={campaign.folder / 'images'}", f"workspace={campaign.folder / 'space'}",
            "nightly.min_samples=3", "data.audit=warn", *more]  # fmt: skip


def history(campaign: Campaign) -> list[dict[str, Any]]:
    file = campaign.folder / "space" / "registry" / "tiny" / "history.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def test_nights_in_an_allocation_and_as_jobs(campaign: Campaign) -> None:
    slurm, runs = campaign.slurm, campaign.folder / "space" / "runs"
    logs = [campaign.folder / name for name in ("first.log", "second.log")]
    given = job_of(campaign, "phase.1.epochs=150", "slurm.snapshot_interval_min=0.02")

    def submit(log: Path, *command: str) -> str:
        options = ("--parsable", "--open-mode=append", f"--output={log}")
        done = slurm.run("sbatch", *options, *command, cwd=ROOT, env={"TLBATCH_ENV": sys.prefix})
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def said(number: int) -> str:
        return logs[number].read_text("utf-8") if logs[number].exists() else ""

    first = submit(logs[0], "slurm/nightly.sh", *given)
    until(lambda: any(runs.glob("*/metrics.jsonl")), what=lambda: said(0))
    words = " ".join(f"'{word}'" for word in [f"{ROOT}/slurm/nightly.sh", *given])
    second = submit(logs[1], f"--wrap={words}")  # as scrontab starts it
    assert slurm.wait([second], 60) == {second: "COMPLETED"}, said(1)
    assert re.search(rf"a night of tiny is already running \(process \d+ on .*, SLURM job {first}, for", said(1))
    assert faults.warned(campaign, first)
    until(lambda: f"its time has run out: requeueing job {first}" in said(0), what=lambda: said(0))
    while slurm.job_field(first, "JobState") == "PENDING":
        campaign.release([first])
        time.sleep(0.5)
    assert slurm.wait([first], 240) == {first: "COMPLETED"}, said(0)
    assert "resuming the night that began" in said(0)
    assert re.search(r"train resumes in phase \d epoch \d+ step \d+", said(0))
    assert [(one["event"], one["champion"]) for one in history(campaign)] == [("promoted", 1)]
    assert len(list(runs.iterdir())) == 1 + len([one for one in runs.iterdir() if one.is_file()])

    for name in ("blue", "green", "red"):
        source = next((campaign.folder / "images" / name).glob("*.jpg"))
        for number in range(3):
            shutil.copy(source, source.with_name(f"{name}-new{number}.jpg"))
    command = [sys.executable, "-m", "tlbatch.nightly", *given]
    night = subprocess.Popen(command, cwd=ROOT, env=slurm.env, stdout=subprocess.PIPE, text=True)
    until(
        lambda: any("predict" in file.read_text("utf-8") for file in runs.glob("*/jobs.jsonl")),
        what=lambda: str(list(runs.rglob("markers/*"))),
    )
    night.send_signal(signal.SIGKILL)
    night.communicate()
    again = slurm.run(*command, cwd=ROOT, timeout_s=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "took over the registry lock, whose holder is gone" in again.stdout
    assert "is still queued or running" in again.stdout
    last = history(campaign)[-1]
    assert (last["against"], last["event"] in ("promoted", "kept")) == (1, True)
    run = runs / last["run"]
    assert (runs / f"{run.name}.champion" / "report" / "report.json").exists()
    assert [one for one in run.glob("logs/promote-*") if one.stat().st_size]
