"""How the ranks of a stage find each other, and the checks that they did."""

import ctypes
import json
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # where gloo is built

from tlbatch.job.cli import record_failure
from tlbatch.job.cluster import Slurm
from tlbatch.job.config import Job
from tlbatch.job.errors import StoppedError, UserError
from tlbatch.job.files import to_json, write_text
from tlbatch.job.paths import RunPaths
from tlbatch.job.progress import Teller
from tlbatch.job.pulse import Pulse, Signs, Stillness
from tlbatch.job.records import StageName
from tlbatch.job.stop import StopFlag
from tlbatch.job.world import World

if hasattr(dist, "set_timeout"):
    _set_timeout = dist.set_timeout
else:  # older torch
    from torch.distributed.distributed_c10d import _set_pg_timeout as _set_timeout

log = logging.getLogger(__name__)
_TRY_S = 2.0
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


@dataclass(frozen=True)
class Crew:
    """The ranks of a stage that work together, as one of them sees them."""

    accelerator: Accelerator
    world: World
    stop: StopFlag
    teller: Teller
    pulse: Pulse

    @staticmethod
    def alone(stage: StageName, paths: RunPaths) -> "Crew":
        """A single rank on the CPU that nobody watches or stops."""
        world = World()
        pulse = Pulse(math.inf, lambda *_: None, signs=None)
        return Crew(Accelerator(cpu=True), world, StopFlag(), Teller(paths, world, stage, saves=False), pulse)

    @property
    def device(self) -> torch.device:
        """What this rank computes on."""
        device: torch.device = self.accelerator.device
        return device

    @contextmanager
    def shares_of_others(self, own_s: float) -> Iterator[None]:
        """Wait in the block for the other ranks, which have about as much to do as this one had in so many seconds."""
        with self.pulse.expected("the shares of the other ranks", grace_s=own_s), self.pulse.waiting():
            yield

    def end_if_stopped(self, what: str, *, own_s: float) -> None:
        """Wait for the other ranks, and end here, all together, where one was asked to.

        Raises
        ------
        StoppedError
            On all ranks.
        """
        with self.shares_of_others(own_s):
            said = gather_object([(self.stop.signal_name, self.stop.wants_again)])
        names = [name for name, _ in said if name]
        if names:
            raise StoppedError(f"stopped by {names[0]} {what}", again=any(again for _, again in said))


@contextmanager
def joined_ranks(stage: StageName, paths: RunPaths, world: World, job: Job) -> Iterator[Crew]:
    """Join the ranks of a stage, which remember from here on that they were asked to end, and watch that they get on.

    Raises
    ------
    UserError
        When the ranks do not find each other in time, a GPU is missing, or Accelerate sees another number of ranks.
    """
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
        _join(world, job.slurm, paths.rendezvous / f"{stage}-{world.attempt}.json", on_gpu=on_gpu)

    def tell(kind: Stillness, what: str) -> None:
        message = f"{world.node} rank {world.rank}: {what}; its log has the stack"
        record_failure(stage, world, paths.folder, message, kind)

    try:
        accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
        _check(accelerator, world, on_gpu=on_gpu)
        size, prefix = world.world_size, f"{stage}-{world.attempt}"
        signs = Signs(paths.rendezvous, prefix, rank=world.rank, world_size=size) if size > 1 else None
        with Pulse(job.slurm.hang_s, tell, signs=signs) as pulse:
            yield Crew(accelerator, world, stop, Teller(paths, world, stage), pulse)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 (the next stage may differ)


def _wants_gpu(world: World, slurm: Slurm) -> bool:
    """In SLURM the allocation decides, elsewhere the job; what was given must be visible."""
    given = slurm.gpus_per_node if world.num_gpus is None else world.num_gpus
    if given == 0:
        return False
    visible = torch.cuda.device_count()
    if visible == 0:
        raise UserError(
            f"{world.node}: {given} GPUs were asked for and torch sees none; check nvidia-smi there, the driver, and "
            "that a container is started with GPU support, or set slurm.gpus_per_node=0"
        )
    if given != world.local_world_size and visible != 1:
        raise UserError(
            f"{world.node}: {given} GPUs for {world.local_world_size} tasks; start one task a GPU "
            "(--ntasks-per-node equal to --gpus-per-node)"
        )
    if visible == 1:  # SLURM's mask leaves one device to each task
        os.environ["LOCAL_RANK"] = "0"
    return True


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees: on the CPU each step's activations would else be mapped and zeroed anew.

    Doubles the images a second of a convolutional network (tests/bench/bench_memory.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _join(world: World, slurm: Slurm, file: Path, *, on_gpu: bool) -> None:
    """Rank 0 opens a port of its choice and publishes it in the run folder; the others read it there.

    Addresses are numeric, so an unresolvable host name cannot hang anybody; the store must answer with the
    published token, so a stale file or a foreign server is not mistaken for it.
    """
    if on_gpu:  # before the first collective, which would else run on device 0 for every rank
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = timedelta(seconds=slurm.rendezvous_s)
    store, address = _host_store(world, file, limit) if world.is_main else _find_store(world, file, limit)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(store.port))
    if slurm.interface and world.spans_nodes:
        _use_interface(slurm.interface, world)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(address))
    try:
        dist.init_process_group(
            "cuda:nccl,cpu:gloo" if on_gpu else "gloo",
            store=PrefixStore("ranks", store),
            rank=world.rank,
            world_size=world.world_size,
            timeout=limit,
        )
        dist.barrier()
        _set_timeout(timedelta(minutes=slurm.timeout_min))  # others may wait for one rank as long as a stage may last
    except (dist.DistError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{world.node} rank {world.rank}: the {world.world_size} ranks did not all join within "
            f"{slurm.rendezvous_s} s ({first}); look at the other ranks' logs, or raise slurm.rendezvous_s"
        ) from None
    if world.is_main:
        file.unlink(missing_ok=True)


