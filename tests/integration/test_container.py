"""Stages in a container, in steps of a real SLURM: Charliecloud, which needs no daemon and no rights.

TLBATCH_TEST_CONTAINER=FILE.sqfs    the image that Containerfile makes, as tests/container.sh builds it; without it an
                                    image of this machine's own system files, into which this environment is mounted
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from faults import Campaign, hold, write_images
from slurm_cluster import SlurmCluster, left_out, until

from tlbatch import container_image as make_image
from tlbatch.cluster.container import PYTHON, Mount, in_shell, start_of
from tlbatch.config.slurm import Slurm
from tlbatch.core.files import digest_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tlbatch" / "cluster" / "charliecloud.sh"
BUILT = os.environ.get("TLBATCH_TEST_CONTAINER", "")
IN_USR = sys.base_prefix.startswith("/usr/")
PACKAGES = (
    "base-files", "bash", "coreutils", "dash", "gcc-12-base", "libacl1", "libattr1", "libbz2-1.0", "libc-bin", "libc6",
    "libcap-ng0", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "libgmp10", "libgomp1", "liblzma5", "libncursesw6",
    "libpcre2-8-0", "libpython3.11-minimal", "libpython3.11-stdlib", "libreadline8", "libselinux1", "libsqlite3-0",
    "libssl3", "libstdc++6", "libtinfo6", "libuuid1", "python3.11", "python3.11-minimal", "util-linux", "zlib1g",
)  # fmt: skip
"""Version in Debian 12."""


def missing() -> str:
    """Return what the tests need and is missing here."""
    programs = [name for name in ("ch-run", "mksquashfs", "unshare", "findmnt") if shutil.which(name) is None]
    if programs:
        return f"not on PATH: {', '.join(programs)}"
    return "" if Path("/dev/fuse").exists() else "no /dev/fuse"


pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Return an image for Charliecloud."""
    if why := missing():
        left_out("no container can be run", why)
    if BUILT:
        yield Path(BUILT).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="tlbatch-image-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield light_image(Path(folder))


def light_image(folder: Path) -> Path:
    """System files of this machine, and a Python that is the one of this environment."""
    root = folder / "root"
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    listed = subprocess.run(["dpkg", "-L", *PACKAGES], capture_output=True, text=True, check=False).stdout
    copy = "tar --create --no-recursion --files-from=- --directory=/ | tar --extract --keep-directory-symlink"
    subprocess.run(["bash", "-c", copy], input=listed, cwd=root, text=True, stderr=subprocess.DEVNULL, check=False)
    (root / "opt").mkdir(exist_ok=True)
    (root / "opt" / "tlbatch").symlink_to(sys.prefix)
    for name in ("passwd", "group"):
        (root / "etc" / name).touch()
    if IN_USR:
        shutil.copytree(sys.base_prefix, root / sys.base_prefix[1:], symlinks=True)
    archive, image = folder / "light.tar", folder / "light.sqfs"
    subprocess.run(["tar", "--create", "--file", archive, "--directory", root, "."], check=True)
    with pytest.raises(SystemExit) as end:
        make_image.main([str(archive), f"charliecloud:{image}"])
    assert end.value.code == 0
    return image


def settings(image: Path) -> tuple[str, ...]:
    """Return the overrides that run a job in the image."""
    own = [] if BUILT else sorted({str(ROOT), sys.prefix, *([] if IN_USR else [sys.base_prefix])} - {"/usr"})
    return f"slurm.container=charliecloud:{image}", f"slurm.mounts={json.dumps(own)}"


@pytest.fixture
def campaign(slurm: SlurmCluster, image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Campaign]:
    folder = Path(tempfile.mkdtemp(prefix="tlbatch-container-"))
    monkeypatch.setattr(faults, "WEIGHTS", {stage: int(stage == "train") for stage in faults.STAGES})
    write_images(folder / "images")
    try:
        yield Campaign(slurm, folder, random.Random(0), otherwise=settings(image))
    finally:
        shutil.rmtree(folder)


