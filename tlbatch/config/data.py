"""The section data of a job: images and labels, shards and splits."""

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SerializationInfo, field_serializer, field_validator, model_validator

from tlbatch.config.base import ADDED, Fraction, Section, SplitName
from tlbatch.core.redaction import holds_secret

StepName = Literal["fundus_crop", "local_average", "clahe"]
Spellings = Literal["stop", "join", "apart"]
Recipe = Literal["retinopathy-lr", "retinopathy-dl", "flowers17", "dogs-vs-cats"]


class Split(Section):
    """How the images are split into train, val and test."""

    method: Literal["stratified", "hash", "given", "as-published"] = "stratified"
    """How images are assigned to splits. stratified: by exact shares of every class, and groups added later by their
    hash; hash: by a hash of the group's name alone; given: as the source says; as-published: as in a published system,
    leaks included."""
    val: Fraction = 0.1
    """Fraction of the images for validation, which selects the checkpoint."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Fraction of the images for the test split, which is read only once, by predict."""
    salt: str = "tlbatch"
    """Salt of the hashes; another one gives another split."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Number of cross-validation folds, one of which is the test split in place of test; 0: no folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Number of the fold that is the test split, from 0."""
    column: str = ""
    """Column of the labels file that names the split (given); empty: the first folder, or the part of an IDX file."""
    names: dict[str, SplitName] = {}
    """Additional names of splits in the source (given), e.g. { valid = "test" }; train, val, valid, validation and test
    are known."""
    files: dict[SplitName, Path] = {}
    """Text files that list the images of each split (given), one name per line, as in a table of labels; lines that
    begin with # are comments."""
    recipe: Recipe | None = None
    """Published system whose split to reproduce (as-published)."""

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError(
                f"folds must be at least 2 and above fold (got folds = {self.folds}, fold = {self.fold}); change one"
            )
        test = 1 / self.folds if self.folds else self.test
        if self.val + test >= 1:
            way_out = "lower val, or raise folds" if self.folds else "lower one"
            raise ValueError(f"val + test must be less than 1 (got {self.val} + {test:g}); {way_out}")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if (self.recipe is None) == (self.method == "as-published"):
            raise ValueError("recipe and method as-published need each other; set both, or neither")
        if self.method != "given" and (self.column or self.names or self.files):
            raise ValueError("column, names and files are read with method given only; set method, or leave them out")
        if self.fold and not self.folds:
            raise ValueError(f"fold needs folds, which is 0 (got fold {self.fold}); set folds, or leave fold out")
        if self.folds and self.method not in ("stratified", "hash"):
            raise ValueError("folds need method stratified or hash; set method, or leave folds out")
        return self


