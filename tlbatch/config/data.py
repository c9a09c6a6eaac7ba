"""The part of the job that says which images there are, how they are sharded and split."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SerializationInfo, field_serializer, field_validator, model_validator

from tlbatch.config.base import Fraction, Section, SplitName
from tlbatch.core.redaction import holds_secret

StepName = Literal["fundus_crop", "local_average", "clahe"]
Recipe = Literal["retinopathy-lr", "retinopathy-dl", "flowers17", "dogs-vs-cats"]


class Split(Section):
    """Which images train, validate and test."""

    method: Literal["stratified", "hash", "given", "as-published"] = "stratified"
    """stratified: exact shares of every class at first, later groups by their hash; hash: a group's split depends on
    its name alone; given: as the source says; as-published: as a published system did, leaks included."""
    val: Fraction = 0.1
    """Share of the images for validation (choice of the checkpoint)."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the images for the test, read once, by predict."""
    salt: str = "tlbatch"
    """Another salt gives another split."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Number of folds that take turns as the test split, in place of test; 0: none."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which fold tests, from 0."""
    column: str = ""
    """Column of the labels file that names the split (given); empty: the first folder, or the part of an IDX file."""
    names: dict[str, SplitName] = {}
    """What the source calls a split (given), e.g. { valid = "test" }, beside train, val, valid, validation and test."""
    files: dict[SplitName, Path] = {}
    """Text files that list the images of a split (given), a name a line."""
    recipe: Recipe | None = None
    """The published system to follow (as-published)."""

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError(f"fold must be below folds, and folds at least 2 (got fold {self.fold} of {self.folds})")
        test = 1 / self.folds if self.folds else self.test
        if self.val + test >= 1:
            raise ValueError(f"val + test must be less than 1 (got {self.val} + {test:g})")
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if (self.recipe is None) == (self.method == "as-published"):
            raise ValueError("recipe and method as-published belong together")
        if self.method != "given" and (self.column or self.names or self.files):
            raise ValueError("column, names and files are read with method given only")
        if self.fold and not self.folds:
            raise ValueError(f"fold is one of folds, which are 0 (got fold {self.fold})")
        if self.folds and self.method not in ("stratified", "hash"):
            raise ValueError("folds are made with method stratified or hash only")
        return self


