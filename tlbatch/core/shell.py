"""Shell code that tlbatch adds to the batch script of a stage, and checks of texts in it."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

_FAILED = "error: slurm.setup.$setup_line failed; fix this line of the job, or ignore the failure with || true"
_FOREIGN = "error: others can write to the run folder: $foreign; submit the job as a new run"
_TRAP = f"""trap '((${{#BASH_SOURCE[@]}} > 1)) || {{ echo "{_FAILED}" >&2; exit 78; }}' ERR"""
"""Stops at any command of the setup lines that fails, but not at those in a file that they source."""


def is_shell_name(name: str) -> bool:
    """Return whether a shell variable can have this name."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))


def plain(text: str) -> str:
    """Return a text that can be part of a line of #SBATCH.

    Raises ValueError for control characters, which could end the line, and backslashes, which sbatch drops.
    """
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"must not contain control characters or backslashes (got {text!r}); leave them out")
    return text


def setup_lines(lines: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield lines that export the variables and run each setup line separately, so that none can swallow the next."""
    yield "export SLURM_EXPORT_ENV=ALL"  # the tasks get all variables whatever sbatch's --export says
    for name, value in environment.items():
        yield f"export {name}={shlex.quote(value)} || exit 78"
    if lines:
        yield _TRAP
        for number, line in enumerate(lines):
            yield f"setup_line={number}; eval {shlex.quote(line)}"
        yield "trap - ERR"


def ownership_line(folders: Sequence[str]) -> str:
    """Return a line that stops the script if others can write to the (quoted) folders, whose pickles submitit loads."""
    find = f"find {' '.join(folders)} -prune '(' -perm /022 -o '!' -user"
    return f"""foreign=$({find} "$(id -u)" ')') && [ -z "$foreign" ] || {{ echo "{_FOREIGN}" >&2; exit 78; }}"""
