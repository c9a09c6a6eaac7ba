"""Build the image of a site's container runtime from an exported container."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import assert_never

from pydantic import ValidationError

from tlbatch.cluster.container import PYTHON, image_digest
from tlbatch.config.slurm import Runtime, Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import absolute, digest_file, write_text

_ENVIRONMENT = "NVIDIA_VISIBLE_DEVICES=all\nNVIDIA_DRIVER_CAPABILITIES=compute,utility\n"
"""enroot mounts the GPU driver if the image asks for it."""
_SQUASH = ("-comp", "zstd", "-Xcompression-level", "3", "-b", "1M", "-no-xattrs", "-no-progress")
"""Seven times faster than zstd's default level, and no larger."""
_NOT_MOUNTED = {"lost+found", "boot"}


def make_image(archive: Path, container: str) -> int:
    """Make the image of a container and return the exit code."""
    try:
        slurm = Slurm(container=container)
    except ValidationError as error:
        raise UserError(f"{container}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    tool = _tool_of(slurm.runtime)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; name the tar file of podman export or docker export")
    _require(tool)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a batch job's time is over: leave nothing behind
    with tempfile.TemporaryDirectory(prefix="tlbatch-image-") as folder:
        if slurm.runtime == "podman-hpc":
            return _make_by_name(archive, slurm, Path(folder))
        image = absolute(Path(slurm.image))
        if image.exists():
            raise UserError(f"{image}: exists already; remove it, or choose another name")
        if not (image.parent.is_dir() and os.access(image.parent, os.W_OK)):
            raise UserError(f"{image.parent}: not a writable folder; create it, or choose another")
        root = _unpack(archive, Path(folder) / "root")
        draft = image.with_name(f".{image.name}.draft")
        draft.unlink(missing_ok=True)
        try:
            if slurm.runtime == "apptainer":
                _run("apptainer", "build", str(draft), str(root))
            else:
                if slurm.runtime == "charliecloud":
                    _add_driver(root)
                _run("mksquashfs", str(root), str(draft), "-all-root", *_SQUASH)
            draft.chmod(0o644)
            draft.replace(image)
        finally:
            draft.unlink(missing_ok=True)
    write_text(Path(f"{image}.sha256"), f"{digest_file(image)}  {image.name}\n")
    print(
        f"slurm.container={slurm.runtime}:{image}  {image.stat().st_size / 1e9:.2f} GB, {image.name}.sha256 beside it"
    )
    return 0


def _tool_of(runtime: Runtime) -> str:
    match runtime:
        case "apptainer" | "podman-hpc":
            return runtime
        case "charliecloud" | "pyxis":
            return "mksquashfs"
        case "none":
            raise UserError("none: is not a container; name a runtime and an image, e.g. apptainer:tlbatch.sif")
        case _:
            assert_never(runtime)


def _add_driver(root: Path) -> None:
    """Copy the libraries of this machine's NVIDIA driver, which Charliecloud does not mount."""
    if shutil.which("nvidia-container-cli"):
        _run("ch-fromhost", "--nvidia", str(root))
    else:
        print("the image has no GPU driver: for tasks on GPUs, run this where nvidia-container-cli is installed")


def _make_by_name(archive: Path, slurm: Slurm, folder: Path) -> int:
    """Import an image into podman-hpc's own store."""
    root = _unpack(archive, folder / "root")
    _run("tar", "--create", "--file", str(folder / "root.tar"), "--directory", str(root), ".")
    _run("podman-hpc", "import", str(folder / "root.tar"), slurm.image)
    _run("podman-hpc", "migrate", slurm.image)  # ends with 0 whatever happened
    print(f"slurm.container={slurm.container}  digest {image_digest(slurm)}")
    return 0


def _unpack(archive: Path, root: Path) -> Path:
    """Unpack the file system into a folder owned by this user, and add the files that runtimes look for."""
    root.mkdir()
    _run(
        "tar", "--extract", "--file", str(archive), "--directory", str(root), "--no-same-owner", "--anchored",
        "--exclude=dev/*", "--exclude=./dev/*", "--delay-directory-restore",
    )  # fmt: skip
    if (root / "manifest.json").exists() and not (root / "etc").exists():
        raise UserError(
            f"{archive}: holds layers, as podman save writes them; make it with podman export --output FILE "
            "$(podman create IMAGE), or docker"
        )
    if not (root / PYTHON[1:]).is_symlink() and not (root / PYTHON[1:]).exists():
        raise UserError(f"{archive}: has no {PYTHON}; build it with tlbatch's Containerfile")
    if (root / "etc").is_symlink() or not (root / "etc").is_dir():
        raise UserError(f"{archive}: its etc is not a folder; build it with tlbatch's Containerfile")
    _run("chmod", "--recursive", "u+rwX,go+rX", str(root))
    for name, text in (("environment", _ENVIRONMENT), ("fstab", ""), ("resolv.conf", ""), ("hosts", "")):
        file = root / "etc" / name
        if name == "environment" or file.is_symlink() or not file.exists():
            file.unlink(missing_ok=True)
            file.write_text(text, encoding="utf-8")
            file.chmod(0o644)
    for place in Path("/").iterdir():  # what may be mounted: a read-only image gets no other folders later
        own = root / place.name
        if place.name not in _NOT_MOUNTED and os.path.isdir(place) and not os.path.lexists(own):  # noqa: PTH112
            own.mkdir()
            own.chmod(0o755)
    return root


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise UserError(f"{program}: not on PATH; install or load it")


def _run(*command: str) -> None:
    """Run a program, which must exist and succeed."""
    _require(command[0])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        first = lines[0].strip().removeprefix(f"{command[0]}: ") if lines else f"exit code {done.returncode}"
        free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        raise UserError(f"{command[0]}: {first}; fix it, or set TMPDIR (its folder has {free:.1f} GB free)")
