"""How a command ends: its exit code, and errors as one line each."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tlbatch.core.errors import UserError
from tlbatch.core.files import place_named

EXIT_USER_ERROR = 2
EXIT_AGAIN = 75
"""Of a stage whose time ran out (EX_TEMPFAIL of sysexits.h)."""


RENAMED = {"--inside": "--in-allocation", "--anyway": "--override", "--check": "--test-only"}
"""Options by the names they had in the version before, which are read with a warning."""


def with_new_options(arguments: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command, those of the process if there are none, under their names now."""
    found = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        name, equals, value = argument.partition("=")
        if name in RENAMED:
            sys.stderr.write(f"warning: {name} is now {RENAMED[name]}; the old name is read for one version\n")
        found.append(f"{RENAMED.get(name, name)}{equals}{value}")
    return found


def run_command(work: Callable[[], int]) -> NoReturn:
    """Run a command that is no stage, and leave with the exit code that it gives; a user error is told line by line."""
    try:
        with place_named():
            sys.exit(work())
    except UserError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads what is printed has seen enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
