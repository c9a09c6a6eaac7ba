"""The command lines of the runtimes, word by word, as their documentation has it.

apptainer    https://apptainer.org/docs/user/latest/bind_paths_and_mounts.html, /gpu.html (--mount is a line of CSV)
charliecloud https://charliecloud.io/ch-run.html (tests/integration/test_container.py runs it)
pyxis        https://github.com/NVIDIA/pyxis/wiki/Usage (no comma, colon or space can stand in --container-mounts)
podman-hpc   https://github.com/NERSC/podman-hpc (all options of podman run) and podman-run(1)
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tlbatch.cluster import container
from tlbatch.cluster.container import (
    INSIDE,
    PYTHON,
    Mount,
    check_container,
    command_of,
    image_digest,
    in_shell,
    mounts_of,
    start_of,
)
from tlbatch.cluster.create import make_run, open_run, resolve
from tlbatch.config.load import load_job
from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.runs.provenance import image_commit
from tlbatch.runs.records import RunRecord

MOUNTS = (Mount(Path("/data/eyes")), Mount(Path("/scratch/space"), writable=True))
INNER = [
    "env", "--unset=PYTHONPATH", "--unset=PYTHONHOME", "--unset=PYTHONSTARTUP", "--unset=LD_PRELOAD",
    "--unset=LD_AUDIT", "--unset=TORCH_HOME", "--unset=HF_HOME",
    "--block-signal=USR2", "--block-signal=TERM", "TLBATCH_INSIDE={image}", "PYTHONNOUSERSITE=1",
    "PYTHONDONTWRITEBYTECODE=1", "TMPDIR={tmp}", "XDG_CACHE_HOME={tmp}/tlbatch-{uid}",
    "TRITON_CACHE_DIR={tmp}/tlbatch-{uid}",
    "TORCHINDUCTOR_CACHE_DIR={tmp}/tlbatch-{uid}", PYTHON, "-u", "-m", "tlbatch.task",
]  # fmt: skip
GOLDEN = {
    "apptainer": [
        "apptainer", "exec", "--no-home", "--no-mount=tmp", "--nv", "--rocm", "--mount",
        "type=bind,src=/data/eyes,dst=/data/eyes,ro", "--mount", "type=bind,src=/scratch/space,dst=/scratch/space",
        "--mount", 'type=bind,"src={tmp}","dst={tmp}"', "{image}",
    ],
    "charliecloud": [
        "ch-run", "--mount=/boot/.image", "--uid={uid}", "--gid={gid}", "--bind=/boot/tmp:/tmp", "--rocm", "{image}",
        "--", "setpriv", "--pdeathsig=KILL",
    ],
    "pyxis": [
        "srun", "--ntasks=2", "--container-image={image}",
        "--container-mounts=/data/eyes:/data/eyes:ro,/scratch/space:/scratch/space,{tmp}:{tmp}",
        "--no-container-mount-home", "--no-container-entrypoint", "--container-readonly", "--rocm",
    ],
    "podman-hpc": [
        "podman-hpc", "run", "--rm", "--pull=never", "--userns=keep-id", "--read-only", "--read-only-tmpfs=false",
        "--network=host", "--ipc=host", "--pid=host", "--env-host", "--entrypoint=", "--workdir=/", "--gpu", "--rocm",
        "--volume=/data/eyes:/data/eyes:ro", "--volume=/scratch/space:/scratch/space", "--volume={tmp}:{tmp}",
        "{image}",
    ],
}  # fmt: skip
FAKE = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" > "$SEEN"
grep -E '^(SigBlk|ShdPnd)' /proc/self/status > "$SEEN.status"
"""