def test_interrupted_runs_in_containers_give_the_same_bytes_as_without_containers(
    campaign: Campaign, image: Path
) -> None:
    kinds = ["pre-emption", "USR2", "scancel", "admin requeue"] if BUILT else ["pre-emption"]
    hold(campaign, kinds=kinds, each=2)
    assert campaign.wrong == []
    assert {kind for kind, stage in campaign.happened if stage == "train"} >= set(kinds)
    run = campaign.folder / "chain-0" / "runs" / "chain-0"
    assert json.loads((run / "job.json").read_text("utf-8"))["images"] == [digest_file(image)]
    script = next(file.read_text("utf-8") for file in run.glob("logs/*_submission.sh"))
    assert PYTHON in script
    assert sys.executable not in script
    train = json.loads((run / "markers" / "train.json").read_text("utf-8"))
    assert (train["world_size"], train["hosts"]) == (2, ["n[1-2]"])


def test_an_allocation_runs_its_steps_in_the_container(campaign: Campaign, image: Path) -> None:
    container, mounts = settings(image)
    log, space = campaign.folder / "batch.log", campaign.folder / "batch"
    given = [str(faults.TINY), f"data.images={campaign.folder / 'images'}", f"workspace={space}", "run=batch", mounts]
    done = campaign.slurm.run(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={log}", "slurm/finetune.sh", *given,
        cwd=ROOT, env={"TLBATCH_ENV": sys.prefix, "TLBATCH_CONTAINER": container.partition("=")[2]},
    )  # fmt: skip
    assert campaign.slurm.wait([done.stdout.strip()], 180) == {done.stdout.strip(): "COMPLETED"}, log.read_text("utf-8")
    assert json.loads((space / "runs" / "batch" / "job.json").read_text("utf-8"))["images"] == [digest_file(image)]
    assert "train 2 ranks on CPU" in log.read_text("utf-8")


@pytest.fixture
def space(tmp_path: Path) -> dict[str, Path]:
    """Return folders and a file to mount, in a folder with shell metacharacters in its name."""
    places = {name: tmp_path / "a b$(c)'d,e" / name for name in ("images", "images/deep/work", "file", "tmp", "hidden")}
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("hello", encoding="utf-8") if name == "file" else place.mkdir()
    (places["images"] / "one.jpg").write_text("one", encoding="utf-8")
    return places


