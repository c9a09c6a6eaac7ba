"""The process group of a stage, with checks that its ranks and GPUs are those that SLURM started."""

import ctypes
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import StoppedError, UserError
from tlbatch.core.text import counted
from tlbatch.distributed.rendezvous import join_ranks
from tlbatch.distributed.watchdog import Heartbeat, Stall, Watchdog
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import ProgressReporter
from tlbatch.runs.run import Run
from tlbatch.runs.signals import StopFlag
from tlbatch.runs.stage import record_failure
from tlbatch.runs.stages import StageName
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


@dataclass(frozen=True)
class RankContext:
    """The process group of a stage from the view of one rank."""

    accelerator: Accelerator
    world: World
    stop: StopFlag
    reporter: ProgressReporter
    watchdog: Watchdog

    @staticmethod
    def single_process(stage: StageName, paths: RunPaths) -> "RankContext":
        """Return a single rank on the CPU without watchdog and signal handling."""
        world = World()
        watchdog = Watchdog(math.inf, lambda *_: None, heartbeat=None)
        return RankContext(
            Accelerator(cpu=True), world, StopFlag(), ProgressReporter(paths, world, stage, saves=False), watchdog
        )

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        device: torch.device = self.accelerator.device
        return device

    @contextmanager
    def shares_of_others(self, own_s: float) -> Iterator[None]:
        """Wait in the block for the other ranks, whose shares take about as many seconds as this rank's own."""
        with self.watchdog.expected("the shares of the other ranks", grace_s=own_s), self.watchdog.waiting():
            yield

    def end_if_stopped(self, what: str, *, own_s: float) -> None:
        """Wait for the other ranks, and stop all of them together if one received a signal.

        Raises StoppedError on all ranks.
        """
        with self.shares_of_others(own_s):
            gathered = gather_object([(self.stop.signal_name, self.stop.wants_again)])
        names = [name for name, _ in gathered if name]
        if names:
            raise StoppedError(f"stopped by {names[0]} {what}", again=any(again for _, again in gathered))


@contextmanager
def join_process_group(stage: StageName, run: Run, world: World) -> Iterator[RankContext]:
    """Join the ranks of a stage into a process group, with signals caught and a watchdog running.

    Raises UserError if the ranks do not find each other in time, a GPU is missing, or Accelerate sees another number of
    ranks.
    """
    job, paths = run.job, run.paths
    stop = StopFlag()
    stop.install()
    on_gpu = _wants_gpu(world, job.slurm)
    precision = job.train.mixed_precision
    if precision == "fp16" and not on_gpu:
        raise UserError("train.mixed_precision: fp16 needs a GPU; set it to bf16 or no")
    torch.set_num_threads(world.num_threads)
    if not on_gpu:
        keep_freed_memory()
    if world.world_size > 1:
        join_ranks(world, job.slurm, paths.rendezvous / f"{stage}-{world.attempt}.json", on_gpu=on_gpu)

    def report(kind: Stall, what: str) -> None:
        message = f"{world.node} rank {world.rank}: {what}; see the stack in its log"
        record_failure(stage, world, paths.folder, message, kind)

    try:
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
        _check(accelerator, world, on_gpu=on_gpu)
        size, prefix = world.world_size, f"{stage}-{world.attempt}"
        heartbeat = Heartbeat(paths.rendezvous, prefix, rank=world.rank, world_size=size) if size > 1 else None
        with Watchdog(job.slurm.watchdog_timeout_s, report, heartbeat=heartbeat) as watchdog:
            yield RankContext(accelerator, world, stop, ProgressReporter(paths, world, stage), watchdog)
    except StoppedError:
        stop.signal_name = None  # the next stage need not notice it
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 (the next stage may differ)
        if on_gpu:
            torch.cuda.empty_cache()


def _wants_gpu(world: World, slurm: Slurm) -> bool:
    """Return whether to use GPUs: SLURM's allocation decides, or without one the job; the GPUs must be visible."""
    given = slurm.gpus_per_node if world.num_gpus is None else world.num_gpus
    if given == 0:
        return False
    visible = torch.cuda.device_count()
    if visible == 0:
        raise UserError(
            f"{world.node}: {counted(given, 'GPU')} requested, but torch sees none; check nvidia-smi there, the "
            "driver, and that a container is started with GPU support, or set slurm.gpus_per_node=0"
        )
    if given != world.local_world_size and visible != 1:
        raise UserError(
            f"{world.node}: {counted(given, 'GPU')} for {counted(world.local_world_size, 'task')}; start one task per "
            "GPU (--ntasks-per-node equal to --gpus-per-node)"
        )
    if visible == 1:  # SLURM's mask leaves one device to each task
        os.environ["LOCAL_RANK"] = "0"
    return True


def keep_freed_memory() -> None:
    """Let glibc keep the memory that torch frees, which would otherwise be mapped and zeroed again in each step.

    On the CPU this doubles the images per second of a convolutional network (tests/bench/bench_memory.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _check(accelerator: Accelerator, world: World, *, on_gpu: bool) -> None:
    if accelerator.num_processes != world.world_size or accelerator.process_index != world.rank:
        raise UserError(
            f"{world.node}: Accelerate sees rank {accelerator.process_index} of {accelerator.num_processes}, "
            f"SLURM says {world.rank} of {world.world_size}; start the tasks with srun or python -m tlbatch.submit only"
        )
    if on_gpu != (accelerator.device.type == "cuda"):
        raise UserError(f"{world.node}: Accelerate chose {accelerator.device}; check ACCELERATE_USE_CPU and the GPUs")
    if world.is_main:
        ranks, threads = counted(world.world_size, "rank"), counted(world.num_threads, "thread")
        device = torch.cuda.get_device_name(accelerator.device) if on_gpu else "CPU"
        log.info("%s on %s, %s each", ranks, device, threads)
