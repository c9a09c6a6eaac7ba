"""What listing a source left out, and how it was understood."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import shown
from tlbatch.runs.manifest import Rejected

log = logging.getLogger(__name__)


@dataclass
class Listing:
    """Collects, while a source is listed, what the log, the report and rejected.csv say about it."""

    workspace: Path | None = None
    """Folder that is left out, should it lie among the images."""
    columns: tuple[str, str] = ("image", "label")
    """Columns of the labels file: image name and label."""
    rejected: list[Rejected] = field(default_factory=list)
    """Images that cannot be used; ``data.max_rejected`` limits them."""
    unread: list[str] = field(default_factory=list)
    """Paths, below the folder that was walked, of images in formats that are not read."""
    notes: list[str] = field(default_factory=list)
    """What was understood, joined, counted or assumed, one sentence each."""

    def reject(self, name: str, cause: str) -> None:
        """Leave out an image, or whatever has this name, that cannot be used."""
        self.rejected.append(Rejected(key=shown(name), cause=cause))

    def note(self, text: str, *, level: int = logging.INFO) -> None:
        """Say how the source was understood, in the log and later in the report."""
        self.notes.append(text)
        log.log(level, "%s", text)

    def warn(self, text: str) -> None:
        """Say what the user should look at, in the log and later in the report."""
        self.note(text, level=logging.WARNING)


def check_rejected(rejected: Sequence[Rejected], data: Data) -> None:
    """Raise when more images are left out than the job allows.

    Raises
    ------
    UserError
        With the first cause, and the limit that would accept all so far.
    """
    if len(rejected) > data.max_rejected:
        first = rejected[0]
        raise UserError(
            f"{first.key}: {first.cause}; fix or remove it, or let unusable images be listed and left out with "
            f"data.max_rejected={len(rejected)}"
        )
