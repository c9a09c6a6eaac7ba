import pickle

import pytest

from tlbatch.runs import task


@pytest.mark.parametrize("name", ["run_stage", "run_chain", "run_each", "run_share"])
def test_a_job_that_the_version_before_queued_finds_what_it_calls(name: str) -> None:
    """submitit pickles a function as the names of its module and itself."""
    assert pickle.loads(f"ctlbatch.task\n{name}\n.".encode()) is getattr(task, name)
