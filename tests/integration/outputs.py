"""All outputs of a run in its workspace, without timings, so that two runs can be compared."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

_TIMED = {"seconds", "val_seconds", "images_per_s", "gpu_hours", "cost", "time"}
_CUT = {"predictions", "files"}
"""Digests of files that may be split differently or hold timings; the contents of these files are compared."""
_PAGE = ".html"
"""Shows timings, and is made from outputs that are compared."""
_BLOCK = (".npy", ".npz")
_OF_ATTEMPTS = {"ledger.jsonl", "progress.json"}
"""Files about the attempts of a run."""


def outputs(space: Path) -> dict[str, Any]:
    """Return by path the rows of cache and predictions, and the bytes of other files without timings.

    A path that only one of two workspaces has is a difference.
    """
    found: dict[str, Any] = {}
    for path in sorted(space.rglob("*")):
        name = str(path.relative_to(space))
        if path.is_dir():
            found[f"{name}/"] = _rows(path) if _is_cut(path) else None
        elif path.name not in _OF_ATTEMPTS and not (_is_cut(path.parent) and path.suffix in _BLOCK):
            found[name] = _content(path)
    return found


def _is_cut(folder: Path) -> bool:
    """Return whether the rows of a folder may be split into files differently."""
    return folder.parent.name == "cache" or folder.name == "predictions"


def is_unfinished(path: Path) -> bool:
    """Return whether a path is a draft of `tlbatch.core.files` or of a snapshot."""
    return (path.name.startswith(".") and path.name.count(".") > 1) or path.suffix == ".tmp"


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the paths that differ."""
    return sorted(name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name])


def _content(path: Path) -> Any:
    if path.suffix in (_PAGE, ".lock"):
        return None
    if path.suffix == ".json":
        whole = json.loads(path.read_bytes())
        kept = _untimed(whole)
        return path.read_bytes() if kept == whole else kept
    if path.suffix == ".jsonl":
        return [_untimed(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.name == "leaderboard.csv":
        return [_untimed(row) for row in csv.DictReader(io.StringIO(path.read_text("utf-8")))]
    return path.read_bytes()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(one) for key, one in value.items() if key not in _TIMED | _CUT}
    return [_untimed(one) for one in value] if isinstance(value, list) else value


def _rows(folder: Path) -> Any:
    """Return each row once, by its key."""
    return _predicted(folder) if folder.name == "predictions" else _cached(folder)


def _predicted(folder: Path) -> dict[int, Any]:
    rows: dict[int, Any] = {}
    for file in folder.glob("part-*.npz"):
        part = np.load(file)
        given = str(part["header"]), dict(zip(part["error_rows"].tolist(), part["errors"].tolist(), strict=True))
        for row, found, grade in zip(part["rows"].tolist(), part["probabilities"], part["grades"], strict=True):
            assert row not in rows, f"{folder}: row {row} is predicted twice"
            rows[row] = found.tobytes(), grade.tobytes(), given[0], given[1].get(row)
    return rows


def _cached(folder: Path) -> dict[bytes, bytes]:
    """Return the cached rows by key; each block must have its numbers."""
    numbers = {file.stem for file in folder.glob("*.npy")}
    rows: dict[bytes, bytes] = {}
    for block in sorted(folder.glob("*.npz")):
        numbers.remove(block.stem)
        keys = np.load(block)["keys"].tolist()
        for key, row in zip(keys, np.load(block.with_suffix(".npy")), strict=True):
            assert rows.setdefault(key, row.tobytes()) == row.tobytes(), f"{block}: two rows of {key}"
    assert not numbers, f"{folder}: numbers without keys: {numbers}"
    return rows
