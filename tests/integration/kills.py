"""Kill the stages of tiny runs at random moments, resume them, and compare their outputs with undisturbed runs.

    python tests/integration/kills.py [--number 100] [--seed 0] [--stages shard,cache,choose,train,...]

Half of the kills come at a random time within the duration of the undisturbed stage, half before or after a random step
by which the stage changes the disk. Each is a SIGKILL to the whole process group. Prints a table; the exit code is 1 if
a run did not end or its outputs differ from those of the undisturbed run.
"""
# ruff: noqa: E402 (the number of threads must be set before the imports: threads do not survive a fork)

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_threads] = "1"

import numpy as np
from attempts import Attempt, prepare, random_kill, run_attempt
from outputs import differences, is_unfinished, outputs
from PIL import Image

from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.stages import STAGES, StageName, stages_of

Way = Literal["time", "step"]
WAYS: tuple[Way, ...] = ("time", "step")
LAST: tuple[StageName, ...] = ("promote",)
"""Runs after the stages of a run, in a night."""
ALL = (*STAGES, *LAST)
MOMENTS = ("before", "inside", "after")
TINY = Path(__file__).parents[1] / "tiny.toml"
JOBS = {
    "phases": [
        (
            "phase=[{cut='pool', fit='ridge'}, {cut='pool', epochs=3}, "
            "{cut='blocks.1', epochs=2, ema=0.5, average=true, optimizer={lr=1e-2}}]"
        ),
        "train.augment='rot4'", "train.tta=true", "train.workers=1",
    ],
    "auto": ["strategy='auto'", "phase=[]", "data.audit='warn'", "train.batch_size=32", "train.augment='none'"],
}  # fmt: skip
"""All write often: small shards, a snapshot at every step."""
OFTEN = ["data.shard_images=4", "slurm.snapshot_interval_min=1e-9", "run=killed", "nightly.min_samples=3"]
_TWO_DAYS_S = 48 * 3600
_MOST_WRONG = 10
_AT_ONCE = 2
"""Kills of a stage before it may run to its end."""


