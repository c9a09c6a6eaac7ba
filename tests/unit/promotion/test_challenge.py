import numpy as np

from tlbatch.data.index import new_index
from tlbatch.promotion.challenge import _known_to


def test_a_patient_is_known_to_a_champion_trained_before_the_group_was_joined() -> None:
    before = new_index(["a0", "b0"], ["p", "q"], num_tags=0)
    before["split"], before["content"] = [0, 2], [b"1", b"2"]
    tonight = new_index(["a1", "b1"], ["q", "q"], own_groups=["p", "q"], num_tags=0)
    tonight["split"], tonight["content"] = 2, [b"3", b"4"]
    assert np.array_equal(_known_to(before, tonight), [True, False])
