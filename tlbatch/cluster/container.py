"""Containers: SLURM stays on the host; the tasks of its steps run inside, with what their jobs need mounted."""

import csv
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.runs.records import RunRecord

INSIDE = "TLBATCH_INSIDE"
"""Environment variable that is set inside the container."""
PYTHON = "/opt/tlbatch/bin/python"
"""Where Containerfile installs it. An absolute path, since not every runtime applies the image's variables."""
_TMP = '"${TMPDIR:-/tmp}"'
_STAGE = Path(__file__).with_name("charliecloud.sh")
_WRITABLE = ":rw"
_OF_IMAGE = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "sbin", "sys", "usr"}
"""Top-level folders of the image that must not be mounted over."""
_OUTSIDE = "env --chdir=/ --block-signal=USR2 --block-signal=TERM"
"""Signals are meant for Python, which handles them when it is ready; a runtime ended by one would unmount the image."""
_DIES_WITH_IT = "setpriv --pdeathsig=KILL"
"""ch-run serves the image from a separate process; when that is killed, the program must die with it."""
_NOT_INSIDE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD", "LD_AUDIT", "TORCH_HOME", "HF_HOME")
_PODMAN = (
    "--rm", "--pull=never", "--userns=keep-id", "--read-only", "--read-only-tmpfs=false", "--network=host",
    "--ipc=host", "--pid=host", "--env-host", "--entrypoint=", "--workdir=/",
)  # fmt: skip
_PLAIN = r"[A-Za-z0-9/._+@=-]+"
_ODD = "characters other than letters, digits and . _ + @ = -"
"""pyxis cannot escape them."""


@dataclass(frozen=True)
class Mount:
    """A file or folder of the host that is mounted in the container under the same path."""

    path: Path
    writable: bool = False


@dataclass(frozen=True)
class Start:
    """The command that starts Python for a task, as shell text."""

    python: str
    srun: str = ""
    """Options of srun that go with it."""


def is_bare(slurm: Slurm) -> bool:
    """Return whether tasks run in this process's environment: without a container, or already inside one."""
    return slurm.runtime == "none" or INSIDE in os.environ


def mounts_of(records: Iterable[RunRecord]) -> tuple[Mount, ...]:
    """Return the mounts for the tasks of some runs, parent folders before their contents.

    The workspace holds run folders, shards, cache, leaderboard and registry. Beside it, only TMPDIR,
    `slurm.local_folder` and the writable `slurm.mounts` can be written to.
    """
    found: dict[Path, bool] = {}
    for record in records:
        job, data = record.job, record.job.data
        own = [Path(text) for text in (job.model.weights, job.head.weights, record.checkpoint_of) if text]
        read = [data.images, data.labels, *data.split.files.values(), *job.report.files.values()]
        read += [path for path in own if path.is_absolute()]
        read += [_literal(url.removeprefix("file:"), "{*?[") for url in data.urls]
        read += [Path(text) for text in job.slurm.mounts if not text.endswith(_WRITABLE)]
        write = [job.workspace, _above(job.slurm.local_folder)]
        write += [Path(text.removesuffix(_WRITABLE)) for text in job.slurm.mounts if text.endswith(_WRITABLE)]
        found |= {path: found.get(path, False) for path in read if path is not None}
        found |= {path: True for path in write if path is not None}
    kept: list[Mount] = []
    for path, writable in sorted(found.items()):
        parent = next((one for one in reversed(kept) if one.path in path.parents), None)
        if parent is None or parent.writable != writable:
            kept.append(Mount(path, writable))
    return tuple(kept)


def _literal(text: str, signs: str) -> Path | None:
    """Return the folder before the first of the given characters; None if the text is no absolute path."""
    before = re.split(f"[{re.escape(signs)}]", text, maxsplit=1)[0]
    if not before.startswith("/"):
        return None
    path = Path(before)
    return path if before == text or before.endswith("/") else path.parent