@dataclass
class Job:
    """A job with its workspace, and its undisturbed outputs."""

    folder: Path
    overrides: list[str]
    images: Path
    attempts: dict[StageName, Attempt] = field(default_factory=dict)
    undisturbed: dict[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> Path:
        """Workspace, the same for all runs because some outputs contain its path."""
        return self.folder / "space"

    @property
    def run(self) -> RunPaths:
        """The run folder in it."""
        return RunPaths(self.space / "runs" / "killed")

    @property
    def log(self) -> Path:
        """Output of all attempts."""
        return self.folder / "attempts.log"

    def last_words(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text("utf-8").splitlines()[-20:])

    def begin(self) -> None:
        """Restore the workspace as it is after submission."""
        shutil.rmtree(self.space, ignore_errors=True)
        shutil.copytree(self.folder / "submitted", self.space)

    def run_undisturbed(self) -> None:
        """Submit the run, run it to its end, and keep its outputs."""
        where = [f"data.images={self.images}", f"workspace={self.space}"]
        record = resolve(load_job([TINY], [*where, *OFTEN, *self.overrides]))
        make_run(record)
        shutil.copytree(self.space, self.folder / "submitted")
        for stage in (*stages_of(record.job), *LAST):
            self.attempts[stage] = run_attempt(stage, self.run.folder, self.log)
            if self.attempts[stage].code:
                raise RuntimeError(f"{stage} failed undisturbed: {self.last_words()}")
        self.undisturbed = outputs(self.space)

    def unfinished(self) -> set[Path]:
        """Temporary files and folders, which only a kill leaves."""
        return {path for path in self.space.rglob("*") if is_unfinished(path)}

    def age(self, left: set[Path]) -> None:
        """Make drafts left by a kill look old: some are removed by age only, as other processes may be writing them."""
        for path in left:
            os.utime(path, times=(time.time() - _TWO_DAYS_S,) * 2)


@dataclass
class Tally:
    """Outcomes of the kills by job and stage."""

    moments: Counter[tuple[str, StageName, str]] = field(default_factory=Counter)
    ways: Counter[tuple[str, StageName, Way]] = field(default_factory=Counter)
    num_torn: Counter[StageName] = field(default_factory=Counter)
    """Kills that left a temporary file or folder."""
    wrong: list[str] = field(default_factory=list)

    def num_kills(self, job: str, stage: StageName) -> int:
        """Return the number of kills of a stage up to now."""
        return sum(self.ways[job, stage, way] for way in WAYS)

    def way_of(self, job: str, stage: StageName) -> Way:
        """Return the way of the next kill, balanced within each stage and overall."""
        in_all = Counter(way for _, _, way in self.ways.elements())
        return min(WAYS, key=lambda way: (self.ways[job, stage, way], in_all[way]))


def kill_chain(name: str, job: Job, todo: dict[tuple[str, StageName], int], tally: Tally, rng: random.Random) -> None:
    """Run a job from start to end, killing its stages on the way, and note the outcome."""
    job.begin()
    kills: list[str] = []
    for stage in job.attempts:
        for _ in range(min(_AT_ONCE, todo.get((name, stage), 0) - tally.num_kills(name, stage))):
            way = tally.way_of(name, stage)
            kill = random_kill(way, job.attempts[stage], rng)
            before = job.unfinished()
            attempt = run_attempt(stage, job.run.folder, job.log, kill)
            if attempt.killed is None and attempt.code:
                tally.wrong.append(f"{name}: {stage} failed after {kills}: {job.last_words()}")
                return
            if attempt.killed is None:  # faster than last time
                break
            kills.append(f"{stage} {attempt.killed} {kill}")
            tally.ways[name, stage, way] += 1
            tally.moments[name, stage, attempt.killed] += 1
            left = job.unfinished()
            tally.num_torn[stage] += bool(left - before)
            job.age(left)  # also what an earlier kill left, which this attempt may have begun to remove
            if attempt.killed == "after":
                break
        if stage in LAST and job.run.marker(stage).exists():
            continue
        if stage not in (*LAST, *Run.load_submitted(job.run.folder).stages_left):
            continue  # as submit does when it resumes a run
        if run_attempt(stage, job.run.folder, job.log).code:
            tally.wrong.append(f"{name}: {stage} failed after {kills}: {job.last_words()}")
            return
    wrong = differences(job.undisturbed, outputs(job.space))
    if wrong:
        tally.wrong.append(f"{name}: {', '.join(wrong)} differ after {kills}")


def shares(number: int, jobs: dict[str, Job], stages: list[StageName]) -> dict[tuple[str, StageName], int]:
    """Return the number of kills of each stage of each job, as even as possible."""
    slowest_last = sorted(stages, key=lambda stage: (stage == "choose", ALL.index(stage)))
    cells = [(name, stage) for stage in slowest_last for name, job in jobs.items() if stage in job.attempts]
    return {cell: number // len(cells) + (at < number % len(cells)) for at, cell in enumerate(cells)}


def run_kills(folder: Path, number: int, seed: int, stages: list[StageName]) -> Tally:
    """Kill stages ``number`` times, with workspaces below a folder."""
    prepare()
    _draw_images(folder / "images")
    jobs = {name: Job(folder / name, overrides, folder / "images") for name, overrides in JOBS.items()}
    for name, job in jobs.items():
        job.folder.mkdir()
        job.run_undisturbed()
        line = ", ".join(
            f"{stage} {attempt.seconds:.2f} s and {attempt.steps} steps" for stage, attempt in job.attempts.items()
        )
        print(f"{name}, undisturbed: {line}", flush=True)
    todo, tally, rng = shares(number, jobs, stages), Tally(), random.Random(seed)
    while len(tally.wrong) < _MOST_WRONG and any(tally.num_kills(*cell) < wanted for cell, wanted in todo.items()):
        for name, job in jobs.items():
            if any(tally.num_kills(*cell) < wanted for cell, wanted in todo.items() if cell[0] == name):
                kill_chain(name, job, todo, tally, rng)
    return tally


def _draw_images(folder: Path) -> None:
    """Write small class folders of coloured noise."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for image in range(12):
            pixels = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(folder / name / f"{name}{image}.jpg", quality=95)


def show(tally: Tally) -> None:
    """Print the table."""
    print(
        "| stage | kills | at a time | at a step | before its first write | inside | after its marker | left a draft |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    total: Counter[str] = Counter()
    for stage in ALL:
        row = Counter({way: sum(tally.ways[name, stage, way] for name in JOBS) for way in WAYS})
        row.update({
            moment: sum(tally.moments[name, stage, moment] for name in JOBS) for moment in MOMENTS
        } | {"torn": tally.num_torn[stage]})  # fmt: skip
        total.update(row)
        _show_row(stage, row)
    _show_row("all", total)


def _show_row(title: str, row: Counter[str]) -> None:
    cells = [sum(row[way] for way in WAYS), *(row[name] for name in (*WAYS, *MOMENTS, "torn"))]
    print(f"| {title} | {' | '.join(map(str, cells))} |")


def main() -> None:
    """``python tests/integration/kills.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="of kills (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="another seed kills at other moments (default: 0)")
    parser.add_argument("--stages", default=",".join(ALL), help="to kill, with commas between (default: all)")
    parser.add_argument("--folder", type=Path, help="new folder to work in and to keep (default: a temporary one)")
    given = parser.parse_args()
    stages = given.stages.split(",")
    if not set(stages) <= set(ALL):
        parser.error(f"--stages must be some of {', '.join(ALL)} (got {given.stages})")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tlbatch-kills-") as scratch:
        tempfile.tempdir = scratch  # for what killed processes leave there
        folder = given.folder or Path(scratch)
        tally = run_kills(folder, given.number, given.seed, stages)
    show(tally)
    for line in tally.wrong:
        print(line)
    print(f"{'not all' if tally.wrong else 'all'} outputs equal, {time.monotonic() - began:.0f} s")
    sys.exit(bool(tally.wrong))


if __name__ == "__main__":
    main()
