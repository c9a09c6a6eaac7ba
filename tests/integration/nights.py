"""Ten simulated nights: a growing set of photographs, retrained by python -m tlbatch.nightly, with faults.

    python tests/integration/nights.py IMAGES [FOLDER]

IMAGES are class folders (such as the 17 category flower set), which are added in parts to one folder with a CSV file of
labels. Night 3 finds nothing new, in night 5 the labels of all new images are shuffled, in night 6 they are corrected,
night 7 is killed during training, in night 8 two are started at once. Prints a table, and the cost of new images.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tlbatch.runs.records import SPLITS

ROOT = Path(__file__).parents[2]
FIRST = 30
"""Images of each class in the first night."""
PARTS = {2: 3, 4: 5, 5: 8, 6: 2, 7: 5, 8: 4, 9: 12, 10: 11}
"""New images of each class in a night."""
POISONED, CORRECTED, KILLED, AT_ONCE = 5, 6, 7, 8


@dataclass
class Outcome:
    """Outcome of a night."""

    number: int
    line: dict[str, Any]
    """Line of the history."""
    seconds: float
    num_images: int
    num_new: int
    num_sharded: int
    """Images that were written into shards."""
    num_cached: int
    """Views whose activations were computed."""
    score: float | None
    test: frozenset[bytes]
    """Keys of the test images."""
    train: frozenset[bytes]
    said: str


@dataclass
class Campaign:
    """The growing set and its nights."""

    images: Path
    """Class folders with everything."""
    folder: Path
    options: Sequence[str] = ()
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    labels: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, list[Path]] = field(default_factory=dict)
    nights: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "images").mkdir(parents=True)
        for place in sorted(self.images.iterdir()):
            files = sorted(place.glob("*.jpg"))
            self.rng.shuffle(files)
            self.waiting[place.name] = files

    @property
    def registry(self) -> Path:
        """Registry of the task."""
        return self.folder / "space" / "registry" / "nightly"

    def add_images(self, each: int, *, shuffled: bool = False) -> list[str]:
        """Add images of every class to the set, and return their names."""
        new: list[tuple[str, str]] = []
        for name, files in self.waiting.items():
            for file in files[:each]:
                shutil.copy(file, self.folder / "images" / f"{name}-{file.name}")
                new.append((f"{name}-{file.stem}", name))
            del files[:each]
        names, labels = [one for one, _ in new], [label for _, label in new]
        if shuffled:
            self.rng.shuffle(labels)
        self.labels |= dict(zip(names, labels, strict=True))
        self.write_labels()
        return names

    def write_labels(self) -> None:
        """Write the labels as a user would keep them."""
        with (self.folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "level"), *sorted(self.labels.items())])

    def start(self) -> subprocess.Popen[str]:
        """Start a night in a new process group."""
        own = (f"data.images={self.folder / 'images'}", f"data.labels={self.folder / 'labels.csv'}")
        command = [sys.executable, "-m", "tlbatch.nightly", "jobs/nightly.toml", "--local", *own,
                   f"workspace={self.folder / 'space'}", *self.options]  # fmt: skip
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def run_night(self, number: int) -> Outcome:
        """Run one night with the fault of its number."""
        before, names = self.stored(), list(self.labels)
        if number == CORRECTED:
            self.labels |= {name: name.rpartition("-")[0] for name in names}
        if number == 1 or number in PARTS:
            self.add_images(FIRST if number == 1 else PARTS[number], shuffled=number == POISONED)
        began, said = time.monotonic(), ""
        if number == KILLED:
            said = self.kill_in("train")
        if number == AT_ONCE:
            pair = [self.start(), self.start()]
            texts = [one.communicate()[0] for one in pair]
            assert [one.returncode for one in pair] == [0, 0], texts
            assert sorted("is already running" in text for text in texts) == [False, True], texts
            said = "\n".join(texts)
        else:
            night = self.start()
            said += night.communicate()[0]
            assert night.returncode == 0, said
        found = self.outcome(number, time.monotonic() - began, before, len(self.labels) - len(names), said)
        self.nights.append(found)
        return found

    def kill_in(self, stage: str) -> str:
        """Kill all processes of a night while a stage runs."""
        night = self.start()
        while not list((self.folder / "space" / "runs").glob(f"*/markers/{stage}.lock")) or not self.at_work(stage):
            assert night.poll() is None, night.communicate()[0]
            time.sleep(0.01)
        for process in _descendants(night.pid):
            os.kill(process, signal.SIGKILL)
        return f"{night.communicate()[0]}(killed in {stage})\n"

    def at_work(self, stage: str) -> bool:
        """Return whether the newest run has begun a stage and not ended it."""
        run = max((self.folder / "space" / "runs").glob("*/job.json"), key=lambda file: file.stat().st_mtime).parent
        return (run / "markers" / f"{stage}.lock").exists() and not (run / "markers" / f"{stage}.json").exists()

    def stored(self) -> tuple[int, int]:
        """Return the number of images in all shards, and of rows in all activation stores."""
        space, counts = self.folder / "space", []
        for pattern, column in (("shards/*/*.npz", "rows"), ("cache/*/*.npz", "keys")):
            number = 0
            for file in space.glob(pattern):
                with np.load(file, allow_pickle=False) as data:
                    number += len(data[column])
            counts.append(number)
        return counts[0], counts[1]

    def outcome(self, number: int, seconds: float, before: tuple[int, int], num_new: int, said: str) -> Outcome:
        """Return the outcome of the night."""
        lines = (self.registry / "history.jsonl").read_text("utf-8").splitlines()
        line, after = json.loads(lines[-1]), self.stored()
        score, keys = None, {"train": frozenset[bytes](), "test": frozenset[bytes]()}
        if line.get("run"):
            run = self.folder / "space" / "runs" / line["run"]
            score = json.loads((run / "report" / "report.json").read_text("utf-8"))["score"]
            index = np.load(Path(line["index"]) / "index.npy")
            keys = {name: frozenset(index["key"][index["split"] == SPLITS.index(name)].tolist()) for name in keys}
        sharded, cached = (now - then for now, then in zip(after, before, strict=True))
        return Outcome(
            number, line, seconds, len(self.labels), num_new, sharded, cached, score, keys["test"], keys["train"], said
        )


def _descendants(process: int) -> list[int]:
    found = [process]
    for one in found:
        children = Path(f"/proc/{one}/task/{one}/children")
        found.extend(map(int, children.read_text("ascii").split()) if children.exists() else ())
    return found


def table(nights: Sequence[Outcome]) -> str:
    """Return a table with one row per night."""
    rows = [
        (
            "| night | what | new images | of all | written to shards | views computed | shard and cache | all | "
            "accuracy | outcome | champion |"
        ),
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    what = {1: "the first", 3: "nothing new", POISONED: "labels of new images shuffled", CORRECTED: "labels corrected",
            KILLED: "killed in training, started again", AT_ONCE: "two started at once"}  # fmt: skip
    for one in nights:
        took = one.line.get("seconds", {})
        work = f"{took['shard'] + took['cache']:.1f} s" if took else ""
        score = "" if one.score is None else f"{one.score:.4f}"
        rows.append(
            f"| {one.number} | {what.get(one.number, '')} | {one.num_new} | {one.num_images} | {one.num_sharded} | "
            f"{one.num_cached} | {work} | {one.seconds:.0f} s | {score} | {one.line['event']} | "
            f"{one.line.get('champion', '')} |"
        )
    worked = [(one.num_new, one.line["seconds"]) for one in nights if "seconds" in one.line]
    each, fixed = np.polyfit([new for new, _ in worked], [took["shard"] + took["cache"] for _, took in worked], 1)
    rows += ["", f"shard and cache: {1000 * each:.0f} ms a new image and {fixed:.1f} s a night, by least squares"]
    return "\n".join(rows)


def hold_all(campaign: Campaign) -> None:
    """Run all ten nights, printing each."""
    for number in range(1, 11):
        one = campaign.run_night(number)
        why = "; ".join(one.line.get("reasons", ()))
        print(f"night {number}: {one.line['event']}, {one.seconds:.0f} s: {why}", flush=True)


def main() -> None:
    """Run ten nights and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="nights-"))
    campaign = Campaign(given.images.absolute(), folder.absolute())
    hold_all(campaign)
    print(table(campaign.nights))
    print(f"pages in {campaign.registry / 'nights'}")


if __name__ == "__main__":
    main()
