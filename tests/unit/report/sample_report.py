"""Reports for the tests of their pages: a realistic one of five grades, and ones with other classes."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tlbatch.report.page import Mistake, Picture, Shown
from tlbatch.report.plots import FeatureMap
from tlbatch.runs.manifest import Audit, Ceiling
from tlbatch.runs.records import Best
from tlbatch.runs.report import (
    SCORES,
    Bin,
    Calibration,
    ClassScores,
    Comparison,
    Cost,
    Curve,
    Deployed,
    Estimate,
    OperatingPoint,
    Placed,
    Question,
    Reliability,
    Report,
    Subgroup,
    Thresholds,
)
from tlbatch.runs.strategy import Strategy, Trial

GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
COUNTS = ((26, 2, 6, 0, 0), (2, 1, 2, 0, 0), (4, 1, 24, 3, 0), (1, 0, 6, 10, 2), (0, 0, 3, 3, 7))
NONE = Estimate(value=None, undefined="no images")
STEPS = np.linspace(0, 1, 41)
NOWHERE = Curve(x=(), y=())


def near(value: float, half: float = 0.07, low: float = 0.0) -> Estimate:
    return Estimate(value=value, low=max(low, value - half), high=min(1.0, value + 0.9 * half))


def share(hits: int, total: int) -> Estimate:
    """Wilson's interval."""
    if not total:
        return NONE
    p, z = hits / total, 1.96
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return Estimate(value=p, low=max(0.0, middle - half), high=min(1.0, middle + half))


