"""Fixtures that most tests share."""

import functools
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from tlbatch.core.garbage import imports_uncollected

JOBS = Path(__file__).parents[1] / "jobs"
TIERS = ("fast", "chain", "cluster", "campaign")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep what the tests import out of later collections: there is one after each phase of a training."""
    with imports_uncollected():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test without a tier the first one."""
    for item in items:
        marked = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if len(marked) > 1:
            raise pytest.UsageError(f"{item.nodeid}: is marked {' and '.join(marked)}; a test has one tier")
        if not marked:
            item.add_marker("fast")


@pytest.fixture(scope="module", autouse=True)
def _keep_imports_out_of_collections() -> Iterator[None]:
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_python_in_fast_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a fast test that starts another Python, which needs seconds to import what it runs."""
    if request.node.get_closest_marker("fast") is None:
        return
    start = subprocess.Popen.__init__

    def watched(self: subprocess.Popen[Any], args: Any, *more: Any, **options: Any) -> None:
        words = [args] if isinstance(args, (str, os.PathLike)) else list(args)
        if sys.executable in map(str, words):
            pytest.fail("a fast test starts no Python; mark it with pytest.mark.chain")
        start(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)


@pytest.fixture(scope="session")
def jobs() -> Path:
    """The job files that tlbatch ships."""
    return JOBS


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real images, which the project does not ship."""
    folder = os.environ.get("TLBATCH_TEST_DATA")
    if not folder:
        pytest.skip("TLBATCH_TEST_DATA is not set: no real images to test on")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def tiny_job() -> Path:
    """A job that runs in seconds on what `write_folders` writes."""
    return Path(__file__).with_name("tiny.toml")


@pytest.fixture(scope="session")
def write_folders() -> Callable[..., Path]:
    """Writes small class folders of coloured noise that a network can tell apart."""

    def write(
        folder: Path, classes: tuple[str, ...] = ("blue", "green", "red"), each: int = 12, side: int = 40
    ) -> Path:
        generator = np.random.default_rng(0)
        for number, name in enumerate(classes):
            (folder / name).mkdir(parents=True)
            for image in range(each):
                pixels = generator.integers(0, 120, (side, side + 8, 3), dtype=np.uint8)
                pixels[..., number % 3] += 120
                Image.fromarray(pixels).save(folder / name / f"{name}{image}.jpg", quality=95)
        return folder

    return write


@pytest.fixture
def make_folders(tmp_path: Path, write_folders: Callable[..., Path]) -> Callable[..., Path]:
    """Class folders in this test's own folder."""
    return functools.partial(write_folders, tmp_path / "images")


@pytest.fixture(scope="session")
def finished_space(
    tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]
) -> Path:
    """Return a workspace with a finished run of the tiny job, to be copied."""
    from tlbatch import cache, predict, reduce, shard, train
    from tlbatch.cluster.create import make_run, resolve
    from tlbatch.config.load import load_job

    folder = tmp_path_factory.mktemp("finished")
    where = [f"data.images={write_folders(folder / 'images')}", f"workspace={folder / 'space'}", "run=one"]
    paths = make_run(resolve(load_job([tiny_job], where))).paths
    for stage in (shard, cache, train, predict, reduce):
        stage.run(paths.folder)
    return folder / "space"


@pytest.fixture
def copy_run(finished_space: Path, tmp_path: Path) -> Callable[..., Any]:
    """Copies the finished run into a workspace of this test, without the stages after the last one that is named."""
    from tlbatch.runs.paths import RunPaths

    def copied(last: Literal["train", "predict", "reduce"] = "reduce") -> RunPaths:
        space = tmp_path / "space"
        shutil.copytree(finished_space, space)
        paths = RunPaths(space / "runs" / "one")
        record = paths.load_submitted()
        record.model_copy(update={"job": record.job.model_copy(update={"workspace": space})}).save(paths.record)
        if last != "reduce":
            paths.marker("reduce").unlink()
            shutil.rmtree(paths.report)
            for board in paths.folder.parent.glob("leaderboard.*"):
                board.unlink()
        if last == "train":
            paths.marker("predict").unlink()
            shutil.rmtree(paths.predictions)
        return paths

    return copied


@pytest.fixture
def fewer_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a third of the penalties on one division into folds: fitting takes nearly all the time of a choice."""
    from tlbatch.model import sklearn_heads
    from tlbatch.training import search

    monkeypatch.setattr(search, "_REPEATS", 1)
    fewer = {fit: penalties[::3] for fit, penalties in sklearn_heads._PENALTIES.items()}
    monkeypatch.setattr(sklearn_heads, "_PENALTIES", fewer)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)
