"""Running a command: renamed options, exit codes, and errors as one line each."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tlbatch.core.errors import UserError
from tlbatch.core.files import place_named

EXIT_USER_ERROR = 2
EXIT_AGAIN = 75
"""Exit code of a stage whose time ran out (EX_TEMPFAIL of sysexits.h)."""
RENAMED = {"--inside": "--in-allocation", "--anyway": "--override", "--check": "--test-only"}
"""Renamed options by their old names, which still work, with a warning."""


def command_parser(name: str, description: str | None, *, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command, whose help shows its texts as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m tlbatch.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def with_new_options(arguments: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command, by default those of the process, with the current names of options."""
    found = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        name, equals, value = argument.partition("=")
        if name in RENAMED:
            sys.stderr.write(f"warning: {name} is now {RENAMED[name]}; the old name works for one version\n")
        found.append(f"{RENAMED.get(name, name)}{equals}{value}")
    return found


def run_command(work: Callable[[], int]) -> NoReturn:
    """Run a command that is not a stage and exit with its code; user errors are printed one per line."""
    try:
        with place_named():
            sys.exit(work())
    except UserError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
