"""slurm/finetune.sh and slurm/env.sh, with programs that write down what they are given in place of Python and uv."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.chain

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/bash
[ "$1" = -c ] && exit
printf '%s\\0' "$PWD" "$@" > "$LOG/$(basename "$0").$$"
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  cp "$0" "$3/bin/uv"
fi
"""
NAMES = ["a b", "it's", 'a"b', "$(touch pwned)", "a[b]#c@d", "a\nb", "-n", "%j\\"]


def calls(log: Path, name: str) -> list[list[str]]:
    """What the program of this name was given, each time its folder first."""
    return [file.read_text("utf-8").split("\0")[:-1] for file in sorted(log.glob(f"{name}.*"))]


@pytest.fixture(params=NAMES)
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkout in a folder of a name that is hard on shells, and Python in another."""
    root = tmp_path / request.param / "tlbatch"
    (root / "jobs").mkdir(parents=True)
    shutil.copytree(ROOT / "slurm", root / "slurm")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root.parent / "my python").write_text(FAKE, encoding="utf-8")
    (root.parent / "my python").chmod(0o755)
    (tmp_path / "log").mkdir()
    return root


def run(script: Path, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("SLURM_", "TLBATCH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["bash", "--", script, *arguments], cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )


def test_a_checkout_may_have_any_name_and_stand_below_cdpath(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()  # what CDPATH would find in place of the checkout's
    there = {
        "CDPATH": str(tmp_path), "LOG": str(tmp_path / "log"), "TLBATCH_PYTHON": str(checkout.parent / "my python"),
    }  # fmt: skip
    given = ["data.images=/x/a.toml b", "data.labels='$(c).toml'"]
    done = run(Path("slurm/finetune.sh"), *given, cwd=checkout, **there)
    assert done.returncode == 0, done.stderr
    venv, submit = calls(tmp_path / "log", "my python"), calls(tmp_path / "log", "python")
    assert venv == [[str(checkout), "-m", "venv", str(checkout / ".venv")]]
    assert [call[1:] for call in submit if "tlbatch.submit" in call] == [
        ["-m", "tlbatch.submit", "--local", str(checkout / "jobs" / "quickstart.toml"), *given]
    ]
    (install,) = calls(tmp_path / "log", "uv")
    assert install[0] == str(checkout)
    assert install[-4:] == ["--constraint", "constraints.txt", "--editable", ".[quickstart,export]"]
    assert install[install.index("--python") + 1] == str(checkout / ".venv" / "bin" / "python")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("given", "has_job"),
    [
        (["eyes.toml"], True),
        (["run=x", "./a=b/eyes.toml", "seed=1"], True),
        (["/a b=c/eyes.toml"], True),
        (["data.labels=eyes.toml"], False),
        (["data.images=eyes.toml x"], False),
        ([], False),
    ],
)
def test_the_embedded_job_runs_where_none_is_named(tmp_path: Path, *, given: list[str], has_job: bool) -> None:
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE, encoding="utf-8")
    python.chmod(0o755)
    shutil.copy(python, python.with_name("uv"))
    done = run(
        ROOT / "slurm" / "finetune.sh", *given, cwd=tmp_path, LOG=str(tmp_path), TLBATCH_ENV="env",
        TLBATCH_PYTHON=str(python),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (submit,) = [call for call in calls(tmp_path, "python") if "tlbatch.submit" in call]
    embedded = [] if has_job else [str(ROOT / "jobs" / "quickstart.toml")]
    assert submit == [str(tmp_path), "-m", "tlbatch.submit", "--local", *embedded, *given]


@pytest.mark.parametrize("script", ["finetune.sh", "nightly.sh"])
@pytest.mark.parametrize(
    ("container", "there", "installed", "told"),
    [
        ("apptainer:/a b/i.sif", "", "host", ["slurm.container=apptainer:/a b/i.sif"]),
        ("apptainer:/i.sif", "quickstart,export", ".[quickstart,export]", ["slurm.container=apptainer:/i.sif"]),
        ("none", "", ".[quickstart,export]", ["slurm.container=none"]),
        ("", "", ".[quickstart,export]", []),
        ("", "host", "host", []),
        ("", "dev,quickstart,export", ".[quickstart,export]", []),
    ],
)
def test_a_container_needs_no_more_than_an_environment_to_submit_with(
    tmp_path: Path, script: str, container: str, there: str, installed: str, told: list[str]
) -> None:
    python = tmp_path / "e[n]v" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE, encoding="utf-8")
    python.chmod(0o755)
    shutil.copy(python, python.with_name("uv"))
    if there:
        (tmp_path / "e[n]v" / f".tlbatch-{there}").write_text("of before", encoding="utf-8")
    given = {"TLBATCH_CONTAINER": container} if container else {}
    done = run(
        ROOT / "slurm" / script, "./a.toml", cwd=tmp_path, LOG=str(tmp_path), TLBATCH_ENV="e[n]v",
        TLBATCH_PYTHON=str(python), **given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installs = [call[-1] for call in calls(tmp_path, "uv")]
    assert installs == (["host", "."] if installed == "host" else [installed])
    (submit,) = [
        call for call in calls(tmp_path, "python") if f"tlbatch.{'submit' if 'fine' in script else 'nightly'}" in call
    ]
    assert [word for word in submit if word.startswith("slurm.")] == told
