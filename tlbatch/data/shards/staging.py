"""Stage shards: download tars to the workspace once, and copy shards to the local disk of a node."""

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, digest_of, remove_drafts
from tlbatch.core.redaction import hidden
from tlbatch.core.text import counted

log = logging.getLogger(__name__)
_BLOCK = 1 << 20


def stage_urls(urls: Sequence[str], folder: Path) -> None:
    """Download the tars that are missing.

    webdataset transfers from http, https and pipes (the output of a shell command), fsspec from all others, such as s3.
    Raises UserError if a transfer fails; complete files are kept.
    """
    try:
        from webdataset.shardlists import expand_urls  # noqa: PLC0415 (imports torch)
    except ModuleNotFoundError:
        raise UserError(
            "data.urls: webdataset, which downloads tars, is not installed; set data.images to downloaded tars, or "
            "install it with bash slurm/env.sh quickstart,export"
        ) from None

    addresses = [address for url in urls for address in expand_urls(url)]
    names = _names(addresses)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        remove_drafts(folder)
        for address, name in zip(addresses, names, strict=True):
            target = folder / name
            if target.exists():
                continue
            log.info("staging %s", hidden(address))
            try:
                with atomic_file(target) as file, _open(address) as source:  # closed first: it reports a failure
                    shutil.copyfileobj(source, file, _BLOCK)
                    if file.tell() == 0:
                        raise OSError("received no data")  # noqa: TRY301
            except (OSError, ValueError, ImportError) as error:
                text = hidden(" ".join(str(error).split()))
                raise UserError(
                    f"data.urls: {hidden(address)} could not be fetched ({text}); fix it and submit again"
                ) from None


def _open(address: str) -> AbstractContextManager[BinaryIO]:
    from webdataset.gopen import Pipe, gopen  # noqa: PLC0415 (imports torch)

    if address.startswith(("http:", "https:")):  # as in webdataset, plus the passwords of ~/.netrc
        command = ["curl", "--netrc-optional", "--connect-timeout", "30", "--retry", "30", "--retry-delay", "2"]
        pipe = Pipe([*command, "-f", "-s", "-L", address], mode="rb", ignore_status=[141, 23])
        return cast("AbstractContextManager[BinaryIO]", pipe)
    if address.startswith("pipe:"):
        return cast("AbstractContextManager[BinaryIO]", gopen(address, "rb"))
    import fsspec  # noqa: PLC0415 (rarely needed)

    return cast("AbstractContextManager[BinaryIO]", fsspec.open(address, "rb"))


def _names(addresses: Sequence[str]) -> list[str]:
    """Return the file names in order; an address that does not end in the name of a tar is numbered."""
    names = []
    for number, address in enumerate(addresses):
        last = address.split("?")[0].rstrip("/").rpartition("/")[2]
        names.append(last if last.endswith(".tar") and " " not in last else f"{number:06d}.tar")
    if len(set(names)) < len(names):
        names = [f"{number:06d}-{name}" for number, name in enumerate(names)]
    return names


def stage_locally(shards: Sequence[Path], local_folder: str) -> tuple[Path, ...]:
    """Copy shards to a folder of this node, once for all its ranks; return the paths of the copies.

    Raises UserError if the folder cannot be created or has too little space.
    """
    if not local_folder:
        return tuple(shards)
    state = [(str(path), status.st_size, status.st_mtime_ns) for path in shards if (status := path.stat())]
    root = Path(os.path.expandvars(local_folder)) / f"tlbatch-{digest_of(state)[:12]}"
    copies = tuple(root / f"{number:06d}.tar" for number in range(len(shards)))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            remove_drafts(root)
            stored = {copy: copy.stat().st_size for copy in copies if copy.exists()}
            missing = [
                pair for pair in zip(shards, copies, strict=True) if pair[0].stat().st_size != stored.get(pair[1])
            ]
            needed, free = sum(path.stat().st_size for path, _ in missing), shutil.disk_usage(root).free
            if needed > free:
                raise UserError(
                    f"slurm.local_folder: {root} has {free / 1e9:.1f} GB free, the shards need {needed / 1e9:.1f}; "
                    "name another, or leave it empty"
                )
            for shard, copy in missing:
                with shard.open("rb") as source, atomic_file(copy) as file:
                    shutil.copyfileobj(source, file, _BLOCK)
    except OSError as error:
        raise UserError(
            f"slurm.local_folder: {root} cannot be used ({error}); name another, or leave it empty"
        ) from None
    if missing:
        log.info("copied %s to %s", counted(len(missing), "shard"), root)
    return copies
