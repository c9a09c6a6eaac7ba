"""Fault campaign on a real SLURM: interrupt chains in every way, and check that nothing is lost.

    python tests/integration/faults.py [--number 36] [--seed 0] [--each 4]

Starts a SLURM of two nodes on this machine (root; slurm-wlm and munge), lets one chain of two ranks on two nodes run
undisturbed, then interrupts others at random moments of all their stages until enough faults have happened, and
compares weights, metrics, predictions and report with those of the first, bit for bit. Prints a table.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from slurm_cluster import FINAL, SlurmCluster, slurm_cluster

from tlbatch.config.load import load_job
from tlbatch.runs.stages import stages_of

TINY = Path(__file__).parents[1] / "tiny.toml"
OPTIONS = (
    "slurm.nodes=2", "slurm.snapshot_interval_min=0.02", "slurm.watchdog_timeout_s=10",
    "slurm.rendezvous_s=60", "phase.1.epochs=120",
    "phase.1.optimizer.lr=1e-3", "head.dropout=0.2", "data.shard_images=5", "train.augment=rot4",
)  # fmt: skip
STAGES = stages_of(load_job([TINY], ["data.images=/any", "workspace=/any"]))
STILL = "a rank hangs"
WEIGHTS = {"cache": 2, "train": 6, "predict": 2}
"""Relative frequency of faults in each stage, 1 for those that are not named."""
AGAIN_S = 150.0
Injection = Callable[["Campaign", str], bool]
"""Injects a fault into a job, and returns whether the chain resumes without help."""


@dataclass
class Campaign:
    """Faults on one cluster."""

    slurm: SlurmCluster
    folder: Path
    rng: random.Random
    happened: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and stage."""
    wrong: list[str] = field(default_factory=list)
    released: set[tuple[str, int]] = field(default_factory=set)
    """Jobs, with their restart counts, whose wait was cut short."""
    otherwise: tuple[str, ...] = ()
    """Overrides of the chains that are interrupted."""

    def submit(self, *arguments: str) -> dict[str, str]:
        """Submit a chain or the rest of one; return the jobs by stage."""
        done = self.slurm.run(sys.executable, "-m", "tlbatch.submit", *arguments, timeout_s=120)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return {stage: job for job, stage in re.findall(r"^job +(\d+)  (\w+)$", done.stdout, re.MULTILINE)}

    def new_run(self, name: str, *overrides: str) -> tuple[Path, dict[str, str]]:
        """Submit a new run of the common job."""
        fixed = [str(TINY), f"data.images={self.folder / 'images'}", f"workspace={self.folder / name}", f"run={name}"]
        return self.folder / name / "runs" / name, self.submit(*fixed, *OPTIONS, *overrides)

    def active(self, jobs: dict[str, str]) -> tuple[str, str] | None:
        """Return the running stage and its job, if there is one."""
        found = self.slurm.jobs(list(jobs.values()))
        return next(
            ((stage, job) for stage, job in jobs.items() if job in found and found[job].state == "RUNNING"), None
        )

    def release(self, jobs: Sequence[str]) -> None:
        """Cut short SLURM's two minutes of wait for requeued jobs, and resume drained nodes and held jobs."""
        nodes = self.slurm.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").stdout
        for node, state in (line.split() for line in nodes.splitlines()):
            if state.startswith("drain"):
                self.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
        for job, now in self.slurm.jobs(jobs).items():
            if "held" in now.reason.lower():
                self.slurm.run("scontrol", "release", job)
            attempt = job, now.restarts
            waits = now.restarts and attempt not in self.released and now.state == "PENDING"
            if waits and self.slurm.run("scontrol", "update", f"jobid={job}", "starttime=now+2").returncode == 0:
                self.released.add(attempt)

    def settle(self, job: str, *, ends: bool) -> None:
        """Wait until a job has ended or starts its next attempt."""
        before, deadline = self.slurm.jobs([job]).get(job), time.monotonic() + AGAIN_S
        while time.monotonic() < deadline:
            now = self.slurm.jobs([job]).get(job)
            if now is None or now.state in FINAL:
                return
            if not ends and (now.state == "PENDING" or (before and now.restarts != before.restarts)):
                self.release([job])
                return
            time.sleep(0.3)
        raise TimeoutError(f"job {job} is {now} after {AGAIN_S} s")

    def ranks(self, job: str) -> list[int]:
        """Return the process ids of the tasks of a job."""
        mark, found = f"SLURM_JOB_ID={job}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                is_task = b"submitit.core._submit" in (process / "cmdline").read_bytes().split(b"\0")
                if is_task and mark in environment and b"srun" not in (process / "comm").read_bytes():
                    found.append(int(process.name))
        return sorted(found)


def warned(campaign: Campaign, job: str) -> bool:
    """Send SLURM's warning signal with `scancel --signal`."""
    campaign.slurm.run("scancel", "--signal=USR2", job)
    campaign.settle(job, ends=False)
    return True


