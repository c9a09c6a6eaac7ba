"""One value in several spellings: numbers are joined, words are not, unless the job says so."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tlbatch.config.data import Spellings
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted, folded, shortest
from tlbatch.data.sources.listing import Listing


def joined(
    values: Mapping[str, int], what: str, how: Spellings, listing: Listing, *, known: Sequence[str] = ()
) -> dict[str, str]:
    """Return the spelling that stands for each value that has several, which are equal after `folded`.

    Parameters
    ----------
    values
        Number of images of each value.
    what
        What the values are, e.g. ``label``.
    how
        Whether words that differ in spelling only stop the job, are joined like numbers, or stay apart.
    known
        Spellings that the job prefers.

    Raises
    ------
    UserError
        When words differ in spelling only, and the job does not say what to do about it.
    """
    if how == "apart":
        return {}
    of_form: dict[str, list[str]] = defaultdict(list)
    for value in dict.fromkeys((*known, *values)):
        of_form[folded(value)].append(value)
    found: dict[str, str] = {}
    for form, spellings in of_form.items():
        if len(spellings) == 1:
            continue
        if how == "stop" and shortest(form) is None:
            _refuse(spellings, values, what)
        stands = next((one for one in spellings if one in known), min(spellings, key=lambda one: (len(one), one)))
        found |= {spelling: stands for spelling in spellings if spelling != stands}
    if found:
        listing.note(_told(found, values, what))
    return found


def _refuse(spellings: Sequence[str], values: Mapping[str, int], what: str) -> None:
    shown = " and ".join(f"{one!r} ({counted(values.get(one, 0), 'image')})" for one in sorted(spellings))
    raise UserError(
        f"{what}s {shown} differ in spelling only; set data.spellings=join if they are one {what}, or "
        "data.spellings=apart if they are not"
    )


def _told(found: Mapping[str, str], values: Mapping[str, int], what: str) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for spelling, stands in found.items():
        counts[spelling, stands] += values.get(spelling, 0)
    (spelling, stands), _ = min(counts.items(), key=lambda item: (-item[1], item[0]))
    images = counted(sum(counts.values()), "image")
    return f"{images} whose {what} is spelled in another way, e.g. {spelling!r} for {stands!r}: joined"
