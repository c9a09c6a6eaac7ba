"""Real photographs and weights on a real SLURM, with submit and with sbatch."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.campaign

ROOT = Path(__file__).parents[2]
PUBLISHED = 0.9559


def test_submit_and_sbatch_agree_and_beat_the_published_result(
    slurm: SlurmCluster, test_data: Path, tmp_path: Path
) -> None:
    images, space = test_data / "flowers17", tmp_path / "space"
    if not images.is_dir():
        pytest.skip(f"no {images}")
    job = ["jobs/flowers17.toml", f"data.images={images}", f"workspace={space}", "slurm.cpus_per_task=1"]
    log = tmp_path / "batch.log"
    batch = slurm.run(
        "sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={log}",
        "slurm/finetune.sh", *job, "run=batch", cwd=ROOT, env={"TLBATCH_ENV": sys.prefix}, timeout_s=900,
    )  # fmt: skip
    assert batch.returncode == 0, log.read_text("utf-8")
    chain = slurm.run(
        sys.executable, "-m", "tlbatch.submit", *job, "run=chain", "slurm.nodes=2", "--wait", cwd=ROOT, timeout_s=900
    )
    assert chain.returncode == 0, chain.stdout + chain.stderr
    reports = [
        json.loads((space / "runs" / run / "report" / "report.json").read_text("utf-8")) for run in ("batch", "chain")
    ]
    print(re.findall(r"^accuracy.*|^quadratic.*", chain.stdout, re.MULTILINE))
    same = {"run": "", "cost": {}}
    assert reports[0] | same == reports[1] | same
    assert (reports[0]["n"], reports[0]["audit"]["num_moved"]) == (365, 25)  # a quarter, and copies that were elsewhere
    assert min(row["support"] for row in reports[0]["classes"]) == 20
    assert reports[0]["score"] >= 0.975 > PUBLISHED
    board = pd.read_csv(space / "runs" / "leaderboard.csv")
    assert board[["rank", "run"]].to_numpy().tolist() == [[1, "batch"], [1, "chain"]]