def out_of_time(campaign: Campaign, job: str) -> bool:
    """Shorten the time limit, so that SLURM sends its warning."""
    campaign.slurm.run("scontrol", "update", f"jobid={job}", "timelimit=2")
    campaign.settle(job, ends=False)
    campaign.slurm.run("scontrol", "update", f"jobid={job}", "timelimit=240")
    return True


def requeued(campaign: Campaign, job: str) -> bool:
    """Requeue the job as an administrator would."""
    campaign.slurm.run("scontrol", "requeue", job)
    campaign.settle(job, ends=False)
    return True


def preempted(campaign: Campaign, job: str) -> bool:
    """Preempt the job with one of higher priority that takes all nodes."""
    wanted = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    urgent = campaign.slurm.run("sbatch", "--parsable", *wanted).stdout.strip()
    campaign.settle(job, ends=False)
    campaign.slurm.wait([urgent], 60)
    return True


def node_down(campaign: Campaign, job: str) -> bool:
    """Set a node down, as the controller does when it loses one."""
    node = campaign.slurm.job_field(job, "BatchHost") or "n1"
    campaign.slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=fault")
    campaign.settle(job, ends=False)
    deadline = time.monotonic() + 30  # a node that comes back while it still kills the old tasks refuses new ones
    while campaign.ranks(job) and time.monotonic() < deadline:
        time.sleep(0.3)
    time.sleep(1)
    campaign.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")
    return True


def cancelled(campaign: Campaign, job: str) -> bool:
    """Cancel the job, which saves and stays cancelled; it is submitted again by hand."""
    campaign.slurm.run("scancel", job)
    campaign.settle(job, ends=True)
    return False


def rank_killed(campaign: Campaign, job: str) -> bool:
    """Send SIGKILL to one rank, as the out-of-memory killer does."""
    return _killed(campaign, job, lambda ranks: [campaign.rng.choice(ranks)], signal.SIGKILL)


def ranks_killed(campaign: Campaign, job: str) -> bool:
    """Send SIGKILL to all ranks."""
    return _killed(campaign, job, lambda ranks: ranks, signal.SIGKILL)


def rank_stopped(campaign: Campaign, job: str) -> bool:
    """Freeze a rank with SIGSTOP."""
    return _killed(campaign, job, lambda ranks: [campaign.rng.choice(ranks)], signal.SIGSTOP)


def _killed(campaign: Campaign, job: str, chosen: Callable[[list[int]], list[int]], number: signal.Signals) -> bool:
    ranks = campaign.ranks(job)
    if not ranks:
        return True
    for process in chosen(ranks):
        with suppress(ProcessLookupError):
            os.kill(process, number)
    campaign.settle(job, ends=True)
    return False


KINDS: dict[str, Injection] = {
    "USR2": warned, "time limit": out_of_time, "admin requeue": requeued, "pre-emption": preempted,
    "node down": node_down, "scancel": cancelled, "kill -9 of a rank": rank_killed,
    "kill -9 of all ranks": ranks_killed, STILL: rank_stopped,
}  # fmt: skip


