"""Digests name what runs share, so they stay as they were in the versions before, whatever a key is called now."""

from pathlib import Path
from typing import Annotated

import pytest

from tlbatch.config.base import ADDED, Section
from tlbatch.config.load import load_jobs
from tlbatch.runs.records import RunRecord, job_digest
from tlbatch.runs.workspace import data_digest, groups_file, set_folder, synthetic_folder

IMAGES = ["data.images=/i", "data.labels=/l.csv"]
OLD = ["train.test_views=true", "data.near_bits=8", "cache.stored_as=fp16", "slurm.hang_s=7", "nightly.begin=champion"]
NEW = [
    "train.tta=true", "data.phash_max_distance=8", "cache.dtype=fp16", "slurm.watchdog_timeout_s=7",
    "nightly.init_from=champion",
]  # fmt: skip
NIGHTLY = [
    "i-0a3963c6447b", "i-38cfb3bc63cd.groups.csv", "c3dc7a767ec33ac6ccc1114a74b0c5ba93b794924dcbe473523d176ac0915fb6",
    "ebfc6b8debd4", "6e1e9095ec92946e68d12a79a772cc82b8e158d370bdbb38ef50fc330d2a8ca5",
]  # fmt: skip


@pytest.mark.parametrize(
    ("job", "options", "expected"),
    [
        (
            "retinopathy",  # of data.preprocess
            IMAGES,
            [
                "i-fc5dfd3df61c", "i-38cfb3bc63cd.groups.csv",
                "cb6f0d6925dae299f3e0989d54d2693c53fa15ceff168576bf978c00fc07bcc9", "ebfc6b8debd4",
                "2baa55e4921e0a2c3037cb7c4768a4224efa4113fc9094a28e494f7775aece46",
            ],
        ),
        ("nightly", [*IMAGES, *OLD], NIGHTLY),
        ("nightly", [*IMAGES, *NEW], NIGHTLY),
        (
            "quickstart",
            ["data.synthetic.seed=3"],
            [
                "phantom-6910837edc6b", "phantom-0c50cc8a056a.groups.csv",
                "9a9674470ab5f11d62745c3938ed81bb450a58199e9de9572d9633a8deb1343c", "b8dde761f0ca",
                "aaa0dc36919f91bd2ad31ec0d8f80b410495f465c1c07ceaa4defabdc9f899e9",
            ],
        ),
        (
            "../tests/tiny",
            ["data.images=/i", "phase=[{cut='pool',rates=[0.1,0.2]}]"],
            [
                "i-8580d5e77d8f", "i-5f22be318923.groups.csv",
                "e22eae1d70e6a42059c287b3a65279dbb6b9d5d8f9bfa10780b958b02253a17b", "ebfc6b8debd4",
                "9ef8e7d9b98ddb3a98ac1157b748e3865792f1550a2b866406c71d79263342a0",
            ],
        ),
    ],
)  # fmt: skip
def test_digests_are_those_of_the_version_before(job: str, options: list[str], expected: list[str], jobs: Path) -> None:
    resolved = load_jobs([jobs / f"{job}.toml"], ["workspace=/w", *options])[3 if job == "quickstart" else 0]
    record = RunRecord(run="r", job=resolved, weights_digest=None, tlbatch_version="0", commit=None, created="")
    assert [
        set_folder(resolved).name, groups_file(resolved).name, data_digest(resolved), synthetic_folder(resolved).name,
        job_digest(record),
    ] == expected  # fmt: skip


def test_a_record_under_the_old_names_opens(jobs: Path) -> None:
    resolved = load_jobs([jobs / "nightly.toml"], ["workspace=/w", *IMAGES, *NEW])[0]
    record = RunRecord(run="r", job=resolved, weights_digest=None, tlbatch_version="0", commit=None, created="")
    old = record.model_dump_json(by_alias=True)
    assert '"near_bits":8' in old
    assert RunRecord.model_validate_json(old) == record


class Inner(Section):
    old: int = 1
    new: Annotated[int, ADDED] = 2


class Outer(Section):
    inner: Inner = Inner()
    added: Annotated[Inner | None, ADDED] = None


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (Outer(), {"inner": {"old": 1}}),
        (Outer(inner=Inner(new=2)), {"inner": {"old": 1}}),
        (Outer(inner=Inner(new=3)), {"inner": {"old": 1, "new": 3}}),
        (Outer(added=Inner()), {"inner": {"old": 1}, "added": {"old": 1}}),
    ],
)
def test_an_added_key_enters_a_digest_only_where_it_differs_from_its_default(
    section: Outer, expected: dict[str, object]
) -> None:
    assert section.for_digest() == expected
    assert section.model_dump(mode="json").keys() == {"inner", "added"}


def test_the_methods_that_place_groups_otherwise_share_no_positions(jobs: Path) -> None:
    files = [
        groups_file(load_jobs([jobs / "nightly.toml"], ["workspace=/w", *IMAGES, f"data.split.method={method}"])[0])
        for method in ("stratified", "hash")
    ]
    assert files[0] != files[1]
