"""tlbatch.container_image, with programs that write down what they are given in place of a runtime's own."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tlbatch.cluster.image import _unpack
from tlbatch.container_image import main

pytestmark = pytest.mark.chain

FAKE = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $1 $(basename "$2")${3:+ $3}" >> "$LOG"
case "$(basename "$0") $1" in
  "apptainer build") [ -e "$3/$PWD_TOP" ] && cat "$3/etc/environment" > "$2" ;;
  "podman-hpc image") [ -n "$KNOWN" ] && echo sha256:ab ;;
esac
"""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What podman export leaves, and fake runtimes on PATH."""
    for name in ("apptainer", "podman-hpc"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(FAKE, encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PWD_TOP", tmp_path.parts[1])
    (tmp_path / "root" / "opt" / "tlbatch" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "opt" / "tlbatch" / "bin" / "python").symlink_to("/usr/bin/no-such-python")
    (tmp_path / "root" / "dev").mkdir()
    (tmp_path / "root" / "dev" / "console").touch()
    (tmp_path / "root" / "etc").mkdir()
    return packed(tmp_path / "root", tmp_path / "a b.tar")


def packed(root: Path, archive: Path) -> Path:
    names = sorted(path.name for path in root.iterdir())
    subprocess.run(["tar", "--create", "--file", archive, "--directory", root, *names], check=True)
    return archive


def make(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_an_image_has_its_digest_beside_it_and_what_runtimes_look_for_in_it(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "out.sif"
    assert make(archive, f"apptainer:{image}") == 0
    assert "NVIDIA_VISIBLE_DEVICES=all" in image.read_text("utf-8")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert Path(f"{image}.sha256").read_text("utf-8") == f"{digest}  out.sif\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "out.sif.sha256"], cwd=tmp_path, check=True)
    assert capsys.readouterr().out.startswith(f"slurm.container=apptainer:{image}  ")
    assert make(archive, f"apptainer:{image}") == 2
    assert capsys.readouterr().err == f"error: {image}: exists already; remove it, or choose another name\n"
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.sif", "out.sif.sha256"]


def test_podman_hpc_squashes_it_and_is_not_believed(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNOWN", "1")
    assert make(archive, "podman-hpc:tlbatch:1") == 0
    assert capsys.readouterr().out == "slurm.container=podman-hpc:tlbatch:1  digest ab\n"
    assert (tmp_path / "log").read_text("utf-8").splitlines()[:2] == [
        "podman-hpc import root.tar tlbatch:1", "podman-hpc migrate tlbatch:1",
    ]  # fmt: skip
    monkeypatch.setenv("KNOWN", "")
    assert make(archive, "podman-hpc:tlbatch:1") == 2


def test_what_is_no_image_is_refused_in_one_line(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> str:
        assert make(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    image = tmp_path / "out.sif"
    assert refused(archive, "docker:x").startswith("error: docker:x: must be none or RUNTIME:IMAGE")
    assert refused(archive, "none").startswith("error: none: is not a container; name a runtime")
    assert "no such file; name the tar file" in refused(tmp_path / "no.tar", f"apptainer:{image}")
    (tmp_path / "no.tar").write_text("text", encoding="utf-8")
    assert refused(tmp_path / "no.tar", f"apptainer:{image}").startswith("error: tar: This does not look like")
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "manifest.json").touch()
    layers = packed(tmp_path / "layers", tmp_path / "layers.tar")
    assert "holds layers, as podman save writes them; make it with podman export" in refused(
        layers, f"apptainer:{image}"
    )
    (tmp_path / "root" / "opt" / "tlbatch" / "bin" / "python").unlink()
    other = packed(tmp_path / "root", tmp_path / "other.tar")
    assert "has no /opt/tlbatch/bin/python; build it with" in refused(other, f"apptainer:{image}")
    (tmp_path / "root" / "etc").rmdir()
    (tmp_path / "root" / "opt" / "tlbatch" / "bin" / "python").symlink_to("python3")
    (tmp_path / "root" / "etc").symlink_to(tmp_path)
    assert "its etc is not a folder" in refused(packed(tmp_path / "root", tmp_path / "link.tar"), f"apptainer:{image}")
    assert not (tmp_path / "environment").exists()
    assert "not a writable folder" in refused(archive, f"apptainer:{tmp_path}/none/out.sif")
    monkeypatch.setenv("PATH", os.defpath)
    assert refused(archive, f"apptainer:{image}") == "error: apptainer: not on PATH; install or load it"
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("archive")
def test_what_an_image_holds_stays_and_can_be_read_by_all(tmp_path: Path) -> None:
    for name in ("home/dev", "srv"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "home" / "dev" / "kept").touch()
    (tmp_path / "root" / "srv" / "closed").touch(0o600)
    (tmp_path / "root" / "root").symlink_to("nowhere")
    (tmp_path / "root" / "etc" / "hosts").symlink_to("/nowhere/hosts")
    before = os.umask(0o077)
    try:
        root = _unpack(packed(tmp_path / "root", tmp_path / "more.tar"), tmp_path / "unpacked")
    finally:
        os.umask(before)
    assert (root / "home" / "dev" / "kept").exists()
    assert not (root / "dev" / "console").exists()
    assert (root / "root").readlink() == Path("nowhere")
    assert (root / "etc" / "hosts").read_text("utf-8") == ""
    closed = [path for path in root.rglob("*") if not path.is_symlink() and not path.stat().st_mode & 0o004]
    assert closed == []
