"""Rank and world size of this process: SLURM's and submitit's variables, mapped to those that Accelerate reads."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from tlbatch.core.errors import UserError


@dataclass(frozen=True)
class World:
    """The rank of this process among the tasks of a stage."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: str = "this machine"
    attempt: str = "direct"
    """Name of this attempt of the stage, the same on all ranks."""
    num_gpus: int | None = None
    """Number of GPUs allocated on this node; None outside SLURM."""
    num_threads: int = 1
    address: str | None = None
    """IP address of the first node as SLURM knows it."""
    nodes: str = field(default_factory=platform.node)
    """Names of all nodes, as SLURM writes them."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def spans_nodes(self) -> bool:
        """Whether the tasks are on more than one node."""
        return self.local_world_size < self.world_size


def read_world(environment: Mapping[str, str]) -> World:
    """Read the world of a SLURM step, of a local submitit job, or of a single process.

    The batch script of a SLURM job has SLURM_PROCID too, but only a step (srun) has several tasks, so SLURM_STEP_ID
    decides. Nested launchers are refused.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        raise UserError(
            "torchrun or accelerate launch: not needed; start the stage with srun or python -m tlbatch.submit"
        )
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return _local_world(environment)
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _slurm_world(environment)
    return World(num_threads=_num_threads(environment, local_world_size=1))


def _slurm_world(environment: Mapping[str, str]) -> World:
    world_size = int(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"]))
    num_nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    if world_size % num_nodes:
        raise UserError(
            f"SLURM step of {world_size} tasks on {num_nodes} nodes: every node must have the same number; "
            "set --ntasks-per-node"
        )
    local_world_size = world_size // num_nodes
    parts = [environment[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    gpus = environment.get("SLURM_GPUS_ON_NODE")
    return World(
        rank=int(environment["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world_size=local_world_size,
        node=environment.get("SLURMD_NODENAME", "this node"),
        nodes=environment.get("SLURM_STEP_NODELIST") or platform.node(),
        attempt="-".join([*parts, environment.get("SLURM_RESTART_COUNT", "0")]),
        num_gpus=int(gpus) if gpus else 0,
        num_threads=_num_threads(environment, local_world_size=local_world_size),
        address=environment.get("SLURM_LAUNCH_NODE_IPADDR"),
    )


def _local_world(environment: Mapping[str, str]) -> World:
    world_size = int(environment["SUBMITIT_LOCAL_NTASKS"])
    return World(
        rank=int(environment["SUBMITIT_LOCAL_GLOBALID"]),
        world_size=world_size,
        local_rank=int(environment["SUBMITIT_LOCAL_LOCALID"]),
        local_world_size=world_size,
        attempt=environment["SUBMITIT_LOCAL_JOB_ID"],
        num_threads=_num_threads(environment, local_world_size=world_size),
    )


def _num_threads(environment: Mapping[str, str], *, local_world_size: int) -> int:
    """Return the number of cores allocated to this task, never the machine's."""
    for name in ("TLBATCH_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK"):
        if environment.get(name):
            return min(int(environment[name]), _cores())
    share = max(1, _cores() // local_world_size)
    limit = environment.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def _cores() -> int:
    cores = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:  # noqa: PTH123
            quota, period = file.read().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def accelerate_environment(world: World) -> dict[str, str]:
    """Return the environment variables to set before torch is imported."""
    threads = {"OMP_NUM_THREADS": str(world.num_threads)}
    if world.world_size == 1:
        return threads
    return threads | {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.world_size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_world_size),
    }
