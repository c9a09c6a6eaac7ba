"""Part of the fault campaign: faults during training."""

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from faults import Campaign, hold, write_images
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.campaign


@pytest.fixture
def campaign(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    folder = Path(tempfile.mkdtemp(prefix="tlbatch-faults-"))
    monkeypatch.setattr(faults, "WEIGHTS", {stage: int(stage == "train") for stage in faults.STAGES})
    write_images(folder / "images")
    try:
        yield Campaign(slurm, folder, random.Random(0))
    finally:
        shutil.rmtree(folder)


def test_interrupted_trainings_lose_nothing(campaign: Campaign) -> None:
    hold(campaign, kinds=["USR2", "scancel", "pre-emption", "a rank hangs", "node down"], each=5)
    assert campaign.wrong == []
    assert sum(count for (kind, _), count in campaign.happened.items() if kind in faults.KINDS) == 5
    assert campaign.happened["USR2", "train"] == 1


def test_allocation_out_of_time_resumes_its_own_run(campaign: Campaign) -> None:
    root, log = Path(__file__).parents[2], campaign.folder / "batch.log"
    given = [str(faults.TINY), f"data.images={campaign.folder / 'images'}", f"workspace={campaign.folder / 'batch'}"]
    done = campaign.slurm.run(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--open-mode=append", f"--output={log}",
        "slurm/finetune.sh", *given, *faults.OPTIONS, cwd=root, env={"TLBATCH_ENV": sys.prefix},
    )  # fmt: skip
    job = done.stdout.strip()
    metrics = "*/runs/*/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not any(len(file.read_text("utf-8").splitlines()) > 9 for file in campaign.folder.glob(metrics)):
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.1)
    assert faults.warned(campaign, job)
    while campaign.slurm.job_field(job, "JobState") != "RUNNING" and time.monotonic() < deadline:
        campaign.release([job])
        time.sleep(0.5)
    assert campaign.slurm.wait([job], 180) == {job: "COMPLETED"}, log.read_text("utf-8")
    (run,) = (campaign.folder / "batch" / "runs").glob("*/job.json")
    said = log.read_text("utf-8")
    assert f"its time has run out: requeueing job {job}" in said
    assert re.search(r"train resumes in phase 1 epoch \d+ step \d+", said)
    ends = [json.loads(line).get("outcome") for line in (run.parent / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert [end for end in ends if end] == ["finished", "finished", "stopped", "finished", "finished", "finished"]
