"""Rendezvous: how the ranks of a stage find each other."""

import itertools
import json
import os
import socket
import time
import uuid
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # where gloo is built

from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import to_json, write_text
from tlbatch.runs.world import World

if hasattr(dist, "set_timeout"):
    _set_timeout = dist.set_timeout
else:  # older torch
    from torch.distributed.distributed_c10d import _set_pg_timeout as _set_timeout

_TRY_S = 2.0


def join_ranks(world: World, slurm: Slurm, file: Path, *, on_gpu: bool) -> None:
    """Initialise the process group: rank 0 opens a free port and publishes it in the run folder; the others read it.

    Addresses are numeric, so that a host name that cannot be resolved does not hang a rank; the store must answer with
    the published token, so that a stale file or another server is not mistaken for it.
    """
    if on_gpu:  # before the first collective, which would otherwise run on device 0 for every rank
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
        _set_timeout(timedelta(minutes=slurm.timeout_min))  # ranks may wait for another one as long as a stage may last
    except (dist.DistError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{world.node} rank {world.rank}: the {world.world_size} ranks did not all join within "
            f"{slurm.rendezvous_s} s ({first}); see the other ranks' logs, or raise slurm.rendezvous_s"
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
    cause = f"could not reach {' or '.join(tried)}" if tried else f"found no {file}"
    way = "open the ports between the nodes" if tried else "check that the workspace is shared by all nodes"
    raise UserError(
        f"{world.node} rank {world.rank}: {cause} within {limit.total_seconds():.0f} s; see the log of rank 0, {way}"
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
    """Return numeric addresses at which other ranks may reach this one, the most likely first."""
    if not world.spans_nodes:
        return ["127.0.0.1"]
    entries = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    own = [entry.address for entry in entries if entry.family == socket.AF_INET]
    outside = [address for address in own if not address.startswith("127.")]
    known = [world.address] if world.address in own else []
    return list(dict.fromkeys([*known, *outside, "127.0.0.1"]))


def _use_interface(name: str, world: World) -> None:
    """Tell gloo and NCCL which network interface of this node to use."""
    known = psutil.net_if_addrs()
    if name not in known:
        raise UserError(f"slurm.interface: {world.node} has no {name}; name one of {', '.join(sorted(known))}")
    os.environ.update(NCCL_SOCKET_IFNAME=name, GLOO_SOCKET_IFNAME=name)


def _interface(address: str) -> str:
    """Return the network interface that leads to the address, for gloo, which would otherwise resolve the host name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own = probe.getsockname()[0]
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in entries):
            return name
    raise UserError(f"no network interface has the address {own}; set slurm.interface")
