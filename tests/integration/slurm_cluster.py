"""A real SLURM of two nodes on this host, in a folder of its own, without accounting."""

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
FINAL = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
)
CPUS, GPUS = 8, 4

SLURM_CONF = """
ClusterName=tlbatch
SlurmctldHost=localhost
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
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,defer_batch=no
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


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster and what a client needs to talk to it."""

    folder: Path
    env: dict[str, str]

    def run(
        self, *command: str, cwd: Path | None = None, timeout_s: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client command; its output is text."""
        return subprocess.run(
            command, cwd=cwd, env=self.env | (env or {}), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def job_field(self, job_id: str, name: str) -> str | None:
        """A field of ``scontrol show job``, or None when SLURM no longer knows the job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return next((part.partition("=")[2] for part in shown.stdout.split() if part.startswith(f"{name}=")), None)

    def wait(self, job_ids: Sequence[str], timeout_s: float) -> dict[str, str]:
        """Wait until all jobs have ended; their last states."""
        deadline = time.monotonic() + timeout_s
        states: dict[str, str] = {}
        while time.monotonic() < deadline:
            states = {job_id: self.job_field(job_id, "JobState") or "UNKNOWN" for job_id in job_ids}
            if set(states.values()) <= FINAL:
                return states
            time.sleep(0.5)
        raise TimeoutError(f"jobs still {states} after {timeout_s} s\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"== {log.name}\n" + _tail(log) for log in sorted(self.folder.glob("**/*.log")))


def missing_programs() -> list[str]:
    """Which of the needed programs are not on PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start munged, slurmctld and two slurmd in an empty folder, and take them down at the end."""
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "USER": "root"}
    for name in [name for name in env if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"]:
        del env[name]
    cluster = SlurmCluster(folder, env)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        _start_munge(folder, daemons)
        _start(daemons, folder / "slurmctld.out", ["slurmctld", "-D", "-c"], env)
        for node in ("n1", "n2"):
            _start(daemons, folder / f"slurmd-{node}.out", ["slurmd", "-D", "-N", node], env)
        _wait_for_nodes(cluster)
        yield cluster
        cluster.run("scancel", "--quiet", "--user", "root")
        _wait_for_empty_queue(cluster)
    finally:
        _stop(daemons)


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2", "munge", "devices"):
        (folder / name).mkdir()
    ports = _free_ports(3)
    text = SLURM_CONF.format(
        folder=folder, controller_port=ports[0], port_1=ports[1], port_2=ports[2], cpus=CPUS, gpus=GPUS
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    gres = []
    for number, node in enumerate(("n1", "n2")):
        for gpu in range(GPUS):
            device = folder / "devices" / f"{node}-{gpu}"
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(240 + number, gpu))
            gres.append(f"NodeName={node} Name=gpu File={device}")
    (folder / "gres.conf").write_text("\n".join(gres) + "\n", encoding="utf-8")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _start_munge(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    munge = folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "munged.log", "seed-file": "seed"}
    command = ["munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in options.items())]
    _start(daemons, munge / "munged.out", command, dict(os.environ))
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
    """No daemon outlives a test run that is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_for_nodes(cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 40
    states: list[str] = []
    while time.monotonic() < deadline:
        states = cluster.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()
        if states == ["idle", "idle"]:
            return
        time.sleep(0.3)
    outputs = "\n".join(f"== {out.name}\n{_tail(out)}" for out in cluster.folder.glob("*.out"))
    raise RuntimeError(f"SLURM did not come up, its nodes are {states}\n{outputs}\n{cluster.logs()}")


def _wait_for_empty_queue(cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 20
    while cluster.run("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.3)


def _stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
    for daemon in reversed(daemons):
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else "(no such file)"
