"""A lease on a file: one holder at a time, anywhere on the cluster; the lease of a dead holder is taken over."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock

from tlbatch.core.errors import UserError
from tlbatch.core.files import write_text
from tlbatch.runs.progress import span
from tlbatch.runs.records import Record, load_record

log = logging.getLogger(__name__)
_BEAT_S = 30.0
_DEAD_S = 10 * _BEAT_S
"""Seconds without a heartbeat after which a holder counts as dead, if nothing else is known about it."""


class LeaseHolder(Record):
    """Content of the file while the lease is held."""

    token: str
    host: str
    pid: int
    began: float
    """Start time of the process, which distinguishes it from a later process with the same id."""
    job: str | None
    """SLURM job of the process."""
    since: float

    def __str__(self) -> str:
        within = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{within}, for {span(time.time() - self.since)}"


class LeaseTakenError(Exception):
    """Another process holds the lease."""

    def __init__(self, holder: LeaseHolder) -> None:
        super().__init__(str(holder))
        self.holder = holder


@contextmanager
def hold_lease(
    file: Path, environment: Mapping[str, str], job_is_active: Callable[[str], bool | None]
) -> Iterator[LeaseHolder | None]:
    """Hold the lease within the block. If its holder is dead, it is taken over, and the dead holder is yielded.

    Parameters
    ----------
    job_is_active
        Returns whether SLURM still has a job; None if SLURM does not answer.

    Raises
    ------
    LeaseTakenError
        When a live process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    own = LeaseHolder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        began=psutil.Process().create_time(),
        job=environment.get("SLURM_JOB_ID"),
        since=time.time(),
    )
    with _guard(file):
        before = _read(file)
        if before is not None and _lives(before, file, own, job_is_active):
            raise LeaseTakenError(before)
        own.save(file)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, ended), name="lease", daemon=True)
    beat.start()
    try:
        yield before
    finally:
        ended.set()
        beat.join()
        with _guard(file):
            now = _read(file)
            if now is not None and now.token == own.token:
                file.unlink()


def _guard(file: Path) -> FileLock:
    return FileLock(file.with_suffix(".lock"))


def _read(file: Path) -> LeaseHolder | None:
    """Return the holder; a damaged file has none."""
    if not file.exists():
        return None
    try:
        return load_record(LeaseHolder, file, missing="")
    except UserError:
        log.warning("%s: damaged; the lease counts as free", file)
        return None


def _lives(holder: LeaseHolder, file: Path, own: LeaseHolder, job_is_active: Callable[[str], bool | None]) -> bool:
    """Return whether the holder is alive: by its process here, by its SLURM job, or by its last heartbeat."""
    if holder.job is not None and holder.job == own.job and holder.host != own.host:
        return False  # an earlier attempt of this job
    if holder.host == own.host:
        try:
            process = psutil.Process(holder.pid)
            is_same = abs(process.create_time() - holder.began) < 1
            return is_same and process.status() != psutil.STATUS_ZOMBIE  # a zombie is dead, but not yet reaped
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    if holder.job is not None and (active := job_is_active(holder.job)) is not None:
        return active
    return _silent_s(file) < _DEAD_S


def _silent_s(file: Path) -> float:
    """Return the seconds since the last heartbeat, by the clock of the file system."""
    now = file.with_suffix(".now")
    write_text(now, json.dumps(os.getpid()), lasting=False)
    silent = now.stat().st_mtime - file.stat().st_mtime
    now.unlink(missing_ok=True)
    return silent


def _beat(file: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_S):
        try:
            os.utime(file)
        except OSError as error:
            log.warning("%s: %s", file, error)