class Synthetic(Section):
    """The synthetic images of ``data.source = "synthetic"``."""

    kind: Literal["fundus", "garments"] = "fundus"
    """fundus: photographs of eyes, whose level is a grade; garments: clothes, with columns phrase, type, colour,
    pattern, sleeve and length, of which data.label_column names one."""
    images_per_grade: Annotated[int, Field(ge=2)] = 200
    """Images of each of the five grades (fundus)."""
    num_images: Annotated[int, Field(ge=2)] = 2000
    """Images in all (garments)."""
    side: Annotated[int, Field(ge=64, le=4096)] = 384
    """Height and width in pixels."""
    grader_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Probability that the label is one grade off the drawn one (fundus)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed draws other images."""


class Data(Section):
    """Where images and labels come from, and how they are sharded."""

    source: Literal["folders", "csv", "idx", "tars", "acs", "synthetic"] = "folders"
    """folders: one folder a class; csv: a table of labels beside a folder of images; idx: IDX files as MNIST's; acs:
    images/<class>/<name>.jpg with train.txt and test.txt, as Apparel Classification with Style has them;
    tars: WebDataset tars, indexed where they lie; synthetic: drawn here, for trying."""
    images: Path | None = None
    """Folder of the images, IDX files or tars."""
    urls: tuple[str, ...] = ()
    """Addresses of tars (http, https, s3, pipe; {000..009} counts), staged once into the workspace; no secrets."""
    labels: Path | None = None
    """CSV file of the labels (source csv), or of the words that stand before the type (source acs)."""
    key_column: str = "image"
    """Column of the image name, with or without its ending."""
    label_column: str = "level"
    """Column of the label; in the json of tars: its field."""
    group_column: str = ""
    """Column, or json field, of what must not be split (a patient)."""
    tag_separator: str = ""
    """What separates several tags in a label; empty: a label is one class."""
    attributes: dict[str, tuple[str, ...]] = {}
    """Tags by what they say, e.g. { colour = ["red", "blue"], type = ["dress", "shirt"] }: an image has one of each, or
    none; a tag that stands in none is there or not."""
    classes: tuple[str, ...] = ()
    """Class names in order; empty: those found, numbers in numeric order."""
    group_pattern: str = ""
    """Regular expression on the image name whose first group is what must not be split (a patient); empty: each
    image is its own group."""
    per_class: Annotated[int, Field(ge=0)] = 0
    """Images drawn of each class; 0: all."""
    per_class_of: Literal["all", "train"] = "all"
    """train: with given splits, so many of the training images, and all of the others."""
    per_class_seed: Annotated[int, Field(ge=0)] = 0
    """Another seed draws others."""
    resize: Annotated[int, Field(ge=0, le=16384)] = 256
    """Short side in the shards, in pixels; larger images are scaled down to it; 0 keeps the files untouched. Tars are
    never touched."""
    preprocess: Annotated[tuple[StepName, ...], Field(alias="steps")] = ()
    """Pre-processing, in order: fundus_crop (to the disc, a square), local_average (subtracted), clahe."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """Pixels of an image above which it is refused unread; Pillow allows no more."""
    shard_images: Annotated[int, Field(ge=1)] = 1000
    """Images in a shard."""
    max_rejected: Annotated[int, Field(ge=0)] = 0
    """Unusable images that are listed in rejected.csv and left out before the job stops."""
    audit: Literal["stop", "warn", "resolve"] = "stop"
    """Equal or nearly equal images in two splits: stop; warn; or resolve: move them into one split, and drop those
    whose labels contradict."""
    phash_max_distance: Annotated[int, Field(ge=0, le=24, alias="near_bits")] = 16
    """Bits of 256 of the perceptual hash in which nearly equal images may differ; 0: equal files only."""
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
        """The attributes with those of their tags that there are."""
        found = {name: tuple(tag for tag in own if tag in tags) for name, own in self.attributes.items()}
        return {name: own for name, own in found.items() if own}

    @field_validator("group_pattern")
    @classmethod
    def _check_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from None
        if value and groups < 1:
            raise ValueError("must hold a group in parentheses, e.g. '^(.*)_(left|right)$'")
        return value

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, url in enumerate(value):
            if holds_secret(url):
                raise ValueError(
                    f"number {number} holds what looks like a password or key, and the job is kept; put it into "
                    "~/.netrc, fsspec's own configuration, or a variable that a pipe reads"
                )
            if "\0" in url:
                raise ValueError(f"number {number} must not hold the character NUL; leave it out")
        return value

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must not name a class twice")
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
            raise ValueError("per_class is of images with one class each, and data.tag_separator of tags; leave it out")
        wrong = [tag for tags in self.attributes.values() for tag in tags if self.tag_separator in tag]
        if self.tag_separator and wrong:
            raise ValueError(f"attributes: {wrong[0]!r} holds data.tag_separator, so it is no tag; name its parts")
        return self

    @model_validator(mode="after")
    def _check_attributes(self) -> Self:
        if self.attributes and not self.tag_separator:
            raise ValueError("attributes are of labels with several tags: set data.tag_separator")
        return self

    @model_validator(mode="after")
    def _check_location(self) -> Self:
        if self.urls and (self.source != "tars" or self.images):
            raise ValueError("urls are read with source tars, in place of images")
        if self.source == "synthetic" and self.images:
            raise ValueError(
                "images are not read with source synthetic, which draws its own; name another job, e.g. "
                "jobs/auto.toml, or set data.source=folders"
            )
        if self.source not in ("csv", "acs") and self.labels:
            raise ValueError("labels are read with source csv or acs only; set data.source=csv, or leave labels out")
        if self.source == "acs" and self.labels and not self.tag_separator:
            raise ValueError("labels of source acs are words of a phrase: set data.tag_separator, or leave labels out")
        if self.source != "synthetic" and self.images is None and not self.urls:
            raise ValueError("images is required: the folder of the images, e.g. data.images=PATH")
        if self.source == "csv" and self.labels is None:
            raise ValueError("labels is required with source csv, e.g. data.labels=PATH")
        if self.group_column and self.source not in ("csv", "tars"):
            raise ValueError("group_column is read with source csv or tars; use group_pattern")
        if self.split.recipe and self.audit == "resolve":
            raise ValueError("audit: resolve would change the split of a published system; set it to warn")
        if self.source == "tars" and self.preprocess:
            raise ValueError("preprocess: tars are indexed where they lie and never changed; leave it empty")
        if self.per_class_of == "train" and (self.split.method != "given" or not self.per_class):
            raise ValueError("per_class_of = train goes with split.method = given and per_class; leave it out")
        if self.resize == 0 and self.preprocess:
            raise ValueError("preprocess: resize = 0 keeps the files untouched; set resize, or leave preprocess empty")
        return self
