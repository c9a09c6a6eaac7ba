"""Fixtures that most tests share."""

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

JOBS = Path(__file__).parents[1] / "jobs"


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
