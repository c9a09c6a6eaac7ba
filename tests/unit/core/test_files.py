import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tlbatch.core.errors import UserError
from tlbatch.core.files import DRAFT_LASTS_S, atomic_file, atomic_folder, digest_of, remove_drafts, to_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_text(encoding="utf-8") == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "set") as draft:
        write_text(draft / "one", "1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "set") as draft:
        write_text(draft / "one", "1")
    assert (tmp_path / "set" / "one").read_text(encoding="utf-8") == "1"


KILLED = """
import os, signal, sys
from pathlib import Path
from tlbatch.core.files import atomic_file, atomic_folder
with atomic_file(Path(sys.argv[1], "file.txt")), atomic_folder(Path(sys.argv[1], "set")) as draft:
    (draft / "one").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.chain
def test_what_a_kill_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    drafts = set(tmp_path.iterdir())
    assert len(drafts) == 2
    kept = {tmp_path / name for name in (".lock", "a.b", ".hidden", ".hidden.text", "plain.12345678")}
    for path in kept:
        path.touch()
    remove_drafts(tmp_path, older_s=DRAFT_LASTS_S)
    assert set(tmp_path.iterdir()) == kept | drafts
    old = drafts.pop()
    os.utime(old, (0, 0))
    remove_drafts(tmp_path, older_s=DRAFT_LASTS_S)
    assert set(tmp_path.iterdir()) == kept | drafts
    remove_drafts(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    remove_drafts(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_user_error_that_names_the_place(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="no space left"), atomic_file(tmp_path / "file"):
        raise OSError(number, "full")
    assert list(tmp_path.iterdir()) == []


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert digest_of({"a": 1, "b": [2, "ü"]}) == digest_of({"b": [2, "ü"], "a": 1}) != digest_of({"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))
