"""Samples of WebDataset tars: which members belong together, which of them is the image, and which holds the label."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tlbatch.config.data import Data
from tlbatch.core.text import counted
from tlbatch.data.shards.tar_reader import Damage, Member
from tlbatch.data.sources.files import ENDINGS, ending_of, looks_unread, why_unread

_LABELS = ("label.cls", "label.txt", "label", "class.cls", "class.txt", "class")
_OF_LABELS = frozenset({".cls", ".json", ".txt"})
_SHOWN = 3

Sample = tuple[str, dict[str, Member]]
"""Name, and members by extension in lower case."""


def group_samples(members: Sequence[Member], *, to_first_dot: bool = False) -> tuple[list[Sample], list[Damage]]:
    """Group members into samples: the name up to the first dot of its last part is the key, as in WebDataset.

    Names up to the last dot are samples where, in one such group, at least two of them have the same extensions, with
    an image and a label; and where a group has one such name only. The members of a sample need not be adjacent;
    samples come in the order of their first members. Hidden files, such as ``._a.jpg`` of macOS, are skipped silently.

    Parameters
    ----------
    to_first_dot
        Whether WebDataset's rule holds without exception.
    """
    groups: dict[str, list[Member]] = {}
    damage: list[Damage] = []
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if base.startswith("."):
            continue
        if not ending:
            damage.append(Damage(member.name, "has no extension, so it belongs to no sample"))
            continue
        groups.setdefault(f"{folder}{slash}{stem}", []).append(member)
    samples: list[Sample] = []
    for key, some in groups.items():
        for name, own in _divided(key, some, to_first_dot=to_first_dot).items():
            parts, doubles = _by_extension(name, own)
            samples.append((name, parts))
            damage += doubles
    return samples, damage


def _by_extension(name: str, members: Sequence[Member]) -> tuple[dict[str, Member], list[Damage]]:
    parts: dict[str, Member] = {}
    firsts = [(member, parts.setdefault(member.name[len(name) + 1 :].lower(), member)) for member in members]
    doubles = [(member, first) for member, first in firsts if member is not first]
    return parts, [Damage(one.name, f"has the key and the extension of {first.name!r}") for one, first in doubles]


def _divided(key: str, members: list[Member], *, to_first_dot: bool) -> dict[str, list[Member]]:
    """Return the samples among the members whose names begin alike up to their first dots."""
    of_stem: dict[str, list[Member]] = {}
    for member in members:
        of_stem.setdefault(member.name.rpartition(".")[0], []).append(member)
    if to_first_dot or (len(of_stem) > 1 and not _are_samples(of_stem)):
        return {key: members}
    return of_stem


def _are_samples(of_stem: Mapping[str, list[Member]]) -> bool:
    kinds = Counter(frozenset(ending_of(member.name) for member in own) for own in of_stem.values())
    return any(count > 1 and kind & ENDINGS and kind & _OF_LABELS for kind, count in kinds.items())


def image_part(sample: Sample, data: Data) -> tuple[str, list[tuple[str, str]]]:
    """Return the extension of a sample's image; or none, and every image that is lost, with its cause."""
    name, parts = sample
    images = [part for part in parts if f".{part.rpartition('.')[2]}" in ENDINGS]
    if data.image_part:
        chosen = [data.image_part.lower()] if data.image_part.lower() in parts else []
        cause = f"no image with the extension {data.image_part}, which data.image_part names"
    else:
        chosen = [part for part in images if "." not in part] or images
        cause = _several(name, chosen)
    if len(chosen) == 1:
        return chosen[0], []
    lost = [(parts[part].name, cause) for part in images]
    lost += [(member.name, why_unread(member.name)) for member in parts.values() if looks_unread(member.name)]
    return "", lost or [(name, "no image")]


def _several(name: str, images: Sequence[str]) -> str:
    shown = ", ".join(images[:_SHOWN]) + (", ..." if len(images) > _SHOWN else "")
    return (
        f"one of {counted(len(images), 'image')} of the sample {name} ({shown}); set data.image_part to the extension "
        "of the image to read"
    )


def other_images(parts: Mapping[str, Member], image: str) -> Iterator[str]:
    """Yield the extensions of a sample's images other than the one that is read."""
    for part, member in parts.items():
        if part != image and (ending_of(member.name) in ENDINGS or looks_unread(member.name)):
            yield part


def label_part(parts: Mapping[str, Member], image: str, data: Data) -> Member | None:
    """Return the file with the class: cls, or one named as its label or its image is."""
    stem = image.rpartition(".")[0]
    names = ["cls", *(("txt",) if data.tag_separator else ()), f"{stem}.cls", *_LABELS]
    return next((parts[part] for part in names if part in parts), None) or _only(parts, ".cls")


def json_part(parts: Mapping[str, Member], image: str, data: Data) -> Member | None:
    """Return the json file of a sample: the one named as its image is, or the only one if no other file has a label."""
    stem = image.rpartition(".")[0]
    found = parts.get("json") or parts.get(f"{stem}.json")
    return found or (None if label_part(parts, image, data) else _only(parts, ".json"))


def _only(parts: Mapping[str, Member], ending: str) -> Member | None:
    found = [member for part, member in parts.items() if part.endswith(ending)]
    return found[0] if len(found) == 1 else None
