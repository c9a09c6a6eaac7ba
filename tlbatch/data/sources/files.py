"""Files below a folder: those that cannot be read are listed or logged, never dropped silently."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from PIL import features

from tlbatch.config.base import SplitName
from tlbatch.core.text import counted, folded
from tlbatch.data.more_formats import HAS_DICOM, HAS_HEIC, INSTALL
from tlbatch.data.sources.listing import Listing

_HEIC = (".heic", ".heif", ".hif")
_DICOM = (".dcm", ".dicom")
ENDINGS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl",
    *((".avif", ".avifs") if features.check("avif") else ()),
    *(_HEIC if HAS_HEIC else ()), *(_DICOM if HAS_DICOM else ()),
})  # fmt: skip
"""Extensions of image files that are read."""
_UNREAD = frozenset({
    ".avif", ".avifs", *_HEIC, *_DICOM, ".nii", ".nii.gz", ".svs", ".ndpi", ".czi", ".nef",
    ".cr2", ".cr3", ".arw", ".dng", ".orf", ".rw2", ".raf", ".psd", ".svg", ".exr", ".hdr", ".tga", ".ico", ".pcx",
    ".jpg_large", ".apng", ".mpo", ".jng", ".wdp", ".jxr",
}) - ENDINGS  # fmt: skip
"""Extensions of image files that are not read."""
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0\0\0\0|\0\0\0\x0cjP  "
    rb"|\0\0\0\x0cJXL |\xff\x0a|.{4}ftyp(?:avi[fs]|hei[cxms]|hev[cx]|mif1|msf1)|.{128}DICM",
    re.DOTALL,
)
"""First bytes of images that are read."""
_OF_SYSTEMS = frozenset({
    "__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "#recycle", "@recycle",
    "thumbnails", "thumbs",
})  # fmt: skip
"""Folders that systems leave, in lower case; hidden ones are left out by their dot."""
_SPLITS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "t10k"),
}


def given_split(name: str, more: Mapping[str, SplitName]) -> SplitName | None:
    """Return the split that a name means, in any case; None if it is not known."""
    known: dict[str, SplitName] = {one: split for split, names in _SPLITS.items() for one in names}
    return (known | {folded(one): split for one, split in more.items()}).get(folded(name))


def walk(root: Path, is_wanted: Callable[[str, str], bool], listing: Listing) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below ``root``, relative to it, with the names of its wanted files.

    Links to folders are followed. Hidden files and folders, and those that systems leave, are skipped; what is left out
    is said. Images in formats that are not read are listed for the caller to decide.
    """

    def unreadable(error: OSError) -> None:
        listing.reject(str(error.filename), f"unreadable folder ({error.strerror})")

    others: Counter[str] = Counter()
    above: dict[str, tuple[tuple[int, int], ...]] = {}
    for place, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(place)  # noqa: PTH116
        here = status.st_dev, status.st_ino
        upper = above.get(os.path.dirname(place), ())  # noqa: PTH120
        if here in upper:
            listing.reject(place, "a symbolic link that leads back to a folder above it")
            folders.clear()
            continue
        above[place] = (*upper, here)
        folders[:] = sorted(name for name in folders if not _is_left_out(Path(place, name), listing))
        names = sorted(name for name in files if not name.startswith("."))
        inner = Path(place).relative_to(root)
        used = {name for name in names if is_wanted(place, name)}
        yield inner, [name for name in names if name in used]
        other = [name for name in names if name not in used]
        listing.unread += [(inner / name).as_posix() for name in other if looks_unread(name)]
        unnamed = [Path(place, name) for name in other if not ending_of(name)]  # like most links to folders
        links = [link for link in unnamed if link.is_symlink() and not link.exists()]
        for link in links:
            listing.reject(str(link), f"a symbolic link to nowhere ({link.readlink()})")
        others.update(ending_of(name) or name for name in other)
    if others:
        shown = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        listing.warn(f"{counted(others.total(), 'file')} below {root} with an extension that is not read: {shown}")


def _is_left_out(folder: Path, listing: Listing) -> bool:
    """Return whether a folder holds no images of the set, and say so unless it is hidden."""
    if folder.name.startswith("."):
        return True
    if folder.name.casefold() in _OF_SYSTEMS:
        listing.note(f"left out: {folder}, a folder that systems leave")
        return True
    if listing.workspace is not None and listing.workspace.exists() and folder.samefile(listing.workspace):
        listing.note(f"left out: {folder}, the workspace")
        return True
    return False


def is_image(folder: str, name: str) -> bool:
    """Return whether a file is an image that is read: by its extension, or without one by its first bytes."""
    if ending_of(name):
        return ending_of(name) in ENDINGS
    file = Path(folder, name)
    if not file.is_file():  # a pipe, say, or a link to nowhere, which is listed
        return False
    try:
        with file.open("rb") as opened:
            return bool(_BEGINNINGS.match(opened.read(132)))
    except OSError:  # which the log counts
        return False


def looks_unread(name: str) -> bool:
    """Return whether a name is that of an image in a format that is not read."""
    return ending_of(name) in _UNREAD


def why_unread(name: str) -> str:
    """Return why an image file is not used."""
    for endings, package in ((_HEIC, "pillow-heif"), (_DICOM, "pydicom")):
        if ending_of(name) in endings:
            return f"{ending_of(name)} needs the package {package}; {INSTALL}"
    return f"{ending_of(name)} is not read; convert it to PNG or JPEG"


def ending_of(name: str) -> str:
    """Return the extension of a file name in lower case, with its dot."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]  # noqa: PTH122 (a Path per image would cost too much)
