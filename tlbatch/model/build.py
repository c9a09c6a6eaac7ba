"""Building the classifier of a job, with random weights."""

from pathlib import Path

import torch

from tlbatch.config.job import Job
from tlbatch.config.training import Network
from tlbatch.core.errors import UserError
from tlbatch.model.backbones import build_backbone
from tlbatch.model.classifier import Classifier
from tlbatch.model.objectives import Rule


def build_classifier(job: Job | Network, num_classes: int, *, described_by: Path | None = None) -> Classifier:
    """Build the job's backbone and a new head, with random weights that are the same on every rank.

    Parameters
    ----------
    described_by
        Weights file whose size and normalisation to use where the job sets none.

    Raises
    ------
    UserError
        When there is no such backbone, or the head does not fit it or the classes.
    """
    if job.objective == "binary" and num_classes != 2:
        raise UserError(f"objective: binary is for two classes, not {num_classes}; set objective=cross-entropy")
    torch.manual_seed(job.seed)
    backbone = build_backbone(job.model, described_by)
    torch.manual_seed(job.seed)
    flattens = job.head.pool == "auto" and any(phase.cut == "flatten" for phase in job.phase)
    classifier = Classifier(
        backbone,
        job.head,
        pool="flatten" if flattens else job.head.pool,
        rule=Rule(job.objective, by_mean=job.decision == "expected-grade"),
        num_classes=num_classes,
        decoder=job.decoder if isinstance(job, Job) and job.objective == "tags" else None,
        compiled=job.train.compile,
    )
    classifier.to(memory_format=torch.channels_last)
    return classifier
