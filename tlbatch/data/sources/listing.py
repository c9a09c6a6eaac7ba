"""What listing a source left out, and how it was understood."""

import logging
from dataclasses import dataclass, field

from tlbatch.runs.manifest import Rejected

log = logging.getLogger(__name__)


@dataclass
class Listing:
    """Collects, while a source is listed, what the log, the report and rejected.csv say about it."""

    workspace: str = ""
    """Folder that is left out, should it lie among the images."""
    rejected: list[Rejected] = field(default_factory=list)
    """Images that cannot be used; ``data.max_rejected`` limits them."""
    unread: list[str] = field(default_factory=list)
    """Paths, below the folder that was walked, of images in formats that are not read."""
    notes: list[str] = field(default_factory=list)
    """What was understood, joined, counted or assumed, one sentence each."""

    def reject(self, key: str, cause: str) -> None:
        """Leave out an image that cannot be used."""
        self.rejected.append(Rejected(key=key, cause=cause))

    def note(self, text: str, *, level: int = logging.INFO) -> None:
        """Say how the source was understood, in the log and later in the report."""
        self.notes.append(text)
        log.log(level, "%s", text)

    def warn(self, text: str) -> None:
        """Say what the user should look at, in the log and later in the report."""
        self.note(text, level=logging.WARNING)