def inside(
    image: Path, space: dict[str, Path], text: str, *before: str, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the image."""
    mounts = [f"rw:{space['images/deep/work']}", f"ro:{space['images']}", f"ro:{space['file']}"]
    command = [*before, "bash", str(script), str(image), *mounts, "--", "--", "sh", "-c", text, "sh"]
    places = [str(space[name]) for name in ("images", "images/deep/work", "file", "tmp", "hidden")]
    environment = {**os.environ, "TMPDIR": str(space["tmp"])}
    return subprocess.run([*command, *places], env=environment, capture_output=True, text=True, check=False)


def test_only_mounts_are_visible_and_only_writable_mounts_can_be_written(image: Path, space: dict[str, Path]) -> None:
    done = inside(image, space, 'cat "$1/one.jpg" "$3"; echo; echo out > "$2/new" && echo > "$4/new" && ls -d "$5"')
    assert done.stdout == "onehello\n"
    assert "No such file" in done.stderr
    assert (space["images/deep/work"] / "new").read_text("utf-8") == "out\n"
    for place in ('"$1/one.jpg"', '"$1/new"', '"$3"', "/new", "/usr/new", "/opt/new"):
        done = inside(image, space, f"echo x > {place}")
        assert "Read-only file system" in done.stderr, (place, done)
    assert sorted(path.name for path in space["images"].iterdir()) == ["deep", "one.jpg"]


def test_no_part_of_a_read_only_mount_can_be_written_and_nothing_to_where_it_would_be_lost(
    image: Path, space: dict[str, Path]
) -> None:
    deep = space["images/deep/work"].parent / "other"
    deep.mkdir()
    text = 'unshare --mount bash -c \'mount -t tmpfs tmpfs "$1"; shift; exec "$@"\' sh'
    done = inside(
        image, space, 'echo x > "$1/deep/other/x"; echo x > "$5"', "bash", "-c", f'{text} "$@"', "sh", str(deep)
    )
    assert done.stderr.count("Read-only file system") == 2, done.stderr


def test_a_link_that_leads_out_of_a_mount_is_followed_where_the_job_names_it(
    image: Path, space: dict[str, Path]
) -> None:
    (space["images"] / "link").symlink_to(space["hidden"])
    (space["hidden"] / "two.jpg").write_text("two", encoding="utf-8")
    assert inside(image, space, 'cat "$1/link/two.jpg"').returncode != 0
    mounts = [f"ro:{space['images']}", f"ro:{space['images'] / 'link'}"]
    command = ["bash", str(SCRIPT), str(image), *mounts, "--", "--", "cat", f"{space['images']}/link/two.jpg"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "two"


def test_the_exit_code_is_that_of_the_program(image: Path, space: dict[str, Path]) -> None:
    """ch-run treats the exit of any child as that of its program, so it must have no other child."""
    assert {inside(image, space, "exit 3").returncode for _ in range(20)} == {3}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("rel/dir", "TMPDIR=rel/dir is not an absolute path; set TMPDIR to one"),
        ("/no/where", "TMPDIR=/no/where does not exist; set TMPDIR to a folder"),
        ("/usr/lib", "TMPDIR=/usr/lib lies in a folder that the image has itself; set TMPDIR to another folder"),
        ("", ""), ("/dev/shm", ""),
    ],
)  # fmt: skip
def test_an_odd_folder_for_temporary_files_is_named_in_one_line(image: Path, folder: str, message: str) -> None:
    command = [
        "bash",
        str(SCRIPT),
        str(image),
        "--",
        "--",
        "sh",
        "-c",
        'touch "$0" && rm "$0"',
        f"{folder or '/tmp'}/tlbatch-x",
    ]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True, check=False)
    if message:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: slurm.container: on ")
        assert line.endswith(message)
    assert (done.returncode == 0) == (not message), done.stderr


def test_what_is_gone_is_named_in_one_line(image: Path) -> None:
    command = ["bash", str(SCRIPT), str(image), "ro:/no/where", "--", "--", "true"]
    (line,) = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    assert line.endswith("there is no /no/where, which the job names; fix the path, or slurm.mounts")
    command[2] = "/no/image"
    (line,) = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    assert line.endswith("there is no image /no/image; name one that all nodes can read")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_any_user_can_run_it_and_stays_who_he_is(image: Path, space: dict[str, Path]) -> None:
    for folder in space["tmp"].parents:
        if len(folder.parts) > 2:
            folder.chmod(0o755)
    script = space["tmp"].parent / SCRIPT.name  # the checkout may lie where nobody else may look
    shutil.copyfile(SCRIPT, script)
    for name in ("tmp", "images/deep/work"):
        os.chown(space[name], 12345, 12345)
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env", "--unset=USER", "HOME=/nowhere"]
    opened = Path("/dev/fuse").stat().st_mode
    Path("/dev/fuse").chmod(0o666)  # as udev has it
    try:
        done = inside(image, space, 'id -u; echo x > "$2/new"; echo x > "$1/new"', *user, script=script)
    finally:
        Path("/dev/fuse").chmod(opened)
    assert done.stdout == "12345\n", done.stderr
    assert "Read-only file system" in done.stderr
    assert (space["images/deep/work"] / "new").stat().st_uid == 12345


def test_a_program_does_not_outlive_the_process_that_serves_its_image(image: Path, tmp_path: Path) -> None:
    own = json.loads(settings(image)[1].partition("=")[2])
    mounts = [Mount(tmp_path, writable=True), *(Mount(Path(place)) for place in own)]
    start = start_of(Slurm(container=f"charliecloud:{image}"), mounts, gpus=False)
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    process = subprocess.Popen(in_shell(start.python, ["-c", code, str(tmp_path / "pid")]))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text("utf-8") != "")
    pid = int((tmp_path / "pid").read_text("utf-8"))
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    process.wait()
    until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text("utf-8"))


def test_terminated_container_keeps_its_image_until_its_program_ends(image: Path, tmp_path: Path) -> None:
    """A runtime that serves the image from a separate process must keep it when SLURM signals all processes."""
    code = (
        "import signal, sys, time; [signal.signal(one, lambda *_: None) for one in (12, 15)];"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {12, 15});"
        "open(sys.argv[1], 'w').close(); time.sleep(3); import json.tool, tarfile, sqlite3; print('saved')"
    )
    own = json.loads(settings(image)[1].partition("=")[2])
    mounts = [Mount(tmp_path, writable=True), *(Mount(Path(place)) for place in own)]
    start = start_of(Slurm(container=f"charliecloud:{image}"), mounts, gpus=False)
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        in_shell(start.python, ["-c", code, str(ready)]),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    until(ready.exists)
    os.killpg(process.pid, 15)
    os.killpg(process.pid, 12)
    out, err = process.communicate(timeout=60)
    assert out == "saved\n", err