def class_scores(counts: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[ClassScores, ...]:
    table, few = np.array(counts), len(names) <= 20
    found = []
    for at, name in enumerate(names):
        hits, support, predicted = (int(n) for n in (table[at, at], table[at].sum(), table[:, at].sum()))
        f1 = near(2 * hits / (support + predicted)) if support + predicted else NONE
        found.append(
            ClassScores(
                name=name, support=support, predicted=predicted, precision=share(hits, predicted),
                recall=share(hits, support), f1=f1, auc=near(0.9 - 0.03 * (at % 5), 0.05),
                average_precision=0.8 - 0.02 * (at % 5),
                roc=Curve(x=tuple(STEPS), y=tuple(STEPS ** (0.1 + 0.04 * at))) if few else NOWHERE,
                pr=Curve(x=tuple(STEPS), y=tuple(1 - 0.5 * STEPS**4)) if few else NOWHERE,
            )
        )  # fmt: skip
    return tuple(found)


def reliability(shift: float) -> Reliability:
    bins = [
        Bin(low=at / 15, high=(at + 1) / 15, n=n, confidence=(at + 0.52) / 15,
            accuracy=share(round(n * max(0.0, (at + 0.5) / 15 - shift)), n))
        for at, n in zip(range(4, 15), (2, 5, 6, 8, 7, 9, 11, 10, 13, 14, 18), strict=True)
    ]  # fmt: skip
    return Reliability(log_loss=near(0.94 + shift, 0.16), brier=near(0.45 + shift / 2), ece=near(0.06 + shift, 0.03),
                       bins=tuple(bins))  # fmt: skip


def question(name: str, positive: tuple[str, ...], sharpness: float) -> Question:
    counts = (57, 8, 7, 31)
    rates: dict[str, Any] = {
        "sensitivity": share(57, 64), "specificity": share(31, 39), "ppv": share(57, 65), "npv": share(31, 38),
    }  # fmt: skip
    none = Estimate(value=None, undefined="no threshold")
    points = (
        OperatingPoint(aim="predicted class, no threshold", threshold=None, counts=counts, **rates),
        OperatingPoint(aim="sensitivity 0.9 on validation", threshold=0.3172, counts=counts, **rates),
        OperatingPoint(
            aim="specificity 0.95 on validation: positive and negative images required", threshold=None,
            counts=(0, 0, 0, 0), sensitivity=none, specificity=none, ppv=none, npv=none,
        ),
    )  # fmt: skip
    rising = STEPS ** (1 / sharpness)
    return Question(
        name=name, positive=positive, num_positive=64, auc=near(sharpness / (1 + sharpness), 0.05),
        average_precision=0.9133, points=points, roc=Curve(x=tuple(STEPS), y=tuple(rising)),
        pr=Curve(x=tuple(STEPS), y=tuple(1 - 0.38 * STEPS**sharpness)),
    )  # fmt: skip


def strategy() -> Strategy:
    def trial(name: str, score: float | None, **changed: Any) -> Trial:
        given: dict[str, Any] = {
            "name": name, "after": ("pool",), "cut": "pool", "fit": "ridge", "score": score, "standard_error": 0.0213,
            "num_images": 372, "behind": None if score is None else round(0.731 - score, 4), "behind_error": 0.0121,
            "seconds": 14.2,
        }  # fmt: skip
        return Trial(**(given | changed))

    return Strategy(
        chosen="fine-tuned after blocks.4",
        why="the fine-tuned within one standard error and half a point of the best: 0.7284 +- 0.0213, 0.0026 +- 0.0121 "
        "behind fine-tuned, all of it",
        scenario="small and unlike",
        scenario_why="372 training images; the top of the backbone scores 0.5812, its best stage blocks.4 0.6921",
        metric="quadratic_kappa",
        num_train=372,
        profile=(trial("stem", 0.3011, after=("stem",)), trial("blocks.4", 0.6921, after=("blocks.4",)),
                 trial("pool", 0.5812), trial("flatten", None, after=("flatten",)),
                 trial("stem", 0.2872, after=("stem",), fit="neighbours"),
                 trial("blocks.4", 0.6107, after=("blocks.4",), fit="neighbours"),
                 trial("pool", 0.5633, fit="neighbours")),
        short_list=(trial("ridge on blocks.4", 0.6921, after=("blocks.4", "pool")),
                    trial("fine-tuned after blocks.4", 0.7284, cut="blocks.4", seconds=412.0),
                    trial("fine-tuned, all of it", 0.731, cut="none", seconds=5231.0)),
        left_out=("fine-tuned at 512 pixels: its first fold says it would take 190 minutes",),
        settings={"phase": []},
    )  # fmt: skip


def report(**changed: Any) -> Report:
    """Five grades on 103 images, with something in every section."""
    names = changed.pop("names", GRADES)
    counts = changed.pop("confusion", COUNTS)
    kappa = near(0.7363, 0.08)
    scores = {name: near(0.66 - 0.01 * at) for at, name in enumerate(SCORES)} | {"quadratic_kappa": kappa}
    scores |= {"grade_error": near(0.4272, 0.1)}
    few = {name: scores[name] for name in ("quadratic_kappa", "accuracy", "balanced_accuracy", "grade_error")}

    def subgroup(column: str, value: str, n: int, found: float, half: float) -> Subgroup:
        return Subgroup(column=column, value=value, n=n, num_groups=n - 2,
                        scores=dict(scores) | {"quadratic_kappa": near(found, half)})  # fmt: skip

    sizes = [sum(row) for row in counts] or [0]
    given: dict[str, Any] = {
        "metric": "quadratic_kappa", "score": kappa.value, "n": sum(sizes), "num_groups": 98, "num_errors": 2,
        "scores": scores, "classes": class_scores(counts, names), "confusion": counts,
        "questions": (question("referable", tuple(names[2:5]), 5.1), question("any", tuple(names[1:]), 3.2)),
        "calibration": Calibration(
            temperature=1.3127, kept=True, why="cross-validated log loss on 41 validation images "
            "decreases (1.0214 without, 0.9633 with it)", before=reliability(0.09), after=reliability(0.02),
        ),
        "thresholds": Thresholds(
            fitted=(0.4713, 1.3122, 2.5541, 3.4108), kept=True,
            rounding={"val": near(0.7, 0.1), "test": near(0.72, 0.1)},
            tuned={"val": near(0.7411, 0.1), "test": kappa},
        ),
        "deployed": Deployed(prior=(0.74, 0.07, 0.14, 0.03, 0.02), scores=few),
        "subgroups": (
            subgroup("camera", "Canon CR-2", 61, 0.7712, 0.08), subgroup("camera", "Topcon NW400", 35, 0.5127, 0.15),
            subgroup("camera", "", 7, 0.69, 0.4), subgroup("sex", "f", 51, 0.7311, 0.1),
            subgroup("sex", "m", 52, 0.7402, 0.11),
        ),
        "external": (
            Placed(board="public", n=103, score=0.7363, text="0.73630: between ranks 112 and 113 of 661",
                   warnings=(("scored on this run's 103 test images, not on the leaderboard's: the rank is "
                              "hypothetical"),)),
        ),
        "version": 1, "run": "idrid-auto-20260114-0931", "job": "idrid", "members": (), "ensemble": None,
        "synthetic": False, "ceilings": (Ceiling(metric="quadratic_kappa", score=0.9312, why="graders err by one "
                                                 "grade in one image of ten"),),
        "strategy": strategy(),
        "counts": {
            "train": tuple(3 * n for n in sizes), "val": tuple(n // 2 for n in sizes),
            "test": (sizes[0] + 2, *sizes[1:]),
        },
        "num_images": {"train": 3 * sum(sizes), "val": sum(n // 2 for n in sizes), "test": sum(sizes) + 2},
        "num_rejected": 53,
        "notes": ("/data/labels.csv (separated by semicolons): 516 rows; columns: image (image), level (label)",
                  "12 images whose label is spelled in another way, e.g. '2.0' for '2': joined"),
        "warnings": ("the val split has 4.1 % of the images, not 10 %: groups are large",),
        "audit": Audit(num_exact=4, num_near=2, num_contradicting=1, across={}, num_moved=3, num_dropped=1),
        "resize": 512, "steps": ("fundus_crop", "local_average"),
        "checkpoint": Best(
            weights="best.safetensors", digest="5e" * 32, phase=1, epoch=11, metric="quadratic_kappa",
            val_score=0.7511, val_loss=0.8912, classes=tuple(names), num_parameters=3_376_229,
        ),
        "backbone": "timm:tf_efficientnet_lite0", "weights": "efficientnet-lite0.safetensors",
        "seeds": {"job": 0, "split_salt": "tlbatch"}, "test_digest": "0123456789ab" * 5,
        "digests": {"job": "1f" * 32, "set": "2e" * 32, "source": "3d" * 32, "pretrained": None},
        "versions": {"tlbatch": "0.4.0", "python": "3.11.2", "torch": "2.11.0", "numpy": "2.3.1"},
        "commit": "a987f2296dbbc2d6f9a0",
        "cost": Cost(seconds={"shard": 12.4, "choose": 5712.0, "train": 844.2, "predict": 9.1}, gpu_hours=1.8237,
                     images_per_s=211.4, hosts=("gpu01", "gpu02")),
    }  # fmt: skip
    return Report(**(given | changed))


def many(number: int, **changed: Any) -> Report:
    """A report of any number of classes."""
    rng = np.random.default_rng(number)
    counts = tuple(tuple(row) for row in (rng.poisson(0.25, (number, number)) + 9 * np.eye(number, dtype=int)).tolist())
    names = tuple(f"class {at}" for at in range(number))
    return report(names=names, confusion=counts, deployed=None, thresholds=None, **changed)


def bare() -> Report:
    """A report in which all that can be missing is missing."""
    return report(
        names=(), confusion=(), score=None, n=0, num_groups=0, num_errors=0, scores=dict.fromkeys(SCORES, NONE),
        questions=(), calibration=None, thresholds=None, deployed=None, subgroups=(), external=(), ceilings=(),
        strategy=None, counts={}, num_images={}, num_rejected=0, checkpoint=None, resize=0, steps=(), seeds={},
        digests={}, versions={}, commit=None, cost=Cost(seconds={}, gpu_hours=0, images_per_s=None, hosts=()),
        audit=Audit(num_exact=0, num_near=0, num_contradicting=0, across={}, num_moved=0, num_dropped=0),
    )  # fmt: skip


def comparison(**changed: Any) -> Comparison:
    given: dict[str, Any] = {
        "other": "idrid-ridge-20260113-2210", "metric": "quadratic_kappa", "n": 103, "only_first": 14,
        "difference": Estimate(value=0.0442, low=-0.0117, high=0.0981), "only_other": 9, "p_value": 0.4049,
        "verdict": "not different",
    }  # fmt: skip
    return Comparison(**(given | changed))


def epochs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for phase, number in ((0, 5), (1, 15)):
        for epoch in range(number):
            at = len(found)
            found.append({
                "phase": phase, "epoch": epoch, "loss": 1.55 * math.exp(-at / 9) + 0.1, "lr": 1e-4,
                "val_loss": None if at == 3 else 1.5 * math.exp(-at / 7) + 0.45 + 0.02 * at,
                "val_quadratic_kappa": 0.75 - 0.6 * math.exp(-at / 5) + 0.02 * math.sin(at),
            })  # fmt: skip
    return found


def picture(seed: int, side: int = 96, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    disc = (np.hypot(across, down) < 0.95) * (170 - 60 * np.hypot(across - 0.3, down))
    pixels = np.stack([disc, 0.5 * disc, 0.2 * disc], axis=2) + rng.normal(0, 4, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def feature_map(classes: Sequence[str], number: int = 400) -> FeatureMap:
    """A cluster for each class."""
    rng, sides = np.random.default_rng(len(classes)), 6.28 / max(1, len(classes))
    labels = rng.integers(0, len(classes), number)
    points = 30 * np.stack([np.cos(sides * labels), np.sin(sides * labels)], axis=1) + rng.normal(0, 7, (number, 2))
    return FeatureMap(points.tolist(), labels.tolist(), classes)


def shown(of: Report | None = None, **changed: Any) -> Shown:
    """A page with something everywhere."""
    names = [one.name for one in (of or report()).classes]
    given: dict[str, Any] = {
        "report": of or report(), "rival": comparison(), "epochs": epochs(),
        "pictures": [
            Picture("activations", "Activations", "From left to right: the image; pool.", picture(1, 300, "PNG")),
            Picture("filters", "First-layer filters", "16 of 32 filters, 3 x 3.", picture(2, 200, "PNG")),
        ],
        "feature_map": feature_map(names) if names else None,
        "mistakes": [
            Mistake(key=f"images/IDRiD_{at:03d}.jpg", truth=GRADES[at % 5], predicted=GRADES[(at + 2) % 5],
                    probability=0.97 - 0.02 * at, image=picture(at), heat=picture(at + 50) if at != 3 else None)
            for at in range(7)
        ],
        "rejected": [(f"images/broken_{at}.jpg", "truncated file") for at in range(53)],
        "settings": [("metric", "quadratic_kappa"), ("phase.0.optimizer.lr", "0.002")],
    }  # fmt: skip
    return Shown(**(given | changed))
