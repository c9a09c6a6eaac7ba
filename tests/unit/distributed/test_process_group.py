import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import to_json, write_text
from tlbatch.distributed import process_group, rendezvous
from tlbatch.runs.world import World


def test_addresses_are_numeric_and_loopback_comes_last_between_nodes() -> None:
    alone = rendezvous._own_addresses(World(world_size=2, local_world_size=2))
    wide = rendezvous._own_addresses(World(world_size=4, local_world_size=2))
    assert alone == ["127.0.0.1"]
    assert wide[-1] == "127.0.0.1"
    assert all(part.isdecimal() for address in wide for part in address.split("."))


def test_a_rank_without_rank_0_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"n2 rank 1: found no .*check that the workspace is shared"):
        rendezvous._find_store(World(rank=1, world_size=2, node="n2"), tmp_path / "x.json", timedelta(seconds=1))


def test_a_stale_file_is_not_mistaken_for_rank_0(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_text(file, to_json({"addresses": ["127.0.0.1"], "port": 9, "token": "old"}))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"could not reach 127\.0\.0\.1:9 within 2 s.*open the ports"):
        rendezvous._find_store(World(rank=1, world_size=2), file, timedelta(seconds=2))
    assert time.monotonic() - start < 20


def _host(file: Path, ready: "multiprocessing.synchronize.Event") -> None:
    store, _ = rendezvous._host_store(World(world_size=2, local_world_size=1), file, timedelta(seconds=20))
    ready.set()
    store.get("seen")


def test_the_published_store_is_found_and_another_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    host = context.Process(target=_host, args=(file, ready))
    host.start()
    try:
        assert ready.wait(60)
        store, address = rendezvous._find_store(World(rank=1, world_size=2), file, timedelta(seconds=20))
        assert rendezvous._try_store(address, store.port, "another", timedelta(seconds=2)) is None
        store.set("seen", "yes")
        host.join(20)
        assert host.exitcode == 0
    finally:
        host.kill()


def test_gloo_is_given_the_interface_of_the_address() -> None:
    assert rendezvous._interface("127.0.0.1") == "lo"


def test_the_interface_of_the_job_goes_to_gloo_and_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth9")
    with pytest.raises(UserError, match=r"slurm\.interface: n2 has no ib0; name one of .*lo"):
        rendezvous._use_interface("ib0", World(node="n2"))
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth9", "eth9")
    rendezvous._use_interface("lo", World(node="n2"))
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")


def test_gpus_are_used_as_slurm_gave_them_or_as_the_job_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    visible = 0
    monkeypatch.setattr(process_group.torch.cuda, "device_count", lambda: visible)
    assert not process_group._wants_gpu(World(num_gpus=0), Slurm(gpus_per_node=4))
    assert not process_group._wants_gpu(World(), Slurm())
    two = World(rank=1, local_rank=1, local_world_size=2, world_size=2, num_gpus=2)
    with pytest.raises(UserError, match="2 GPUs requested, but torch sees none"):
        process_group._wants_gpu(two, Slurm())
    visible = 2
    assert process_group._wants_gpu(two, Slurm())
    with pytest.raises(UserError, match="4 GPUs for 2 tasks; start one task per GPU"):
        process_group._wants_gpu(World(local_world_size=2, world_size=2, num_gpus=4), Slurm())
    visible = 1
    assert os.environ["LOCAL_RANK"] == "1"
    assert process_group._wants_gpu(two, Slurm())
    assert os.environ["LOCAL_RANK"] == "0"