def results(run: Path) -> dict[str, Any]:
    """Return all outputs that must be equal bit for bit."""
    timed = {"seconds", "val_seconds", "images_per_s"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    report = json.loads((run / "report" / "report.json").read_text("utf-8")) | {"run": "", "cost": {}}
    report["digests"] |= {"job": ""}
    return {
        "weights": {file.name: file.read_bytes() for file in sorted((run / "checkpoints").iterdir())},
        "metrics": [{key: value for key, value in line.items() if key not in timed} for line in lines],
        "predictions": (run / "report" / "predictions.csv").read_bytes(),
        "submission": (run / "report" / "submission.csv").read_bytes(),
        "report": report,
    }


def repeated_epochs(run: Path) -> int:
    """Count epochs that more than one attempt has completed."""
    done = Counter[str]()
    for log in (run / "logs").glob("train-*-rank0.log"):
        done.update(re.findall(r"train (phase \d+ epoch \d+): loss", log.read_text("utf-8")))
    return sum(count - 1 for count in done.values())


def interrupt(campaign: Campaign, name: str, kinds: Sequence[str]) -> Path:
    """Run a chain, inject the faults one after another, and return the run folder."""
    run, jobs = campaign.new_run(name, *campaign.otherwise)
    wanted = sorted(
        campaign.rng.choices(STAGES, [WEIGHTS.get(stage, 1) for stage in STAGES], k=len(kinds)), key=STAGES.index
    )
    for kind, aim in zip(kinds, wanted, strict=True):
        found = await_stage(campaign, run, jobs, aim)
        if found is None:
            break
        stage, job = found
        if kind == STILL and stage in ("shard", "reduce"):  # a single rank: only the time limit would notice
            kind = "kill -9 of a rank"  # noqa: PLW2901
        resumes = KINDS[kind](campaign, job)
        campaign.happened[kind, stage] += 1
        print(f"{name}: {kind} in {stage}", flush=True)
        if not resumes and not (run / "markers" / "reduce.json").exists():
            campaign.slurm.run("scancel", *jobs.values())
            campaign.slurm.wait(list(jobs.values()), 60)
            jobs = campaign.submit(str(run)) or jobs
    finish(campaign, run, jobs)
    return run


def await_stage(campaign: Campaign, run: Path, jobs: dict[str, str], aim: str) -> tuple[str, str] | None:
    """Wait until a stage or a later one runs, then for a random time; return the stage and job running then."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        campaign.release(list(jobs.values()))
        found = campaign.active(jobs)
        if (run / "markers" / "reduce.json").exists():
            return None
        if found and STAGES.index(found[0]) >= STAGES.index(aim):
            time.sleep(campaign.rng.uniform(0, 2 if found[0] in ("shard", "reduce") else 8))
            if (now := campaign.active(jobs)) is not None:
                return now
        if found is None and has_ended(campaign, jobs):
            break
        time.sleep(0.2)
    raise RuntimeError(f"{aim} is not running: {last_words(campaign, run, jobs)}")


def finish(campaign: Campaign, run: Path, jobs: dict[str, str]) -> None:
    """Wait for the end of a chain."""
    deadline = time.monotonic() + 240
    while not (run / "markers" / "reduce.json").exists():
        campaign.release(list(jobs.values()))
        if has_ended(campaign, jobs) or time.monotonic() > deadline:
            time.sleep(1)
            if not (run / "markers" / "reduce.json").exists():
                raise RuntimeError(last_words(campaign, run, jobs))
        time.sleep(0.5)


def has_ended(campaign: Campaign, jobs: dict[str, str]) -> bool:
    """Return whether no job of a chain is queued or running."""
    return {job.state for job in campaign.slurm.jobs(list(jobs.values())).values()} <= FINAL


def last_words(campaign: Campaign, run: Path, jobs: dict[str, str]) -> str:
    """Describe a chain that did not finish: the states of its jobs, the nodes, and the ends of its logs."""
    states = campaign.slurm.jobs(list(jobs.values()))
    nodes = campaign.slurm.run("sinfo", "--Node").stdout
    logs = [f"== {log.name}\n{log.read_text('utf-8')[-1500:]}" for log in sorted((run / "logs").glob("*.*g"))]
    return "\n".join([f"{run.name} did not finish: {states}", nodes, *logs])


def hold(campaign: Campaign, *, kinds: Sequence[str], each: int) -> None:
    """Inject faults of these kinds, ``each`` per chain, and note differences from the undisturbed run."""
    undisturbed, jobs = campaign.new_run("undisturbed")
    finish(campaign, undisturbed, jobs)
    wanted = results(undisturbed)
    for number, start in enumerate(range(0, len(kinds), each)):
        run = interrupt(campaign, f"chain-{number}", kinds[start : start + each])
        found = results(run)
        campaign.wrong += [f"{run.name}: other {name}" for name in wanted if found[name] != wanted[name]]
        campaign.happened["(epochs done twice)", "train"] += repeated_epochs(run)


def table(campaign: Campaign) -> str:
    """Return a table of faults by kind and stage."""
    rows = ["| fault | " + " | ".join(STAGES) + " |", "|---|" + "---:|" * len(STAGES)]
    rows += [
        f"| {kind} | " + " | ".join(str(campaign.happened[kind, stage] or "") for stage in STAGES) + " |"
        for kind in KINDS
        if any(campaign.happened[kind, stage] for stage in STAGES)
    ]
    total = sum(count for (kind, _), count in campaign.happened.items() if kind in KINDS)
    twice = campaign.happened["(epochs done twice)", "train"]
    wrong = ", ".join(campaign.wrong) or "none"
    ends = f"{total} faults; epochs done twice: {twice}; differences from the undisturbed run: {wrong}"
    return "\n".join([*rows, "", ends])


def write_images(folder: Path) -> None:
    """Write small class folders of coloured noise."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import conftest\n"
        "conftest.write_folders.__wrapped__()(Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(Path(__file__).parents[1])], check=True)


def main() -> None:
    """``python tests/integration/faults.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=36, help="faults (36)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (0)")
    parser.add_argument("--each", type=int, default=4, help="faults to a chain (4)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds = [kind for _ in range(-(-options.number // len(KINDS))) for kind in KINDS][: options.number]
    rng.shuffle(kinds)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlbatch-faults-", dir="/tmp") as folder:
        work = Path(folder) / "work"
        (Path(folder) / "slurm").mkdir()
        write_images(work / "images")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with slurm_cluster(Path(folder) / "slurm") as slurm:
            campaign = Campaign(slurm, work, rng)
            try:
                hold(campaign, kinds=kinds, each=options.each)
            finally:
                print(table(campaign))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(campaign.wrong))


if __name__ == "__main__":
    main()