def _above(folder: str) -> Path | None:
    """Return the parent of a local folder whose name may hold variables; None for $TMPDIR, which is always mounted."""
    path = _literal(folder, "$")
    return path.parent if path is not None and "$" not in folder and len(path.parts) > 2 else path


def start_of(slurm: Slurm, mounts: Sequence[Mount], *, gpus: bool) -> Start:
    """Return the command that starts Python for the tasks of a stage; without a container, this Python."""
    if is_bare(slurm):
        return Start(f"env --block-signal=USR2 {shlex.quote(sys.executable)}")
    options, image, inside = slurm.container_options, shlex.quote(slurm.image), _inside(slurm.image)
    match slurm.runtime:
        case "apptainer":
            words = shlex.join(
                ["apptainer", "exec", "--no-home", "--no-mount=tmp", *(["--nv"] if gpus else []), *options]
            )
            tmp = f"""'type=bind,"src='{_TMP}'","dst='{_TMP}'"'"""
            binds = " ".join(shlex.join(_apptainer(one)) for one in mounts)
            return Start(f"{_OUTSIDE} {words} {binds} --mount {tmp} {image} {inside}")
        case "charliecloud":
            binds = shlex.join(f"{'rw' if one.writable else 'ro'}:{one.path}" for one in mounts)
            script = f"bash {shlex.quote(str(_STAGE))}"
            return Start(f"{_OUTSIDE} {script} {image} {binds} -- {shlex.join(options)} -- {_DIES_WITH_IT} {inside}")
        case "pyxis":
            binds = "".join(f"{one.path}:{one.path}{'' if one.writable else ':ro'}," for one in mounts)
            own = ["--no-container-mount-home", "--no-container-entrypoint", "--container-readonly", *options]
            where = f"--container-image={image} --container-mounts={shlex.quote(binds)}{_TMP}:{_TMP}"
            return Start(inside, srun=f"{where} {shlex.join(own)}")
        case "podman-hpc":
            words = shlex.join(["podman-hpc", "run", *_PODMAN, *(["--gpu"] if gpus else []), *options])
            binds = shlex.join(f"--volume={one.path}:{one.path}{'' if one.writable else ':ro'}" for one in mounts)
            return Start(f"{_OUTSIDE} {words} {binds} --volume={_TMP}:{_TMP} {image} {inside}")
        case "none":
            raise AssertionError("is_bare has answered")
        case _:
            assert_never(slurm.runtime)


def _inside(image: str) -> str:
    """Return the command inside the container, which ignores the host's modules and home and caches below TMPDIR."""
    caches = f"{_TMP}/tlbatch-$UID"
    places = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    fixed = {INSIDE: image, "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    given = " ".join(
        [*(f"{name}={shlex.quote(text)}" for name, text in fixed.items()), f"TMPDIR={_TMP}"]
        + [f"{name}={caches}" for name in places]
    )
    unset = " ".join(f"--unset={name}" for name in _NOT_INSIDE)
    return f"env {unset} --block-signal=USR2 --block-signal=TERM {given} {PYTHON}"


def _apptainer(mount: Mount) -> list[str]:
    """Return Apptainer's mount option, whose value is a line of CSV."""
    line = io.StringIO()
    fields = ["type=bind", f"src={mount.path}", f"dst={mount.path}", *([] if mount.writable else ["ro"])]
    csv.writer(line, lineterminator="").writerow(fields)
    return ["--mount", line.getvalue()]


def check_container(slurm: Slurm, mounts: Sequence[Mount]) -> None:
    """Refuse paths that the runtime cannot mount."""
    if slurm.runtime == "none":
        return
    if slurm.local_folder.startswith("$") and not re.match(r"\$(TMPDIR\b|\{TMPDIR\})", slurm.local_folder):
        raise UserError(
            f"slurm.local_folder: in a container it must begin with $TMPDIR or be an absolute path "
            f"(got {slurm.local_folder}); choose another folder"
        )
    for path in (one.path for one in mounts):
        if wrong := _unmountable(slurm.runtime, path):
            raise UserError(f"slurm.container: {slurm.runtime} cannot mount {path}, {wrong}")
    if slurm.runtime == "pyxis" and not re.fullmatch(_PLAIN, slurm.image):
        raise UserError(f"slurm.container: pyxis accepts no image whose path has {_ODD}; move {slurm.image}")


