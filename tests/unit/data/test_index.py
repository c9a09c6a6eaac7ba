from pathlib import Path

from tlbatch.data.index import new_index, own_groups, read_index, write_index


def test_groups_of_the_source_are_kept_only_where_they_were_joined(tmp_path: Path) -> None:
    plain = new_index(["a", "b"], ["p", "q"], own_groups=["p", "q"], num_tags=0)
    joined = new_index(["a", "b"], ["p", "p"], own_groups=["p", "queen"], num_tags=0)
    assert plain.dtype == new_index(["a", "b"], ["p", "q"], num_tags=0).dtype
    for index, own in ((plain, [b"p", b"q"]), (joined, [b"p", b"queen"])):
        write_index(tmp_path / "index.npy", index)
        assert own_groups(read_index(tmp_path / "index.npy")).tolist() == own
