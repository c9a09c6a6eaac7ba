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

from tlbatch.cluster.results import estimated
from tlbatch.core.cli import command_parser, run_command
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.promotion.records import Champion, Night
from tlbatch.promotion.registry import Registry, open_registry
from tlbatch.promotion.retention import wrong_files

_LAST_NIGHTS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.registry FOLDER list|show|verify|rollback``."""
    parser = command_parser("registry", __doc__)
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
        mark = "*" if now is not None and one.number == now.number else " "
        removed = "" if registry.model_folder(one).is_dir() else "  removed"
        score = f"{one.metric} {estimated(dict(one.score))}"
        print(f"{mark} {one.number:4d}  {one.time}  {score}  {one.run}  {one.rule}{removed}")
    return 0


def _show(registry: Registry, given: argparse.Namespace) -> int:
    if registry.champion_file.exists() or given.number is not None:
        champion = _champion(registry) if given.number is None else registry.recorded(given.number)
        print(f"champion        {champion.number}, since {champion.time} ({champion.rule})")
        print(f"run             {registry.run_of(champion).folder}")
        print(f"model           {registry.model_folder(champion)}")
        print(f"{champion.metric:<16}{estimated(dict(champion.score))} on the test images of its night")
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


if __name__ == "__main__":
    main()
