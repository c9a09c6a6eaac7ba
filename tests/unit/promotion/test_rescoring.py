"""The run that predicts tonight's test images with the champion."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tlbatch.promotion import rescoring
from tlbatch.runs.manifest import ValueRange
from tlbatch.runs.run import Run

TONIGHT, BEFORE = ValueRange(low=0, high=4000, num_images=50), ValueRange(low=100, high=3000, num_images=40)


@pytest.mark.parametrize(
    ("tonight", "before", "expected"),
    [(TONIGHT, BEFORE, BEFORE.limits), (TONIGHT, TONIGHT, None), (None, None, None), (TONIGHT, None, None)],
)
def test_the_champion_sees_images_of_many_bits_in_the_range_that_it_was_trained_with(
    copy_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tonight: ValueRange | None,
    before: ValueRange | None,
    expected: tuple[float, float] | None,
) -> None:
    run = Run.load(copy_run("train").folder)
    own = run.load_manifest()
    theirs = own.model_copy(update={"test_digest": "another", "value_range": before})
    registry = SimpleNamespace(run_of=lambda _: SimpleNamespace(load=lambda: run.record, folder=run.paths.folder))
    monkeypatch.setattr(rescoring, "Registry", SimpleNamespace(of=lambda _: registry))
    monkeypatch.setattr(rescoring, "manifest_of_champion", lambda *_: theirs)
    monkeypatch.setattr(Run, "load_manifest", lambda _: own.model_copy(update={"value_range": tonight}))
    champion: Any = SimpleNamespace()
    record = rescoring.rescoring_of(run, champion)
    assert record is not None
    assert record.job.data.value_range == expected
