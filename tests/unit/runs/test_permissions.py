import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.core.shell import ownership_line
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import claim_logs, common_mode

Make = Callable[..., RunPaths]


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def make(make_folders: Callable[..., Path], tiny_job: Path, tmp_path: Path) -> Make:
    images = make_folders(each=1)

    def prepared(*options: str) -> RunPaths:
        return make_run(
            resolve(load_job([tiny_job], [f"data.images={images}", f"workspace={tmp_path / 'w'}", *options]))
        ).paths

    return prepared


@pytest.mark.parametrize("mask", [0, 0o002, 0o022, 0o077])
def test_a_run_folder_is_open_to_its_owner_alone_whatever_the_umask(
    make: Make, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    private, open_one = make("run=private"), make("run=open", "private=false")
    assert (mode(private.folder), mode(private.logs), mode(open_one.logs)) == (0o700, 0o700, 0o700)
    assert mode(open_one.folder) == 0o755 & ~mask


def test_a_run_folder_keeps_the_group_that_its_parent_hands_down(make: Make, tmp_path: Path) -> None:
    runs = tmp_path / "w" / "runs"
    runs.mkdir(parents=True)
    runs.chmod(0o2755)
    assert mode(make("run=one").folder) == 0o2700


def run_ownership_line(paths: RunPaths, *, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    line = ownership_line([shlex.quote(str(folder)) for folder in (paths.folder, paths.logs)])
    if uid is not None:  # as if another user ran it
        line = line.replace('"$(id -u)"', str(uid))
    return subprocess.run(["bash", "-c", f"{line}\necho on"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("which", ["folder", "logs"])
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused_at_submit_and_in_the_script(
    make: Make, which: str, bits: int
) -> None:
    paths = make("run=mine")
    claim_logs(paths)
    assert run_ownership_line(paths).stdout == "on\n"
    folder = getattr(paths, which)
    folder.chmod(bits)
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: others can write to it, .* chmod go-w /"):
        claim_logs(paths)
    done = run_ownership_line(paths)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"error: others can write to the run folder: {folder}; submit the job as a new run\n"
    folder.chmod(0o755)
    claim_logs(paths)
    assert run_ownership_line(paths).stdout == "on\n"


def test_a_folder_of_another_user_or_a_link_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make("run=mine")
    assert run_ownership_line(paths, uid=os.geteuid() + 1).returncode == 78
    other = os.geteuid() + 1
    monkeypatch.setattr("os.geteuid", lambda: other)
    with pytest.raises(UserError, match="mine: it belongs to another user, or is a link, so the job could run"):
        claim_logs(paths)
    monkeypatch.undo()
    paths.logs.rename(paths.folder / "elsewhere")
    paths.logs.symlink_to(paths.folder / "elsewhere")
    with pytest.raises(UserError, match="logs: it belongs to another user, or is a link"):
        claim_logs(paths)
    assert run_ownership_line(paths).returncode == 78


def test_logs_that_are_gone_are_made_anew_and_private(make: Make, umask: Callable[[int], int]) -> None:
    paths = make("run=mine")
    paths.logs.rmdir()
    umask(0)
    claim_logs(paths)
    assert mode(paths.logs) == 0o700


def test_what_is_made_of_several_runs_is_open_to_those_who_see_them_all(make: Make) -> None:
    private, open_one, other = make("run=private"), make("run=open", "private=false"), make("run=o", "private=false")
    assert common_mode([open_one.folder, other.folder]) == 0o755
    assert common_mode([open_one.folder, private.folder]) == 0o700
