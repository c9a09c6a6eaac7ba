from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths

Make = Callable[..., RunPaths]


@pytest.fixture
def make(make_folders: Callable[..., Path], tiny_job: Path, tmp_path: Path) -> Make:
    images = make_folders(each=1)

    def prepared(*options: str) -> RunPaths:
        return make_run(
            resolve(load_job([tiny_job], [f"data.images={images}", f"workspace={tmp_path / 'w'}", *options]))
        ).paths

    return prepared


@pytest.mark.parametrize("name", ["a%jb", "a%%b", "a\\b", "a\nb", "a\tb", "a\x7fb", "a\udcffb"])
def test_a_workspace_whose_name_slurm_would_change_is_refused_in_one_line(
    make: Make, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError) as error:
        make(f"workspace={tmp_path / name}")
    assert str(error.value).startswith(
        f"workspace: {str(tmp_path / name)!r} contains %, a backslash or a control character"
    )
    assert "\n" not in str(error.value)
    assert not (tmp_path / name).exists()


def test_a_name_that_is_no_text_is_refused_in_one_line(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "a\udcffb"
    folder.mkdir()
    with pytest.raises(
        UserError, match=r"^'\"images\": \"/.*a\\udcff' is not valid UTF-8, as job\.json must be; rename"
    ):
        make(f"data.images={folder}")


@pytest.mark.parametrize("name", ["a b", "a%jb", "a\\b", "a\nb", "it's", "$(c)", "2024-01-31", "1\nb = 2", "a=b", " a"])
def test_a_folder_of_images_may_have_any_other_name(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for number, given in enumerate((name, str(tmp_path / name))):
        paths = make(f"run={number}", f"data.images={given}")
        assert paths.load_submitted().job.data.images == tmp_path / name


def test_a_program_to_notify_must_be_one(tmp_path: Path, tiny_job: Path) -> None:
    program = tmp_path / "tell"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    job = load_job([tiny_job], [f"data.images={tmp_path}", f"slurm.notify={program}"])
    with pytest.raises(UserError, match=r"slurm\.notify: .*tell is not executable; chmod \+x it"):
        resolve(job)
    program.chmod(0o755)
    assert resolve(job).job.slurm.notify == program


def test_paths_of_a_job_have_no_dots_that_a_container_could_not_follow(
    tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    record = resolve(load_job([tiny_job], ["data.images=../../images", "workspace=../w", "run=r"]))
    assert (record.job.data.images, record.job.workspace) == (tmp_path / "images", tmp_path / "deep" / "w")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert resolve(load_job([tiny_job], [f"data.images={tmp_path}/link"])).job.data.images == tmp_path / "link"
