import pytest

from tlbatch.core.errors import UserError
from tlbatch.runs.world import World, accelerate_environment, read_world

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n2", "SLURM_CPUS_PER_TASK": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "SLURM_GPUS_ON_NODE": "2", "SLURM_STEP_NODELIST": "n[1-2]",
}  # fmt: skip


def test_a_slurm_step_gives_rank_node_attempt_and_gpus() -> None:
    world = read_world(STEP)
    assert world == World(3, 4, 1, 2, "n2", "7-2-0", 2, 1, "10.0.0.1", "n[1-2]")
    assert world.spans_nodes
    assert not world.is_main


def test_a_requeued_job_is_another_attempt() -> None:
    assert read_world(STEP | {"SLURM_RESTART_COUNT": "1"}).attempt == "7-2-1"


def test_the_batch_script_itself_is_alone_although_it_carries_slurm_procid() -> None:
    batch = {key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"}
    assert (read_world(batch).rank, read_world(batch).world_size) == (0, 1)


def test_submitit_on_this_machine_wins_over_an_interactive_slurm_step() -> None:
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
             "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_JOB_ID": "99"}  # fmt: skip
    world = read_world(STEP | local)
    assert (world.rank, world.world_size, world.attempt, world.num_gpus) == (1, 2, "99", None)
    assert not world.spans_nodes


def test_uneven_tasks_and_a_launcher_in_a_launcher_are_refused() -> None:
    with pytest.raises(UserError, match="--ntasks-per-node"):
        read_world(STEP | {"SLURM_STEP_NUM_TASKS": "5"})
    with pytest.raises(UserError, match="torchrun"):
        read_world({"TORCHELASTIC_RUN_ID": "x"})


def test_accelerate_gets_ranks_only_where_there_are_several() -> None:
    assert accelerate_environment(read_world(STEP)) == {
        "OMP_NUM_THREADS": "1", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    assert accelerate_environment(World(num_threads=2)) == {"OMP_NUM_THREADS": "2"}
