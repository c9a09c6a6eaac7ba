"""Reduce: the parts of all ranks to one report, and all reports to the leaderboard."""

import logging
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.data.index import Index, read_index
from tlbatch.data.loader import open_set
from tlbatch.data.sources import name_of
from tlbatch.gallery import Tested, draw_report
from tlbatch.job.cli import finished, once, stage_main
from tlbatch.job.files import digest_file, digest_of, to_csv, to_json, write_text
from tlbatch.job.paths import RunPaths, leaderboard
from tlbatch.job.records import SPLITS, Best, Manifest, RunRecord, Strategy, job_digest, load_record
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import load_best
from tlbatch.report.leaderboard import rebuild_leaderboard
from tlbatch.report.metrics import confusion, per_class, score
from tlbatch.report.parts import Part, merge_parts

log = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "webdataset", "scikit-learn", "numpy")


def run(run_dir: Path) -> None:
    """Write the run's report and rank it, unless that is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    predicted = finished("predict", paths, record)
    inputs = predicted.inputs | {"predictions": _parts_digest(paths)}
    there = paths.report_json.exists()
    once("reduce", paths, inputs, world, lambda: _reduce(record, paths, world), is_there=there)
    table = rebuild_leaderboard(leaderboard(record.job))
    mine = table[table["run"] == record.run].iloc[0]
    rivals = table[(table["metric"] == mine["metric"]) & (table["test_digest"] == mine["test_digest"])]
    log.info("rank %s of %d on these test images", mine["rank"], len(rivals))


def _parts_digest(paths: RunPaths) -> str:
    return digest_of({part.name: digest_file(part) for part in paths.predictions.glob("part-*.npz")})


def _reduce(record: RunRecord, paths: RunPaths, world: World) -> None:
    folder = paths.set_paths(record.job)
    manifest = load_record(Manifest, folder.manifest, missing="run shard first: python -m tlbatch.shard RUN")
    best, checkpoint = load_best(paths)
    index = read_index(folder.index_file)
    asked = np.flatnonzero(index["split"] != SPLITS.index("train"))
    header = {"run": record.run, "weights": best.digest, "index": manifest.index_digest}
    merged = merge_parts(paths.predictions, header, asked, keys=index["key"], num_classes=len(manifest.classes))
    rows = index[merged.rows]
    test = rows["split"] == SPLITS.index("test")
    write_text(paths.report / "predictions.csv", _predictions_csv(rows, merged, manifest.classes))
    tested = merged.chosen(test)
    write_text(paths.report / "submission.csv", _submission_csv(rows[test], tested, manifest))
    strategy = paths.load_strategy()
    report = _report(record, manifest, best, rows[test]["label"], tested, strategy)
    if record.job.figures:
        readable = Tested(rows[test][tested.errors == ""], tested.chosen(tested.errors == ""))
        draw_report(record, paths, open_set(folder), best, checkpoint, readable, world)
    write_text(paths.report_json, to_json(report))


def _predictions_csv(rows: Index, merged: Part, classes: Sequence[str]) -> str:
    """Every predicted image: key, split, label, prediction, the probability of each class, and why there is none."""
    table: list[list[object]] = []
    for row, probability, error in zip(rows, merged.probabilities, merged.errors, strict=True):
        shown = ["" if error else f"{value:.6f}" for value in probability]
        chosen = "" if error else classes[int(probability.argmax())]
        table.append([row["key"].decode(), SPLITS[row["split"]], classes[row["label"]], chosen, *shown, error])
    return to_csv(["key", "split", "label", "prediction", *(f"p_{name}" for name in classes), "error"], table)


def _submission_csv(rows: Index, tested: Part, manifest: Manifest) -> str:
    """The test predictions in the form of the source's labels file; nothing for an image that could not be read."""
    table = [
        [name_of(row["key"].decode()), "" if error else manifest.classes[int(probability.argmax())]]
        for row, probability, error in zip(rows, tested.probabilities, tested.errors, strict=True)
    ]
    return to_csv(manifest.columns, table)


def _report(
    record: RunRecord,
    manifest: Manifest,
    best: Best,
    labels: npt.NDArray[np.int64],
    tested: Part,
    strategy: Strategy | None,
) -> dict[str, object]:
    job, classes = record.job, manifest.classes
    scored = tested.errors == ""
    truth, chosen = labels[scored].tolist(), tested.probabilities[scored].argmax(axis=1).tolist()
    scores = {
        metric: score(metric, truth, chosen, num_classes=len(classes)) for metric in ("accuracy", "quadratic_kappa")
    }
    return {
        **scores,
        "run": record.run,
        "job": job.name,
        "metric": job.metric,
        "score": scores[job.metric],
        "n": len(truth),
        "num_errors": int((~scored).sum()),
        "synthetic": manifest.synthetic,
        "ceilings": [ceiling.model_dump() for ceiling in manifest.ceilings],
        "strategy": strategy.model_dump(mode="json") if strategy else None,
        "classes": list(classes),
        "confusion": confusion(truth, chosen, num_classes=len(classes)),
        "per_class": per_class(truth, chosen, classes),
        "counts": {split: list(counts) for split, counts in manifest.counts.items()},
        "num_rejected": manifest.num_rejected,
        "audit": manifest.audit.model_dump(),
        "preprocessing": {"resize": manifest.resize, "steps": list(manifest.steps)},
        "checkpoint": best.model_dump(mode="json", exclude={"classes"}),
        "backbone": job.model.backbone,
        "weights": Path(job.model.weights).name,
        "seeds": {"job": job.seed, "split_salt": job.data.split.salt},
        "test_digest": manifest.test_digest,
        "digests": {
            "job": job_digest(record),
            "set": manifest.index_digest,
            "source": manifest.source_digest,
            "pretrained": record.weights_digest,
        },
        "versions": {"tlbatch": record.tlbatch_version, "python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        "commit": record.commit,
    }


if __name__ == "__main__":
    stage_main("reduce", run, __doc__)
