"""A real SLURM of two nodes on this host, in its own folder, without accounting."""

import ctypes
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
FINAL = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
)
WITH_SPACES = frozenset({"JobName", "Command", "WorkDir", "StdErr", "StdIn", "StdOut", "Comment"})
CPUS, GPUS = 8, 4
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

SLURM_CONF = """
ClusterName=tlbatch
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=10
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=60
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port_1} CPUs={cpus} Gres=gpu:{gpus}
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={port_2} CPUs={cpus} Gres=gpu:{gpus}
PartitionName=main Nodes=n1,n2 Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 MaxTime=INFINITE State=UP
"""


class JobState(NamedTuple):
    """A job as squeue lists it."""

    state: str
    restarts: int
    reason: str


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster and what a client needs to talk to it."""

    folder: Path
    env: dict[str, str]

    def run(
        self, *command: str, cwd: Path | None = None, timeout_s: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client command and return its output as text."""
        return subprocess.run(
            command, cwd=cwd, env=self.env | (env or {}), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def job_field(self, job_id: str, name: str) -> str | None:
        """Return a field of ``scontrol show job``, or None when SLURM no longer knows the job."""
        value = ".*" if name in WITH_SPACES else r"\S*"  # those with spaces end their line
        found = re.search(rf"(?:^|\s){name}=({value})", self.run("scontrol", "show", "job", job_id).stdout)
        return found[1] if found else None

    def jobs(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        """List jobs, and elements of arrays, with a single command; those that SLURM has forgotten are left out."""
        columns = "--Format=JobArrayID:20,State:20,RestartCnt:10,Reason:60"
        listed = self.run("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(job_ids)}", columns)
        rows = [(line[:20], line[20:40], line[40:50], line[50:]) for line in listed.stdout.splitlines()]
        return {
            job.strip(): JobState(state.strip(), int(restarts), reason.strip()) for job, state, restarts, reason in rows
        }

    def wait(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, str]:
        """Wait until all jobs have ended, and return their final states."""
        deadline = time.monotonic() + timeout_s
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            found = self.jobs(job_ids)
            states = {job_id: found[job_id].state if job_id in found else "UNKNOWN" for job_id in job_ids}
            if set(states.values()) <= FINAL:
                return states
            time.sleep(0.5)
        raise TimeoutError(f"jobs still {states} after {timeout_s} s\n{self.logs()}")

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(f"== {log.name}\n" + _tail(log) for log in sorted(self.folder.glob("**/*.log")))


def until(true: Callable[[], bool], timeout_s: float = 150, *, what: Callable[[], str] = str) -> None:
    """Wait until a condition is true; ``what`` describes the state on a timeout."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def left_out(what: str, why: str) -> NoReturn:
    """Skip a test that cannot run here, or fail it if all must run."""
    if os.environ.get("TLBATCH_REQUIRE_SLURM") == "1":
        pytest.fail(f"{what}: {why}", pytrace=False)
    pytest.skip(f"{what}: {why}")


def missing_programs() -> list[str]:
    """Return the required programs that are not on PATH."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def cluster_processes(folder: Path) -> list[int]:
    """Find the daemons, steps and clients of a cluster by the SLURM_CONF that they all inherit."""
    mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start munged, slurmctld and two slurmd in an empty folder, and take them down at the end."""
    ours = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"SLURM_CONF": str(folder / "slurm.conf"), "USER": "root", "PATH": PATH}
    cluster = SlurmCluster(folder, env)
    daemons: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # timeout(1) shall not skip the end
    try:
        _configure(folder)
        _start_munge(folder, daemons, env)
        _start(daemons, folder / "slurmctld.out", ["slurmctld", "-D", "-c"], env)
        for node in ("n1", "n2"):
            _start(daemons, folder / f"slurmd-{node}.out", ["slurmd", "-D", "-N", node], env)
        _wait_for_nodes(cluster, daemons)
        try:
            yield cluster
        finally:
            _cancel_jobs(cluster)
    finally:
        _stop(daemons)
        _kill_steps(folder)
        signal.signal(signal.SIGTERM, before)


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2", "munge", "devices"):
        (folder / name).mkdir()
    ports = _free_ports(3)
    text = SLURM_CONF.format(
        folder=folder, controller_port=ports[0], port_1=ports[1], port_2=ports[2], cpus=CPUS, gpus=GPUS
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    gres = [
        f"NodeName={node} Name=gpu File={_device(folder, number, gpu)}"
        for number, node in enumerate(("n1", "n2"))
        for gpu in range(GPUS)
    ]
    (folder / "gres.conf").write_text("\n".join(gres) + "\n", encoding="utf-8")


def _device(folder: Path, node: int, gpu: int) -> Path:
    """Create a character device in place of a GPU: without one SLURM does not set CUDA_VISIBLE_DEVICES."""
    device = folder / "devices" / f"n{node + 1}-{gpu}"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(240 + node, gpu))
    except PermissionError:  # as in a container without CAP_MKNOD
        return Path("/dev", ("null", "zero", "full", "random")[gpu])
    return device


def _free_ports(number: int) -> list[int]:
    """Find free ports below the kernel's range for clients, so that none is taken before its daemon starts."""
    ports: list[int] = []
    while len(ports) < number:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            ports += [port] if port not in ports else []
    return ports


def _start_munge(folder: Path, daemons: list[subprocess.Popen[bytes]], env: dict[str, str]) -> None:
    munge = folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "munged.log", "seed-file": "seed"}
    command = ["munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in options.items())]
    _start(daemons, munge / "munged.out", command, env)
    deadline = time.monotonic() + 10
    while not (munge / "socket").exists():
        if time.monotonic() > deadline or daemons[-1].poll() is not None:
            raise RuntimeError(f"munged did not start\n{_tail(munge / 'munged.out')}\n{_tail(munge / 'munged.log')}")
        time.sleep(0.05)


def _start(daemons: list[subprocess.Popen[bytes]], output: Path, command: list[str], env: dict[str, str]) -> None:
    with output.open("wb") as file:
        daemons.append(
            subprocess.Popen(
                command,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        )


def _die_with_parent() -> None:
    """Make sure that no daemon outlives a killed test run."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_for_nodes(cluster: SlurmCluster, daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 40
    states: list[str] = []
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if any(daemon.poll() is not None for daemon in daemons):
            break
        states = cluster.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()
        if states == ["idle", "idle"]:
            return
    outputs = "\n".join(f"== {out.name}\n{_tail(out)}" for out in cluster.folder.glob("**/*.out"))
    raise RuntimeError(f"SLURM did not come up, its nodes are {states}\n{outputs}\n{cluster.logs()}")


def _cancel_jobs(cluster: SlurmCluster) -> None:
    """Cancel all jobs; those that ignore it are killed after the daemons."""
    cluster.run("scancel", "--quiet", "--user=root")
    deadline = time.monotonic() + 3
    while cluster.run("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.2)


def _stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
    deadline = time.monotonic() + 3
    for daemon in reversed(daemons):
        try:
            daemon.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # slurmd waits for steps that ignore their end
            daemon.kill()
            daemon.wait()


def _kill_steps(folder: Path) -> None:
    """Kill processes that outlive their slurmd, and wait until they are gone."""
    deadline = time.monotonic() + 5
    while (left := cluster_processes(folder)) and time.monotonic() < deadline:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else "(no such file)"