class Synthetic(Section):
    """Synthetic images, drawn for ``data.source = "synthetic"``."""

    kind: Literal["fundus", "garments"] = "fundus"
    """What to draw. fundus: photographs of the retina with a grade as level; garments: clothes with the columns phrase,
    type, colour, pattern, sleeve and length, one of which data.label_column names."""
    images_per_grade: Annotated[int, Field(ge=2)] = 200
    """Number of images of each of the five grades (fundus)."""
    num_images: Annotated[int, Field(ge=2)] = 2000
    """Total number of images (garments)."""
    side: Annotated[int, Field(ge=64, le=4096)] = 384
    """Height and width of the images in pixels."""
    grader_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Probability that a label differs from the true grade by one (fundus)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the images."""


class Data(Section):
    """Where images and labels come from, and how they are sharded."""

    source: Literal["folders", "csv", "idx", "tars", "acs", "synthetic"] = "folders"
    """Format of the images and labels. folders: one folder per class; csv: a table of labels and a folder of images;
    idx: IDX files like MNIST's; acs: images/<class>/<name>.jpg with train.txt and test.txt, like Apparel Classification
    with Style; tars: WebDataset tars, indexed in place; synthetic: generated, to try things out."""
    images: Path | None = None
    """Folder of the images, IDX files or tars."""
    urls: tuple[str, ...] = ()
    """URLs of tars (http, https, s3, pipe; {000..009} expands to a range), downloaded once into the workspace; no
    secrets."""
    labels: Path | None = None
    """CSV file of the labels (source csv), or of the words that precede the type (source acs)."""
    key_column: str = "image"
    """Column of the image name, with or without its extension."""
    label_column: str = "level"
    """Column of the label; for tars the field in their json files."""
    group_column: str = ""
    """Column, or json field, of the group, e.g. the patient; a group is never divided between splits."""
    image_part: Annotated[str, ADDED] = ""
    """Extension of the image in tars whose samples hold several images, such as jpg or image.png: what follows the key
    and its dot. Empty: the only image, or the only one whose extension has no dot."""
    tag_separator: str = ""
    """Separator of several tags in a label; empty: a label is a single class."""
    attributes: dict[str, tuple[str, ...]] = {}
    """Tags by attribute, e.g. { colour = ["red", "blue"], type = ["dress", "shirt"] }. An image has at most one tag of
    each attribute; every other tag is a yes-or-no attribute of its own."""
    classes: tuple[str, ...] = ()
    """Class names in order; empty: those found in the labels, numbers in numeric order."""
    ignore: Annotated[tuple[str, ...], ADDED] = ()
    """Labels, and patterns of image names (* and ?), to leave out on purpose, e.g. ["ungradable", "*_mask"]. They are
    counted in the log, and not limited by max_rejected."""
    spellings: Annotated[Spellings, ADDED] = "stop"
    """What to do about labels, or groups, that differ only in case, white space or invisible characters. stop: fail;
    join: take them for one; apart: keep them. Except with apart, numbers in different forms (2, 2.0) are one."""
    ordered: Annotated[bool, ADDED] = False
    """Whether the classes are ordered, so that reports show kappa and errors in grades; implied by metric
    quadratic_kappa, the objectives for ordered classes, and decision expected-grade."""
    dicom_group: Annotated[str, ADDED] = ""
    """Attribute of DICOM files that is the group, e.g. PatientID."""
    group_pattern: str = ""
    """Regular expression on the image name whose first capture group is the group, e.g. the patient; empty: each image
    is its own group."""
    per_class: Annotated[int, Field(ge=0)] = 0
    """Number of images to sample of each class; 0: all."""
    per_class_of: Literal["all", "train"] = "all"
    """Splits that per_class applies to. train: subsample only the training split; needs given splits."""
    per_class_seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of per_class."""
    resize: Annotated[int, Field(ge=0, le=16384)] = 256
    """Length of the short side in the shards in pixels, to which larger images are scaled down; 0: keep the files
    unchanged. Tars are never changed."""
    preprocess: Annotated[tuple[StepName, ...], Field(alias="steps")] = ()
    """Pre-processing steps in order: fundus_crop (crop to a square around the retina), local_average (subtract the
    local average colour), clahe (contrast-limited adaptive histogram equalisation)."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """Largest number of pixels of an image; larger ones are rejected without decoding. Pillow allows no more than the
    default."""
    value_range: Annotated[tuple[float, float] | None, ADDED] = None
    """Values that become black and white in images of more than 8 bits whose files do not state their range, e.g.
    [0, 4095] or [-1000, 400]; empty: the 0.1 % and 99.9 % quantiles of the training images of the first run."""
    shard_images: Annotated[int, Field(ge=1)] = 1000
    """Number of images per shard."""
    max_rejected: Annotated[int, Field(ge=0)] = 0
    """Largest number of unusable images, which are left out and listed in rejected.csv; with more the job stops."""
    audit: Literal["stop", "warn", "resolve"] = "stop"
    """What to do about duplicates and near duplicates in different splits. stop: fail; warn: continue with a warning;
    resolve: keep them in one split, and drop equal ones with contradicting labels, of given splits those that train.
    Always, images that share a duplicate are one group for intervals and inner folds."""
    phash_max_distance: Annotated[int, Field(ge=0, le=24, alias="near_bits")] = 16
    """Largest Hamming distance of the 256-bit perceptual hashes of near duplicates; 0: find identical files only."""
    split: Split = Split()
    synthetic: Annotated[Synthetic, Field(alias="phantom")] = Synthetic()

    @field_validator("source", mode="before")
    @classmethod
    def _read_old_source(cls, source: object) -> object:
        return "synthetic" if source == "phantom" else source

    @field_serializer("source")
    def _write_source(self, source: str, info: SerializationInfo) -> str:
        return "phantom" if source == "synthetic" and info.by_alias else source

    def attributes_in(self, tags: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the attributes restricted to the given tags, without those that are left empty."""
        found = {name: tuple(tag for tag in own if tag in tags) for name, own in self.attributes.items()}
        return {name: own for name, own in found.items() if own}

    @field_validator("group_pattern")
    @classmethod
    def _check_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"must be a valid regular expression ({error}); fix it") from None
        if value and groups < 1:
            raise ValueError("must contain a group in parentheses; write e.g. '^(.*)_(left|right)$'")
        return value

    @field_validator("value_range")
    @classmethod
    def _check_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (isfinite(value[0]) and isfinite(value[1]) and value[0] < value[1]):
            raise ValueError("must be two finite numbers, the lower one first; write e.g. [0, 4095]")
        return value

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, url in enumerate(value):
            if holds_secret(url):
                raise ValueError(
                    f"number {number} contains what looks like a password or key, and the job is stored; put it into "
                    "~/.netrc, fsspec's own configuration, or a variable that a pipe reads"
                )
            if "\0" in url:
                raise ValueError(f"number {number} must not contain the character NUL; leave it out")
        return value

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must not name a class twice; leave one out")
        return value

    @field_validator("attributes")
    @classmethod
    def _check_attribute_tags(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        of_tag: dict[str, str] = {}
        for name, tags in value.items():
            for tag in tags:
                if of_tag.setdefault(tag, name) != name or tags.count(tag) > 1:
                    raise ValueError(f"names {tag!r} twice, in {of_tag[tag]} and {name}; leave one of them out")
        return value

    @model_validator(mode="after")
    def _check_tags(self) -> Self:
        if self.tag_separator and self.per_class:
            raise ValueError(
                "per_class needs single-label classes, and data.tag_separator is set; leave one of them out"
            )
        wrong = [tag for tags in self.attributes.values() for tag in tags if self.tag_separator in tag]
        if self.tag_separator and wrong:
            raise ValueError(f"attributes: {wrong[0]!r} contains data.tag_separator, so it is no tag; name its parts")
        return self

    @model_validator(mode="after")
    def _check_attributes(self) -> Self:
        if self.attributes and not self.tag_separator:
            raise ValueError("attributes need labels with several tags; set data.tag_separator")
        return self

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.group_column and self.source not in ("csv", "tars"):
            raise ValueError("group_column is read with source csv or tars; use group_pattern")
        if self.dicom_group and self.source not in ("csv", "folders"):
            raise ValueError("dicom_group is read with source folders or csv; use group_pattern")
        return self

    @model_validator(mode="after")
    def _check_tars(self) -> Self:
        if self.image_part and self.source != "tars":
            raise ValueError("image_part is read with source tars only; leave it out, or set data.source=tars")
        if self.source == "tars" and self.preprocess:
            raise ValueError("preprocess: tars are indexed in place and never changed; leave it empty")
        return self

    @model_validator(mode="after")
    def _check_location(self) -> Self:
        if self.urls and (self.source != "tars" or self.images):
            raise ValueError(
                "urls are read with source tars only, instead of images; set data.source=tars, or leave one out"
            )
        if self.source == "synthetic" and self.images:
            raise ValueError(
                "images are not read with source synthetic, which generates its own; choose another job, e.g. "
                "jobs/auto.toml, or set data.source=folders"
            )
        if self.source not in ("csv", "acs") and self.labels:
            raise ValueError("labels are read with source csv or acs only; set data.source=csv, or leave labels out")
        if self.source == "acs" and self.labels and not self.tag_separator:
            raise ValueError("labels of source acs are words of a phrase; set data.tag_separator, or leave labels out")
        if self.source != "synthetic" and self.images is None and not self.urls:
            raise ValueError("images is required; set data.images=FOLDER")
        if self.source == "csv" and self.labels is None:
            raise ValueError("labels is required with source csv; set data.labels=FILE")
        if self.split.recipe and self.audit == "resolve":
            raise ValueError("audit: resolve would change the split of a published system; set it to warn")
        if self.per_class_of == "train" and (self.split.method != "given" or not self.per_class):
            raise ValueError("per_class_of = train needs split.method = given and per_class; leave it out")
        if self.resize == 0 and self.preprocess:
            raise ValueError("preprocess: resize = 0 keeps the files unchanged; set resize, or leave preprocess empty")
        return self
