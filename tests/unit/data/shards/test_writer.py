"""The shard stage on small images: its tars, indexes and audits, what it rejects, and what a kill leaves."""

import contextlib
import csv
import io
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
import xxhash
from PIL import Image

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.decode import decode
from tlbatch.data.image_set import open_set
from tlbatch.data.index import Index, read_index
from tlbatch.data.sources.base import Source
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import SetPaths, groups_file, set_folder

pytestmark = pytest.mark.chain

Make = Callable[..., RunPaths]


@pytest.fixture
def make(tmp_path: Path, jobs: Path) -> Make:
    def made(images: Path, *overrides: str) -> RunPaths:
        job = load_job(
            [jobs / "flowers17.toml"],
            [
                f"data.images={images}",
                f"workspace={tmp_path / 'space'}",
                "model.weights=none",
                "data.audit=stop",
                *overrides,
            ],
        )
        return make_run(resolve(job)).paths

    return made


def set_of(paths: RunPaths) -> SetPaths:
    return Run.load(paths.folder).set_paths


def sharded(paths: RunPaths) -> SetPaths:
    shard.run(paths.folder)
    return set_of(paths)


def index_of(paths: SetPaths) -> Index:
    return read_index(paths.index_file)


def tars(paths: SetPaths) -> list[str]:
    return sorted(file.name for file in paths.folder.glob("*.tar"))


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def keys(index: Index, *splits: int) -> list[str]:
    return [row["key"].decode() for row in index if not splits or row["split"] in splits]