def seen(tmp_path: Path, program: str, command: list[str]) -> list[str]:
    """What a program is given by a command, in which it stands for the real one."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / program).write_text(FAKE, encoding="utf-8")
    (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / "tmp d'ir").mkdir(exist_ok=True)
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"),
        "TMPDIR": str(tmp_path / "tmp d'ir"),
    }  # fmt: skip
    subprocess.run(command, env=environment, check=True)
    return (tmp_path / "seen").read_text("utf-8").split("\0")[:-1]


def filled(words: list[str], tmp_path: Path, image: str) -> list[str]:
    tmp = tmp_path / "tmp d'ir"
    known: dict[str, Any] = {"tmp": tmp, "image": image, "uid": os.getuid(), "gid": os.getgid()}
    return [word.format(**known) for word in words]


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis", "podman-hpc"])
def test_the_command_line_is_the_golden_one(runtime: str, tmp_path: Path) -> None:
    image = "tlbatch:1" if runtime == "podman-hpc" else "/images/tlbatch.img"
    slurm = Slurm(container=f"{runtime}:{image}", container_options=("--rocm",))
    start = start_of(slurm, MOUNTS, gpus=True)
    text = f"srun --ntasks=2 {start.srun} {start.python}" if runtime == "pyxis" else start.python
    program = "srun" if runtime == "pyxis" else runtime
    found = seen(tmp_path, program, in_shell(text, ["-u", "-m", "tlbatch.task"]))
    assert found == filled([*GOLDEN[runtime], *INNER], tmp_path, image)


def test_no_gpu_is_asked_of_the_runtime_where_the_job_has_none() -> None:
    for runtime in ("apptainer", "podman-hpc"):
        assert {"--nv", "--gpu"}.isdisjoint(
            start_of(Slurm(container=f"{runtime}:i"), MOUNTS, gpus=False).python.split()
        )


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no user namespaces here",
)
def test_charliecloud_is_given_a_tree_of_mounts() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # one top folder for all
        places = [Path(folder, name) for name in ("eyes", "space")]
        for place in places:
            place.mkdir()
        image = Path(folder, "a b.sqfs")
        image.touch()
        slurm = Slurm(container=f"charliecloud:{image}", container_options=("--rocm",))
        start = start_of(slurm, [Mount(places[0]), Mount(places[1], writable=True)], gpus=True)
        found = seen(Path(folder), "ch-run", in_shell(start.python, ["-u", "-m", "tlbatch.task"]))
        assert found == filled([*GOLDEN["charliecloud"], *INNER], Path(folder), str(image))


@pytest.mark.parametrize("runtime", ["apptainer", "podman-hpc"])
def test_signals_wait_until_python_takes_them(runtime: str, tmp_path: Path) -> None:
    start = start_of(Slurm(container=f"{runtime}:i"), (), gpus=False)
    seen(tmp_path, runtime, in_shell(start.python))
    blocked = int((tmp_path / "seen.status").read_text("utf-8").split("SigBlk:")[1].split()[0], 16)
    assert blocked & (1 << 11) and blocked & (1 << 14), "USR2 and TERM"  # noqa: PT018


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a,b", "$(touch pwned)", "a:b", " a "])
def test_apptainer_mounts_what_has_any_name(name: str, tmp_path: Path) -> None:
    start = start_of(Slurm(container="apptainer:i"), [Mount(Path(f"/data/{name}"))], gpus=False)
    found = seen(tmp_path, "apptainer", in_shell(start.python))
    (row,) = csv.reader([found[found.index("--mount") + 1]], strict=True)
    assert row == ["type=bind", f"src=/data/{name}", f"dst=/data/{name}", "ro"]


def test_without_a_container_or_within_one_it_is_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"env --block-signal=USR2 {sys.executable}"
    assert start_of(Slurm(), MOUNTS, gpus=True).python == own
    assert command_of(Slurm(), MOUNTS, ["-m", "x"]) == [sys.executable, "-m", "x"]
    monkeypatch.setenv(INSIDE, "i")
    assert start_of(Slurm(container="apptainer:i"), MOUNTS, gpus=True).python == own
    assert command_of(Slurm(container="pyxis:/i"), MOUNTS, ["-m", "x"]) == [sys.executable, "-m", "x"]


def test_what_pyxis_runs_on_a_login_node_is_a_job_of_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    slurm = Slurm(container="pyxis:/i.sqsh", partition="gpu", account="eyes")
    found = seen(tmp_path, "srun", command_of(slurm, MOUNTS, ["-m", "tlbatch.reduce"]))
    assert found[:5] == ["srun", "--ntasks=1", "--nodes=1", "--partition=gpu", "--account=eyes"]
    assert found[-3:] == [PYTHON, "-m", "tlbatch.reduce"]


def record_of(tiny_job: Path, *overrides: str, **update: object) -> RunRecord:
    job = load_job([tiny_job], ["workspace=/scratch/space", *overrides])
    record = RunRecord(run="r", job=job, weights_digest=None, tlbatch_version="1", commit=None, created="now")
    return record.model_copy(update=update)


def test_what_the_job_names_is_mounted_to_read_and_the_workspace_to_write(tiny_job: Path) -> None:
    given = [
        "data.images=/data/eyes", "data.source=csv", "data.labels=/lists/labels.csv", "data.split={method='given'}",
        "data.split.files.test=/lists/test.csv", "model.weights=/weights/net.pth", "slurm.local_folder='/nvme/$USER/x'",
        "slurm.mounts=['/site/nccl', '/results:rw']", "report.public_leaderboard=/boards/public.csv",
    ]  # fmt: skip
    record = record_of(tiny_job, *given, checkpoint_of="/others/runs/champion")
    found = {str(mount.path): mount.writable for mount in mounts_of([record])}
    assert {path for path, writable in found.items() if writable} == {"/nvme", "/results", "/scratch/space"}
    assert {path for path, writable in found.items() if not writable} == {
        "/boards/public.csv", "/data/eyes", "/lists/labels.csv", "/lists/test.csv", "/others/runs/champion",
        "/site/nccl", "/weights/net.pth",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "mounted"),
    [
        ("/nvme/$USER/x", ["/nvme"]), ("/nvme/job-$SLURM_JOB_ID", ["/nvme"]), ("/nvme/x", ["/nvme"]),
        ("/nvme", ["/nvme"]), ("$TMPDIR/x", []), ("", []),
    ],
)  # fmt: skip
def test_a_folder_that_is_to_be_made_on_a_node_is_written_in_what_is_there(
    tiny_job: Path, folder: str, mounted: list[str]
) -> None:
    record = record_of(tiny_job, "data.images=/data/eyes", f"slurm.local_folder='{folder}'")
    found = {str(mount.path) for mount in mounts_of([record]) if mount.writable}
    assert found == {"/scratch/space", *mounted}


def test_the_report_names_the_commit_that_the_image_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert image_commit() is None
    for text, commit in (("\n", None), ("abc+\n", "abc+")):
        (tmp_path / "revision").write_text(text, encoding="ascii")
        assert image_commit() == commit


def test_tars_from_elsewhere_are_mounted_where_they_are_files_and_packages_are_not(tiny_job: Path) -> None:
    urls = ["/tars/eyes-{000..010}.tar", "file:/other/a.tar", "https://example.org/eyes.tar"]
    given = ["data.source=tars", f"data.urls={json.dumps(urls)}", "model.weights=package:weights/net.pth"]
    record = record_of(tiny_job, *given)
    assert [str(mount.path) for mount in mounts_of([record])] == ["/other/a.tar", "/scratch/space", "/tars"]


def test_folders_within_others_are_mounted_once_and_after_them(tiny_job: Path) -> None:
    record = record_of(tiny_job, "data.images=/scratch/space/own/eyes", "model.weights=/scratch/space/own/eyes/net.pth")
    assert mounts_of([record]) == (
        Mount(Path("/scratch/space"), writable=True), Mount(Path("/scratch/space/own/eyes")),
    )  # fmt: skip
    other = record_of(tiny_job, "data.images=/scratch")
    assert mounts_of([record, other]) == (
        Mount(Path("/scratch")), Mount(Path("/scratch/space"), writable=True), Mount(Path("/scratch/space/own/eyes")),
    )  # fmt: skip
    again = record_of(tiny_job, "slurm.mounts=['/big:rw']", "data.images=/big/eyes", "workspace=/big/eyes/space")
    assert mounts_of([again]) == (
        Mount(Path("/big"), writable=True), Mount(Path("/big/eyes")),
        Mount(Path("/big/eyes/space"), writable=True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("container", "path", "message"),
    [
        (
            "pyxis:/i.sqsh",
            "/data/a b",
            "slurm.container: pyxis cannot mount /data/a b, whose name has characters other than",
        ),
        ("pyxis:/i$.sqsh", "/data", "slurm.container: pyxis accepts no image whose path has characters"),
        ("podman-hpc:i", "/data/a:b", "slurm.container: podman-hpc cannot mount /data/a:b, whose name has a colon"),
        ("charliecloud:/i", "/usr/data", "slurm.container: charliecloud cannot mount /usr/data, since the image has"),
        ("apptainer:/i", "/", "slurm.container: apptainer cannot mount /, the whole file system"),
    ],
)
def test_what_a_runtime_cannot_mount_is_refused(container: str, path: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_container(Slurm(container=container), [Mount(Path(path))])
    assert str(error.value).startswith(message)
    check_container(Slurm(), [Mount(Path(path))])


@pytest.mark.parametrize("text", ["docker:x", "apptainer", "apptainer:", "apptainer:a\nb", "none:x", ""])
def test_a_container_is_a_runtime_and_an_image(tiny_job: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"^slurm.container: must be none or RUNTIME:IMAGE"):
        load_job([tiny_job], ["data.images=x", f"slurm.container={json.dumps(text)}"])


def test_the_digest_of_an_image_is_kept_in_the_job_and_taken_from_beside_it_while_it_is_new(
    tmp_path: Path, tiny_job: Path, make_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "tlbatch.sif"
    image.write_bytes(b"one")
    options = [f"data.images={make_folders()}", f"workspace={tmp_path / 'w'}", "run=r"]
    monkeypatch.chdir(tmp_path)
    record = resolve(load_job([tiny_job], [*options, "slurm.container=apptainer:tlbatch.sif"]))
    assert record.job.slurm.container == f"apptainer:{image}"
    assert record.images == (digest_file(image),)
    paths = make_run(record).paths
    told = Path(f"{image}.sha256")
    for text in (f"{'0' * 64}  other.sif\n", "no digest", "\xff\n", f"{'a' * 64}\n"):
        told.write_bytes(text.encode("latin-1"))
        assert image_digest(record.job.slurm) == digest_file(image), text
    told.write_text(f"{'0' * 64}  tlbatch.sif\n", encoding="utf-8")
    assert image_digest(record.job.slurm) == "0" * 64
    time.sleep(0.05)
    image.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(image)  # keeps its time, and may be another
    assert image_digest(record.job.slurm) == digest_file(image)
    image.write_bytes(b"two")
    again = open_run(paths.folder, []).record
    assert again.images == (*record.images, digest_file(image))
    assert open_run(paths.folder, []).record == again == paths.load_submitted()
    assert open_run(paths.folder, ["slurm.container=none"]).record.images == again.images
    image.unlink()
    with pytest.raises(
        UserError, match=r"no such file .*tlbatch.sif; make it with python -m tlbatch.container_image ARCHIVE"
    ):
        resolve(load_job([tiny_job], [*options, "slurm.container=apptainer:tlbatch.sif"]))


def test_what_is_no_squashfs_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    for runtime in ("charliecloud", "pyxis"):
        for content in (b"", b"text", b"\x7fELF"):
            (tmp_path / "i").write_bytes(content)
            with pytest.raises(UserError, match=r"^slurm.container: .* is not a SquashFS file; make it again with"):
                image_digest(Slurm(container=f"{runtime}:{tmp_path / 'i'}"))


@pytest.mark.parametrize(
    ("folder", "is_known"),
    [("$TMPDIR/x", True), ("${TMPDIR}", True), ("/nvme/$X", True), ("$SCRATCH/x", False), ("$TMPDIRS/x", False)],
)
def test_a_local_folder_must_be_one_that_can_be_mounted(folder: str, *, is_known: bool) -> None:
    slurm = Slurm(container="apptainer:/i", local_folder=folder)
    if is_known:
        check_container(slurm, MOUNTS)
    else:
        with pytest.raises(UserError, match=r"^slurm.local_folder: in a container it must begin with"):
            check_container(slurm, MOUNTS)


def test_an_image_is_read_once_for_all_runs_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, read = tmp_path / "i", list[Path]()
    image.write_bytes(b"hsqs")
    monkeypatch.setattr(container, "digest_file", lambda path: read.append(path) or "d")
    for _ in range(3):
        assert image_digest(Slurm(container=f"charliecloud:{image}")) == "d"
    assert read == [image]


def test_podman_hpc_is_asked_for_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm(container="podman-hpc:tlbatch:1")
    with pytest.raises(UserError, match=r"^slurm.container: podman-hpc is not on PATH"):
        image_digest(slurm)
    program = tmp_path / "podman-hpc"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "image inspect --format {{.Digest}} tlbatch:1" ] && echo sha256:ab\n', "utf-8"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert image_digest(slurm) == "ab"
    with pytest.raises(UserError, match=r"podman-hpc has no image other; make it with"):
        image_digest(Slurm(container="podman-hpc:other"))


def test_mounts_of_the_job_must_be_there(tmp_path: Path, tiny_job: Path, make_folders: Any) -> None:
    options = [f"data.images={make_folders()}", f"workspace={tmp_path / 'w'}"]
    record = resolve(load_job([tiny_job], [*options, f"slurm.mounts=['{tmp_path}:rw']"]))
    assert record.job.slurm.mounts == (f"{tmp_path}:rw",)
    with pytest.raises(UserError, match=r"^slurm.mounts: no such file or folder /nowhere; fix or remove '/nowhere:rw'"):
        resolve(load_job([tiny_job], [*options, "slurm.mounts=['/nowhere:rw']"]))
