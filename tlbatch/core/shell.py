"""What tlbatch adds to the batch script of a stage, and the texts that may stand in one."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

_FAILED = "error: slurm.setup.$setup_line failed; mend this line of the job, or let it fail with || true"
_FOREIGN = "error: the run folder is not yours alone to write: $foreign; submit the job as a new run"
_TRAP = f"""trap '((${{#BASH_SOURCE[@]}} > 1)) || {{ echo "{_FAILED}" >&2; exit 78; }}' ERR"""
"""Stops at any command of the lines that fails, but not at those inside of a file that they source."""


def is_shell_name(name: str) -> bool:
    """Whether a variable can have this name in a shell."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name))


def plain(text: str) -> str:
    """The text, as one that can stand in an #SBATCH line.

    Raises
    ------
    ValueError
        When it holds what would end the line, or a backslash, which sbatch drops.
    """
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"must not hold control characters or backslashes (got {text!r}); leave them out")
    return text


def setup_lines(lines: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Export the variables, then run the lines, each by itself, so that no line can swallow what comes after it."""
    yield "export SLURM_EXPORT_ENV=ALL"  # the tasks see it all even where sbatch's --export says else
    for name, value in environment.items():
        yield f"export {name}={shlex.quote(value)} || exit 78"
    if lines:
        yield _TRAP
        for number, line in enumerate(lines):
            yield f"setup_line={number}; eval {shlex.quote(line)}"
        yield "trap - ERR"


def ownership_line(folders: Sequence[str]) -> str:
    """Stop the script where anybody else could have put code into the folders; submitit unpickles what lies there.

    Parameters
    ----------
    folders
        As words of the shell.
    """
    find = f"find {' '.join(folders)} -prune '(' -perm /022 -o '!' -user"
    return f"""foreign=$({find} "$(id -u)" ')') && [ -z "$foreign" ] || {{ echo "{_FOREIGN}" >&2; exit 78; }}"""