def test_any_reader_of_webdataset_finds_every_image_with_its_class(
    make: Make, make_folders: Callable[..., Path]
) -> None:
    folder = sharded(make(make_folders(each=8), "data.shard_images=10"))
    names = tars(folder)
    assert [name[:7] for name in names] == ["000000-", "000001-", "000002-"]
    assert [file.name for file in open_set(folder).manifest.shards] == names
    paths = [str(folder.shard(name)) for name in names]
    found = {}
    for sample in webdataset.WebDataset(paths, shardshuffle=False).decode("pil"):
        found[sample["__key__"]] = sample["cls"]
        assert sample["jpg"].size == (48, 40)
    assert found == {f"{name}/{name}{n}": c for c, name in enumerate(("blue", "green", "red")) for n in range(8)}
    listed = subprocess.run(["tar", "tf", paths[2]], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[:2] == ["red/red4.cls", "red/red4.jpg"]
    with tarfile.open(paths[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "tlbatch", 0o444)}


def test_the_index_points_at_the_bytes_that_the_tar_holds(make: Make, make_folders: Callable[..., Path]) -> None:
    folder = sharded(make(make_folders(each=8), "data.shard_images=10"))
    shards = open_set(folder).shards
    index = index_of(folder)
    assert len(index) == 24
    for row in index:
        with tarfile.open(shards[row["shard"]]) as tar:
            member = tar.extractfile(f"{row['key'].decode()}.jpg")
            assert member is not None
            whole = shards[row["shard"]].read_bytes()
            data = whole[row["offset"] : row["offset"] + row["size"]]
            assert member.read() == data
        assert row["content"].decode() == xxhash.xxh3_128_hexdigest(data)
        assert row["plain"]


def test_the_same_images_give_the_same_bytes(make: Make, make_folders: Callable[..., Path], tmp_path: Path) -> None:
    images = make_folders(each=6)
    one, two = (sharded(make(images, f"run={n}", f"workspace={tmp_path / n}", "data.resize=32")) for n in ("1", "2"))
    files = sorted(file.relative_to(one.folder) for file in one.folder.rglob("*") if file.is_file())
    assert [file.suffix for file in files] == ["", ".npz", ".tar", ".csv", ".npy", ".json", ".csv"]
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_second_run_reads_only_what_is_new_and_an_old_run_keeps_its_index(
    make: Make, make_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_folders(each=6)
    first = make(images, "run=one")
    one = sharded(first)
    before = {file: file.read_bytes() for file in one.folder.rglob("*") if file.is_file()}
    assert sharded(make(images, "run=two")) == one

    read: list[str] = []
    whole = Source.read
    monkeypatch.setattr(Source, "read", lambda self, image: read.append(image.key) or whole(self, image))
    noise = np.random.default_rng(9).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "red" / "zz.jpg")
    three = sharded(make(images, "run=three"))
    assert read == ["red/zz"]
    assert len(index_of(three)) == 19
    assert len(tars(three)) == 2
    assert {file: file.read_bytes() for file in before} == before
    open_set(set_of(first))
    old = {row["key"]: row["split"] for row in index_of(one)}
    assert {row["key"]: row["split"] for row in index_of(three) if row["key"] in old} == old
    with pytest.raises(UserError, match="finished here with another source"):
        shard.run(first.folder)


def test_a_changed_image_or_label_is_read_again_and_a_removed_one_is_left_out(
    make: Make, make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(classes=("x", "y"), each=8)
    labels = tmp_path / "labels.csv"
    lines = [f"{name}{number},{name}" for name in ("x", "y") for number in range(8)]
    labels.write_text("\n".join(["image,level", *lines]), encoding="utf-8")
    csv_source = ["data.source=csv", f"data.labels={labels}", "data.split.val=0"]
    one = index_of(sharded(make(images, "run=one", *csv_source)))
    noise = np.random.default_rng(9).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "x" / "x3.jpg")
    lines[9] = "y1,x"
    del lines[0]
    labels.write_text("\n".join(["image,level", *lines]), encoding="utf-8")
    two = index_of(sharded(make(images, "run=two", *csv_source)))
    assert keys(two) == keys(one)[1:]
    contents = [{row["key"]: row["content"] for row in index} for index in (one, two)]
    assert [key.decode() for key in contents[1] if contents[0][key] != contents[1][key]] == ["x3"]
    assert {row["key"].decode(): row["label"] for row in two}["y1"] == 0
    assert Counter(two["shard"].tolist()) == {0: 13, 1: 2}


def test_other_splits_folds_and_samples_share_the_shards(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=12)
    sets = [
        sharded(make(images, f"run={n}", *more))
        for n, more in enumerate(
            (
                ["data.split.val=0"],
                ["data.split.folds=3"],
                ["data.split.folds=3", "data.split.fold=1"],
                ["data.per_class=8"],
            )
        )
    ]
    assert len({paths.folder for paths in sets}) == 1
    assert len({paths.index for paths in sets}) == 4
    assert len(tars(sets[0])) == 1
    assert [len(index_of(paths)) for paths in sets] == [36, 36, 36, 24]
    tested = [set(keys(index_of(paths), 2)) for paths in sets[1:3]]
    assert not tested[0] & tested[1]


def test_a_sample_of_a_large_source_shards_only_the_sample(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=12)
    small = sharded(make(images, "run=1", "data.per_class=8"))
    assert sum(file.num_images for file in open_set(small).manifest.shards) == 24
    whole = sharded(make(images, "run=2"))
    assert len(tars(whole)) == 2
    assert sum(file.num_images for file in open_set(whole).manifest.shards) == 36


def test_unusable_images_stop_the_job_or_are_listed_up_to_the_limit(
    make: Make, make_folders: Callable[..., Path]
) -> None:
    images = make_folders(each=8)
    broken = images / "red" / "red3.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    (images / "red" / "red4.jpg").write_bytes(b"")
    (images / "red" / "loop.jpg").symlink_to(images / "red" / "loop.jpg")
    with pytest.raises(UserError, match=r"red/loop: .*data\.max_rejected=1"):
        shard.run(make(images, "run=strict").folder)
    with pytest.raises(UserError, match=r"data\.max_rejected=3"):
        shard.run(make(images, "run=less", "data.max_rejected=1").folder)
    assert list((images.parent / "space" / "shards").glob("*/*/manifest.json")) == []
    folder = sharded(make(images, "run=lenient", "data.max_rejected=3"))
    assert len(index_of(folder)) == 22
    listed = {row["image"]: row["cause"] for row in table(folder.rejected)}
    assert set(listed) == {"red/loop", "red/red3", "red/red4"}
    assert "cannot be decoded" in listed["red/red3"]
    assert listed["red/red4"] == "cannot be decoded (no image of a known format)"
    again = sharded(make(images, "run=again", "data.max_rejected=3", "data.split.val=0"))
    assert {row["image"]: row["cause"] for row in table(again.rejected)} == listed
    broken.write_bytes((images / "red" / "red5.jpg").read_bytes()[:-2] + b"\0\xff\xd9")
    mended = sharded(make(images, "run=mended", "data.max_rejected=3", "data.audit=warn"))
    assert len(index_of(mended)) == 23
    (images / "red" / "late.jpg").symlink_to(images / "red" / "late.jpg")
    later = sharded(make(images, "run=later", "data.max_rejected=3", "data.audit=warn"))
    assert {"red/late", "red/loop"} <= {row["image"] for row in table(later.rejected)}


def test_an_image_that_could_not_be_read_once_is_tried_again(
    make: Make, make_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_folders(each=8)
    whole = Source.read

    def fails(self: Source, image: Any) -> bytes:
        if image.key in {"red/red1", "red/red2"}:
            raise OSError(5, "Input/output error")
        return whole(self, image)

    monkeypatch.setattr(Source, "read", fails)
    with pytest.raises(UserError, match=r"red/red1: cannot be read \(Input/output error\)"):
        shard.run(make(images, "run=1").folder)
    some = sharded(make(images, "run=2", "data.max_rejected=2"))
    assert [row["image"] for row in table(some.rejected)] == ["red/red1", "red/red2"]
    monkeypatch.setattr(Source, "read", whole)
    assert len(index_of(sharded(make(images, "run=3", "data.max_rejected=2")))) == 24


def test_a_class_without_test_images_is_refused(make: Make, make_folders: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no image in the test split"):
        shard.run(make(make_folders(each=1)).folder)


def test_a_damaged_set_is_refused_with_the_file_named(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=6)
    folder = sharded(make(images, "run=1"))
    tar = folder.shard(tars(folder)[0])
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000000-.*\.tar: .* bytes, not"):
        open_set(folder)
    sidecar = tar.with_suffix(".npz")
    sidecar.write_bytes(sidecar.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"000000-.*\.npz: damaged"):
        shard.run(make(images, "run=2", "data.split.val=0").folder)


def test_a_kill_at_any_point_leaves_nothing_half_done(
    make: Make, make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(each=60, side=300)
    more = ["data.shard_images=7", "data.resize=64"]
    whole = sharded(make(images, "run=whole", f"workspace={tmp_path / 'whole'}", *more))
    paths = make(images, "run=killed", *more)
    store = set_folder(paths.load().job)
    seen = set()
    for wait in (1, 3, 9, 15):
        child = subprocess.Popen([sys.executable, "-m", "tlbatch.shard", paths.folder], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(store.glob("*.npz"))) < wait and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen.add(len(list(store.glob("*.npz"))))
        assert not paths.marker("shard").exists()
    assert len(seen) > 1
    killed = sharded(paths)
    for old in store.glob(".*.tar.*"):  # what a kill may leave: a draft under a hidden name
        old.unlink()
    names = sorted(str(file.relative_to(whole.folder)) for file in whole.folder.rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()) == names
    assert all((whole.folder / name).read_bytes() == (killed.folder / name).read_bytes() for name in names)


def test_shares_written_side_by_side_make_the_same_set(
    make: Make, make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(each=20)
    alone = sharded(make(images, "run=alone", f"workspace={tmp_path / 'alone'}", "data.shard_images=7"))
    paths = make(images, "run=shares", "data.shard_images=7")
    for number in (2, 0, 1):
        shard.run(paths.folder, share=(number, 3))
        assert not paths.marker("shard").exists()
    before = {file: file.stat().st_mtime_ns for file in set_folder(paths.load().job).glob("*.tar")}
    assert len(before) == 9
    shares = sharded(paths)
    assert {file: file.stat().st_mtime_ns for file in shares.folder.glob("*.tar")} == before
    for file in alone.folder.rglob("*.*"):
        assert (shares.folder / file.relative_to(alone.folder)).read_bytes() == file.read_bytes()


def splits_by_key(paths: SetPaths) -> dict[str, int]:
    return {row["key"].decode(): int(row["split"]) for row in index_of(paths)}


def test_no_key_of_the_job_and_no_removal_moves_a_group(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=12)
    before = splits_by_key(sharded(make(images, "run=1")))
    noise = np.random.default_rng(5).integers(0, 255, (12, 40, 48, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(images / "blue" / f"new{number}.jpg")
    grown = splits_by_key(sharded(make(images, "run=2")))
    assert {key: grown[key] for key in before} == before
    for number, more in enumerate(
        ("data.max_rejected=1", "data.audit=warn", "data.phash_max_distance=8", "data.shard_images=9", "data.resize=32")
    ):
        assert splits_by_key(sharded(make(images, f"run=other{number}", more))) == grown
    (images / "red").rename(images.parent / "red")
    shutil.copytree(images.parent / "red", images / "red")
    shutil.rmtree(images / "green")
    make_again = [make(images, "run=less", "data.classes=['blue', 'red']")]
    shutil.copytree(images / "red", images / "green", copy_function=shutil.copy)
    shutil.rmtree(images / "green")
    less = splits_by_key(sharded(make_again[0]))
    assert less == {key: split for key, split in grown.items() if not key.startswith("green")}


def test_another_class_needs_another_set(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=8)
    sharded(make(images, "run=1"))
    shutil.copytree(images / "red", images / "azure")
    with pytest.raises(UserError, match=r"list them in data\.classes, which makes another set"):
        shard.run(make(images, "run=2").folder)


def test_changed_lists_of_a_given_split_are_read_again(
    make: Make, make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(each=4)
    keys_of_all = [f"{name}/{name}{n}" for n in range(4) for name in ("blue", "green", "red")]
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    given = [
        "data.split.method=given",
        "data.split.val=0",
        *(f"data.split.files.{name}={file}" for name, file in lists.items()),
    ]
    for run, cut in (("1", 6), ("2", 9)):
        lists["train"].write_text("\n".join(keys_of_all[:cut]), encoding="utf-8")
        lists["test"].write_text("\n".join(keys_of_all[cut:]), encoding="utf-8")
        assert sorted(keys(index_of(sharded(make(images, f"run={run}", *given))), 0)) == sorted(keys_of_all[:cut])


def test_an_index_folder_without_its_manifest_is_made_again(make: Make, make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=6)
    folder = sharded(make(images, "run=1"))
    folder.manifest.unlink()
    assert sharded(make(images, "run=2")) == folder
    assert folder.manifest.exists()
    sidecar = next(folder.folder.glob("*.npz"))
    np.save(sidecar.with_suffix(".npy"), np.zeros(3))
    sidecar.with_suffix(".npy").rename(sidecar)
    with pytest.raises(UserError, match=r"\.npz: damaged"):
        shard.run(make(images, "run=3", "data.split.val=0").folder)


def test_a_full_disk_is_named_and_nothing_half_written_stays(
    make: Make, make_folders: Callable[..., Path], tiny_disk: Path
) -> None:
    paths = make(make_folders(each=60, side=100), f"workspace={tiny_disk}", "data.shard_images=10")
    with pytest.raises(UserError, match="no space left on the device"):
        shard.run(paths.folder)
    store = set_folder(paths.load().job)
    assert [file for file in store.glob(".*") if file.name != ".lock"] == []
    for tar in store.glob("*.tar"):
        with tarfile.open(tar) as whole:
            assert whole.getmembers()


def in_place(folder: Path) -> list[str]:
    return ["data.source=tars", f"data.images={folder}", "data.split.val=0"]


def test_tars_are_indexed_where_they_lie(make: Make, make_folders: Callable[..., Path], tmp_path: Path) -> None:
    first = sharded(make(make_folders(each=12), "run=1", "data.shard_images=10"))
    there = tmp_path / "there"
    there.mkdir()
    for name in tars(first):
        shutil.copy(first.folder / name, there / name)
    before = {file: file.stat().st_mtime_ns for file in there.iterdir()}
    second = sharded(make(there, "run=2", *in_place(there)))
    assert {file: file.stat().st_mtime_ns for file in there.iterdir()} == before
    assert tars(second) == []
    opened = open_set(second)
    assert [path.parent for path in opened.shards] == [there] * 4
    mine, theirs = ({row["key"]: row["content"] for row in index_of(paths)} for paths in (first, second))
    assert theirs == mine
    for row in index_of(second):
        with opened.shards[row["shard"]].open("rb") as tar:
            tar.seek(row["offset"])
            assert decode(tar.read(row["size"])).shape == (40, 48, 3)


def test_tars_from_a_pipe_a_server_or_a_bucket_are_staged_once(
    make: Make, make_folders: Callable[..., Path], tiny_job: Path, tmp_path: Path
) -> None:
    def staged(url: str, run: str) -> RunPaths:
        source = ["data.source=tars", f"data.urls=['{url}']", "data.split.val=0"]
        return make_run(resolve(load_job([tiny_job], [f"workspace={tmp_path / 'w'}", run, *source]))).paths

    first = sharded(make(make_folders(each=12), "run=1", "data.shard_images=18"))
    there = tmp_path / "there"
    there.mkdir()
    for number, name in enumerate(tars(first)):
        shutil.copy(first.folder / name, there / f"part-{number}.tar")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", there],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" port ")[1].split()[0]
        for tar in there.iterdir():
            with fsspec.open(f"memory://bucket/{tar.name}", "wb") as file:
                file.write(tar.read_bytes())
        urls = [f"http://127.0.0.1:{port}/part-{{0..1}}.tar", f"pipe:cat {there}/part-{{0..1}}.tar"]
        urls.append("memory://bucket/part-{0..1}.tar")  # fsspec's, as s3 is
        for number, url in enumerate(urls):
            first_time = sharded(staged(url, f"run={number}"))
            assert len(index_of(first_time)) == 36
            times = [file.stat().st_mtime_ns for file in (tmp_path / "w" / "staged").rglob("*.tar")]
            assert sharded(staged(url, f"run=again{number}")) == first_time
            assert [file.stat().st_mtime_ns for file in (tmp_path / "w" / "staged").rglob("*.tar")] == times
        for url in (f"http://127.0.0.1:{port}/absent.tar", "pipe:exit 3 # absent.tar", "none://x/absent.tar"):
            with pytest.raises(UserError, match=r"absent\.tar could not be fetched"):
                shard.run(staged(url, f"run=wrong-{url.split(':')[0]}").folder)
    finally:
        server.kill()
        server.wait()


def test_idx_images_become_png_members(make: Make) -> None:
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    more = ["data.source=idx", "data.split.method=given", "data.per_class=30", "data.audit=warn", "data.split.val=0.2"]
    paths = sharded(make(folder, *more))
    manifest = open_set(paths).manifest
    assert sum(manifest.num_images.values()) == 300
    with tarfile.open(paths.folder / tars(paths)[0]) as tar:
        member = next(member for member in tar if member.name.endswith(".png"))
        data = tar.extractfile(member)
        assert data is not None
        assert Image.open(io.BytesIO(data.read())).size == (28, 28)


def test_several_tags_stand_in_the_index_and_in_txt_members(
    make: Make, make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(classes=("x",), each=40)
    labels = tmp_path / "labels.csv"
    lines = [f"x{n},{'floral ' if n % 2 else ''}dress" for n in range(40)]
    labels.write_text("\n".join(["image,level", *lines]), encoding="utf-8")
    paths = sharded(make(images, "data.source=csv", f"data.labels={labels}", "data.tag_separator=' '"))
    manifest = open_set(paths).manifest
    assert (manifest.tags, manifest.classes) == (True, ("dress", "floral"))
    found = {row["key"].decode(): row["tags"].tolist() for row in index_of(paths)}
    assert (found["x0"], found["x1"]) == ([0, -1], [1, 0])
    assert sum(manifest.num_images.values()) == 40
    assert [sum(counts) for counts in zip(*manifest.counts.values(), strict=True)] == [40, 20]
    for sample in webdataset.WebDataset([str(paths.shard(tars(paths)[0]))], shardshuffle=False).decode("pil"):
        assert sample["txt"] in {"dress", "floral dress"}


def copy_image(images: Path, name: str, other: str, **change: Any) -> None:
    target = images / other
    if change:
        Image.open(images / name).save(target, **change)
    else:
        shutil.copy(images / name, target)


def photographs(images: Path) -> Path:
    """Smooth pictures, as noise has no likeness to keep."""
    generator = np.random.default_rng(0)
    for name in ("one", "two"):
        (images / name).mkdir(parents=True)
        for number in range(20):
            coarse = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(
                images / name / f"{name}{number:02d}.jpg"
            )
    return images


def test_the_audit_stops_the_job_at_copies_across_splits_and_lists_them(make: Make, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images")
    clean = sharded(make(images, "run=clean"))
    assert table(clean.audit) == []
    split = {row["key"].decode(): int(row["split"]) for row in index_of(clean)}
    tested = sorted(key for key in split if split[key] == 2)
    trained = sorted(key for key in split if split[key] == 0)
    copy_image(images, f"{tested[0]}.jpg", f"{tested[0]}copy.jpg")
    copy_image(images, f"{trained[0]}.jpg", f"{trained[0]}again.jpg", quality=60)
    copy_image(images, f"{trained[1]}.jpg", "two/other.jpg", quality=70)
    for salt in range(30):
        paths = make(images, f"run=salt{salt}", f"data.split.salt={salt}")
        with contextlib.suppress(UserError):
            assert len(table(sharded(paths).audit)) == 6
            continue
        with pytest.raises(UserError, match=r"set data\.audit=resolve to fix it"):
            shard.run(paths.folder)
        listed = table(paths.folder / "audit.csv")
        assert not groups_file(Run.load_submitted(paths.folder).job).exists()
        break
    assert len(listed) == 6
    found = {row["image"]: row for row in listed}
    assert {key: row["kind"] for key, row in found.items()} == {
        tested[0]: "exact", f"{tested[0]}copy": "exact", trained[0]: "near", f"{trained[0]}again": "near",
        trained[1]: "near", "two/other": "near",
    }  # fmt: skip
    assert {key for key, row in found.items() if row["contradicts"]} == {trained[1], "two/other"}
    assert any(row["across"] for row in listed)

    warned = sharded(make(images, "run=warned", f"data.split.salt={salt}", "data.audit=warn"))
    record = open_set(warned).manifest.audit
    assert (record.num_exact, record.num_near, record.num_contradicting) == (2, 4, 2)
    assert sum(record.across.values()) > 0

    mended = sharded(make(images, "run=mended", f"data.split.salt={salt}", "data.audit=resolve"))
    record = open_set(mended).manifest.audit
    assert (record.num_dropped, record.num_similar, sum(record.across.values())) == (2, 0, 0)
    actions = {row["image"]: row["action"] for row in table(mended.audit)}
    assert (actions[trained[1]], actions["two/other"]) == ("dropped", "dropped")
    assert record.num_moved == sum(action.startswith("moved to") for action in actions.values())
    kept = {row["key"].decode(): int(row["split"]) for row in index_of(mended)}
    assert len(kept) == 41
    groups = {row["key"].decode(): (row["group"], row["own_group"]) for row in index_of(mended)}
    assert len({group for group, _ in groups.values()}) == 39
    assert all(own.decode() == key for key, (_, own) in groups.items())
    assert "own_group" not in index_of(clean).dtype.names
    assert open_set(mended).manifest.notes[-2] == (
        "4 images in 2 clusters of duplicates count as one group each for folds and intervals"
    )
    assert kept[tested[0]] == kept[f"{tested[0]}copy"]
    assert kept[trained[0]] == kept[f"{trained[0]}again"]

    exact_only = sharded(
        make(images, "run=exact", f"data.split.salt={salt}", "data.audit=warn", "data.phash_max_distance=0")
    )
    assert {row["image"] for row in table(exact_only.audit)} == {tested[0], f"{tested[0]}copy"}


def test_a_near_copy_of_a_test_image_is_tested_for_three_nights(make: Make, tmp_path: Path) -> None:
    images = photographs(tmp_path / "images")
    nights = [sharded(make(images, "run=night0", "data.audit=resolve"))]
    split = splits_by_key(nights[0])
    tested = [key for key in split if split[key] == 2][:4]
    for key in tested:
        copy_image(images, f"{key}.jpg", f"{key}copy.jpg", quality=60)
    nights.append(sharded(make(images, "run=night1", "data.audit=resolve")))
    for key in tested:
        (images / f"{key}.jpg").unlink()
    nights.append(sharded(make(images, "run=night2", "data.audit=resolve")))
    alone = splits_by_key(sharded(make(images, "run=alone", "data.audit=resolve", f"workspace={tmp_path / 'other'}")))
    assert {alone[f"{key}copy"] for key in tested} != {2}
    for night in nights[1:]:
        assert {splits_by_key(night)[f"{key}copy"] for key in tested} == {2}
    groups = {row["key"].decode(): row["group"].decode() for row in index_of(nights[1])}
    assert [groups[f"{key}copy"] for key in tested] == tested
    assert {key: splits_by_key(nights[1])[key] for key in split} == split


def test_the_audit_finds_the_published_leak(make: Make, tmp_path: Path, write_folders: Callable[..., Path]) -> None:
    images = write_folders(tmp_path / "images", classes=("0", "1", "2", "3", "4"), each=200, side=16)
    published = ["data.split.method=as-published", "data.split.recipe=retinopathy-dl", "data.phash_max_distance=0"]
    paths = make(images, "run=stops", *published)
    with pytest.raises(UserError, match="would change the split of a published system"):
        make(images, "run=resolve", "data.audit=resolve", *published)
    with pytest.raises(UserError, match="25 images of val in train too, 136 images of test in train too"):
        shard.run(paths.folder)
    warned = sharded(make(images, "run=warned", "data.audit=warn", *published))
    index = index_of(warned)
    assert Counter(index["split"].tolist()) == {0: 630, 1: 70, 2: 300}
    assert open_set(warned).manifest.audit.across["test in train or val"] == 143
    train = set(keys(index, 0, 1))
    assert sum(key in train for key in keys(index, 2)) == 143
    clean = ["data.split.method=as-published", "data.split.recipe=retinopathy-lr", "data.phash_max_distance=0"]
    assert sum(open_set(sharded(make(images, "run=clean", *clean))).manifest.audit.across.values()) == 0


@pytest.mark.parametrize(
    ("name", "more", "equal", "near", "contradicting"),
    [
        ("flowers17", [], 0, 158, 0),
        ("dogs_vs_cats", [], 0, 0, 0),
        ("idrid/images", ["data.source=csv", "data.labels={}/idrid/labels.csv"], 10, 0, 4),
    ],
)
def test_the_real_sets_hold_the_copies_that_were_seen_in_them(
    make: Make, test_data: Path, name: str, more: list[str], equal: int, near: int, contradicting: int
) -> None:
    """Looked at side by side: 68 flowers are there twice, and five eyes, two of them with two grades."""
    paths = sharded(make(test_data / name, "data.audit=warn", *(text.format(test_data) for text in more)))
    record = open_set(paths).manifest.audit
    assert (record.num_exact, record.num_near, record.num_contradicting) == (equal, near, contradicting)
