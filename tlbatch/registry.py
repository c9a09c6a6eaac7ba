"""Inspect the registry of a task: its champions, and the decisions of the nights.

list prints the champions; show prints one (default: the current one) and the last nights; verify compares the files of
a champion with their digests; rollback reinstates the previous champion.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from tlbatch.core.cli import run_command
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.promotion.records import Champion, Night
from tlbatch.promotion.registry import Registry, open_registry
from tlbatch.promotion.retention import wrong_files
from tlbatch.runs.report import Estimate

_LAST_NIGHTS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.registry FOLDER list|show|verify|rollback``."""
    parser = argparse.ArgumentParser(
        prog="python -m tlbatch.registry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="WORKSPACE/registry/TASK")
    commands: dict[str, Callable[[Registry, argparse.Namespace], int]] = {
        "list": _list, "show": _show, "verify": _verify, "rollback": _rollback,
    }  # fmt: skip
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "number", type=int, nargs="?", metavar="NUMBER", help="show and verify: a champion (default: the current one)"
    )
    parser.add_argument("--reason", default="by hand", help="rollback: reason for the history (default: by hand)")
    given = parser.parse_args(arguments)
    if given.number is not None and given.command in ("list", "rollback"):
        parser.error(f"{given.command} takes no number")
    run_command(lambda: commands[given.command](open_registry(given.folder), given))


def _champion(registry: Registry) -> Champion:
    champion = registry.champion()
    if champion is None:
        raise UserError(f"{registry.folder}: no champion yet; python -m tlbatch.registry FOLDER show says why")
    return champion


def _list(registry: Registry, _: argparse.Namespace) -> int:
    now = registry.champion()
    for one in registry.champions():
        is_here = registry.model_folder(one).is_dir()
        mark = "*" if now is not None and one.number == now.number else " "
        gone = "" if is_here else "  removed"
        print(f"{mark} {one.number:4d}  {one.time}  {one.metric} {_told(one.score)}  {one.run}  {one.rule}{gone}")
    return 0


def _show(registry: Registry, given: argparse.Namespace) -> int:
    if registry.champion_file.exists() or given.number is not None:
        champion = _champion(registry) if given.number is None else registry.recorded(given.number)
        print(f"champion        {champion.number}, since {champion.time} ({champion.rule})")
        print(f"run             {registry.run_of(champion).folder}")
        print(f"model           {registry.model_folder(champion)}")
        print(f"{champion.metric:<16}{_told(champion.score)} on the test images of its night")
        print(f"trained on      {champion.num_train} images")
        print(f"previous        {'none' if champion.previous is None else champion.previous}")
    for night in registry.history()[-_LAST_NIGHTS:]:
        why = " ".join("; ".join(night.reasons).split())  # a reason given by hand may have lines
        print(f"{night.time}  {night.event:<12}{night.run or ''}  {why}")
    return 0


def _verify(registry: Registry, given: argparse.Namespace) -> int:
    champion = _champion(registry) if given.number is None else registry.recorded(given.number)
    wrong = wrong_files(registry, champion)
    for line in wrong:
        sys.stderr.write(f"error: {line}\n")
    if wrong:
        sys.stderr.write(
            f"champion {champion.number} is damaged; restore its files, or replace it with rollback or promote\n"
        )
        return 1
    print(f"champion {champion.number} ({champion.run}): {counted(len(champion.files), 'file')} unchanged")
    return 0


def _rollback(registry: Registry, given: argparse.Namespace) -> int:
    with FileLock(registry.folder / ".lock"):
        champion = _champion(registry)
        if champion.previous is None:
            raise UserError(
                f"champion {champion.number}: is the first, so there is no previous one; promote another run"
            )
        before = registry.recorded(champion.previous)
        wrong = wrong_files(registry, before)
        if wrong:
            raise UserError(f"champion {before.number}: cannot be reinstated ({wrong[0]}); promote another run")
        registry.swap(before)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        registry.note(Night(time=now, event="rolled back", run=None, champion=before.number, reasons=(given.reason,)))
    print(f"champion {before.number} ({before.run}) is reinstated")
    return 0


def _told(score: Estimate) -> str:
    if score.value is None:
        return "undefined"
    return f"{score.value:.4f}" + ("" if score.low is None else f" ({score.low:.4f} to {score.high:.4f})")


if __name__ == "__main__":
    main()