def _unmountable(runtime: str, path: Path) -> str:
    if runtime == "pyxis" and not re.fullmatch(_PLAIN, str(path)):
        return f"whose name has {_ODD}; rename it, or choose another path"
    if runtime == "podman-hpc" and ":" in str(path):
        return "whose name has a colon; rename it, or choose another path"
    if len(path.parts) < 2:
        return "the whole file system; name a folder in it"
    if runtime == "charliecloud" and path.parts[1] in _OF_IMAGE:
        return f"since the image has its own /{path.parts[1]}; move it, or choose another path"
    return ""


def command_of(slurm: Slurm, mounts: Sequence[Mount], arguments: Sequence[str], *, gpus: bool = False) -> list[str]:
    """Return a command that runs this project's Python on this machine, in the container if there is one."""
    if is_bare(slurm):
        return [sys.executable, *arguments]
    start = start_of(slurm, mounts, gpus=gpus)
    return in_shell(f"{_srun_alone(slurm)} {start.srun} {start.python}" if start.srun else start.python, arguments)


def in_shell(text: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return a command that runs shell text with arguments that are passed unchanged."""
    return ["bash", "-c", f'exec {text} "$@"', "tlbatch", *arguments]


def _srun_alone(slurm: Slurm) -> str:
    """Return the srun command for a single task with pyxis, in the current allocation or a new one."""
    keys = ("partition", "account", "qos", "constraint")
    options = [f"--{key}={text}" for key in keys if (text := getattr(slurm, key)) and "SLURM_JOB_ID" not in os.environ]
    return shlex.join(["srun", "--ntasks=1", "--nodes=1", *options])


def image_digest(slurm: Slurm) -> str | None:
    """Return the digest that identifies an image: the SHA-256 of its file, or podman-hpc's digest.

    A file FILE.sha256 beside it, as tlbatch.container_image writes, is trusted if it is not older than the image.
    Raises UserError if there is no such image.
    """
    if is_bare(slurm):
        return None
    if slurm.runtime == "podman-hpc":
        return _podman_digest(slurm.image)
    image = Path(slurm.image)
    if not image.is_file():
        raise UserError(
            f"slurm.container: no such file {image}; make it with python -m tlbatch.container_image ARCHIVE "
            f"{slurm.runtime}:{image}"
        )
    with image.open("rb") as file:
        if slurm.runtime in ("charliecloud", "pyxis") and file.read(4) != b"hsqs":
            raise UserError(
                f"slurm.container: {image} is not a SquashFS file; make it again with python -m tlbatch.container_image"
            )
    status, recorded = image.stat(), Path(f"{image}.sha256")
    if recorded.is_file() and recorded.stat().st_mtime_ns >= status.st_ctime_ns:
        line = re.fullmatch(rb"([0-9a-f]{64})  (.+)\n", recorded.read_bytes())
        if line and line[2] == image.name.encode():
            return line[1].decode()
    return _digest(image, status.st_size, status.st_ctime_ns)


@functools.cache
def _digest(image: Path, size: int, changed: int) -> str:  # noqa: ARG001
    """Return the SHA-256 of an image file, which is read once for all runs of a sweep."""
    return digest_file(image)


def _podman_digest(name: str) -> str:
    command = ["podman-hpc", "image", "inspect", "--format", "{{.Digest}}", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            "slurm.container: podman-hpc is not on PATH; load it, or set another container runtime"
        ) from None
    if done.returncode or not done.stdout.strip():
        raise UserError(
            f"slurm.container: podman-hpc has no image {name}; make it with python -m tlbatch.container_image "
            "ARCHIVE "
            f"podman-hpc:{name}"
        )
    return done.stdout.strip().removeprefix("sha256:")