def _host_store(world: World, file: Path, limit: timedelta) -> tuple[TCPStore, str]:
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen()
    port = listener.getsockname()[1]
    addresses = _own_addresses(world)
    store = TCPStore(
        addresses[0],
        port,
        world.world_size,
        is_master=True,
        timeout=limit,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    token = uuid.uuid4().hex
    store.set("token", token)
    write_text(file, to_json({"addresses": addresses, "port": port, "token": token}))
    return store, addresses[0]


def _find_store(world: World, file: Path, limit: timedelta) -> tuple[TCPStore, str]:
    deadline = time.monotonic() + limit.total_seconds()
    tried: list[str] = []
    while time.monotonic() < deadline:
        try:
            place = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            place = {"addresses": [], "port": 0, "token": ""}
        tried = [f"{address}:{place['port']}" for address in place["addresses"]]
        for address in place["addresses"]:
            store = _try_store(address, place["port"], place["token"], limit)
            if store is not None:
                return store, address
        time.sleep(0.2)
    cause = f"could not reach {' or '.join(tried)}" if tried else f"saw no {file}"
    way = "open the ports between the nodes" if tried else "check that the workspace is shared by all nodes"
    raise UserError(
        f"{world.node} rank {world.rank}: {cause} within {limit.total_seconds():.0f} s; "
        f"look at the log of rank 0, {way}"
    )


def _try_store(address: str, port: int, token: str, limit: timedelta) -> TCPStore | None:
    try:
        with socket.create_connection((address, port), timeout=_TRY_S):
            pass
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_TRY_S), wait_for_workers=False)
        if store.get("token").decode() != token:
            return None
    except (OSError, RuntimeError):
        return None
    store.set_timeout(limit)
    return store


def _own_addresses(world: World) -> list[str]:
    """Numeric addresses under which the other ranks may reach this one, the likeliest first."""
    if not world.spans_nodes:
        return ["127.0.0.1"]
    own = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    outside = [address for address in own if not address.startswith("127.")]
    known = [world.address] if world.address in own else []
    return list(dict.fromkeys([*known, *outside, "127.0.0.1"]))


def _interface(address: str) -> str:
    """The network interface over which the address is reached, for gloo, which would resolve the host name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in entries):
            return name
    raise UserError(f"no network interface has the address {own}; set slurm.interface")


def _use_interface(name: str, world: World) -> None:
    known = psutil.net_if_addrs()
    if name not in known:
        raise UserError(f"slurm.interface: {world.node} has no {name}; name one of {', '.join(sorted(known))}")
    os.environ.update(NCCL_SOCKET_IFNAME=name, GLOO_SOCKET_IFNAME=name)


def _check(accelerator: Accelerator, world: World, *, on_gpu: bool) -> None:
    if accelerator.num_processes != world.world_size or accelerator.process_index != world.rank:
        raise UserError(
            f"{world.node}: Accelerate sees rank {accelerator.process_index} of {accelerator.num_processes}, "
            f"SLURM says {world.rank} of {world.world_size}; start the tasks with srun or python -m tlbatch.submit only"
        )
    if on_gpu != (accelerator.device.type == "cuda"):
        raise UserError(f"{world.node}: Accelerate chose {accelerator.device}; check ACCELERATE_USE_CPU and the GPUs")
    if world.is_main:
        log.info(
            "%d %s on %s, %d threads each",
            world.world_size,
            "rank" if world.world_size == 1 else "ranks",
            torch.cuda.get_device_name(accelerator.device) if on_gpu else "CPU",
            world.num_threads,
        )
