"""Labelled images, from wherever they lie; they stay encoded until one is asked for.

Image tables are mapped from disk by `datasets`, image folders are listed, so that many processes read from one copy.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table
from torch import Tensor

from tasks.decode import MAX_PIXELS, ImageError, read_image
from tasks.errors import InputError
from tasks.image_classification.sources import IMAGE, ImageSource, Source, encoded, open_source
from tasks.names import keep_names, listed
from tasks.progress import shown
from tasks.task import Split

CLASSES = "classes.json"
"""File of the class names in a run folder."""
DIGITS_VALID, DIGITS_TEST = 200, 300
"""Images in the validation and in the test part of the embedded digits."""
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images: where they lie and how they are read."""

    folder: str = "."
    """Where the relative paths of the sources start; a `dataset` that is no folder there is a name on the hub."""
    train: list[ImageSource] = field(default_factory=list)
    """Images to train on; none: the 1,797 handwritten digits that come with scikit-learn."""
    valid: list[ImageSource] = field(default_factory=list)
    """Images to validate on while training; none: a share of those to train on is held out."""
    test: list[ImageSource] = field(default_factory=list)
    """Images to score at the end."""
    held_out: float = 0.1
    """Share of the training images, of each class, that is kept for validation where `valid` names none, drawn by
    `seed`."""
    corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be read stops the program when its turn comes, or is left out, counted and named; `skip`
    decodes every image once at the start."""
    max_pixels: int = MAX_PIXELS
    """An image of more pixels cannot be read; decoding takes up to 8 bytes of memory a pixel."""
    keep: bool = False
    """Keep decoded images in memory, a byte for each pixel and channel, so that each is decoded once; every loader
    process keeps those it has read."""
    on_device: bool = False
    """Hold all training images on the device, a byte for each pixel and channel, and cut and mirror them there; for
    small images that are augmented in no other way. Every process decodes all of them in its first update."""
    channels: int = 3
    """3: red, green and blue; 1: grey."""
    batch: int = 128
    """Images in a micro-batch; memory grows with it."""
    seed: int = 1
    """Which images are held out."""

    def __post_init__(self) -> None:
        if not self.train and (self.valid or self.test):
            raise ValueError("valid or test name sources and train none: name the images to train on, --data.train.")
        if not self.train and self.folder != ".":
            raise ValueError(f"folder={self.folder} is given, and no images in it: name them, --data.train.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} is no share: choose --data.held_out above 0 and below 1.")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} admits no image: choose --data.max_pixels 1 or more.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels} is neither grey nor colour: choose --data.channels 1 or 3.")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} holds no image: choose --data.batch 1 or more.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: choose --data.seed 0 or more.")


class LabelledImages:
    """The images of a task and their classes, split by split; rows are counted from 0.

    Opening them reads labels and names, and no image, unless `corrupt` is "skip": batches are planned before they are
    read, so then each process decodes every image once to see which to leave out. Instances can be pickled and forked.

    Raises `InputError`, naming the source and what is there, for sources that cannot be opened, columns that are
    missing or hold something else, labels without a class, classes that training lacks, and another `classes.json`.
    """

    def __init__(self, config: Images, folder: Path) -> None:
        self.config = config
        self.classes, self._splits = _digits() if not config.train else _open_splits(config)
        keep_names(self.classes, folder / CLASSES, of="classes")
        self.report: Table | None = self._leave_out() if config.corrupt == "skip" else None
        """What was left out, by split and reason, with the first names; None where nothing was."""
        self._kept: dict[tuple[Split, int], Tensor] = {}

    @property
    def sizes(self) -> dict[Split, int]:
        """Images in each split; `test` is there only if it was named, or embedded."""
        return {split: len(rows.labels) for split, rows in self._splits.items()}

    def table(self) -> Table:
        """Return how many images each split has, and its smallest and largest class."""
        table = Table("Split", *("Images", "Classes", "Smallest class", "Largest class"), title="Images")
        table.caption = f"{len(self.classes)} classes: {listed(self.classes)}"
        for split, rows in self._splits.items():
            counts = np.bincount(rows.labels, minlength=len(self.classes))
            ends = (f"{self.classes[at]} ({counts[at]:,})" for at in (counts.argmin(), counts.argmax()))
            table.add_row(split, f"{len(rows.labels):,}", f"{np.count_nonzero(counts):,}", *ends)
        return table

    def image(self, split: Split, row: int) -> Tensor:
        """Read and decode one image, uint8 (channels, height, width); raises `ImageError`, naming it."""
        if (split, row) in self._kept:
            return self._kept[split, row]
        try:
            image = self._decode(split, row)
        except ImageError as error:
            remedy = "replace it, take it out, or leave such images out with --data.corrupt skip"
            raise ImageError(error.name, error.reason, remedy) from error
        if self.config.keep and not (split == "train" and self.config.on_device):  # which holds them already
            self._kept[split, row] = image
        return image

    def label(self, split: Split, row: int) -> int:
        """Return the place of an image's class in `classes`."""
        return int(self._splits[split].labels[row])

    def labels(self, split: Split) -> np.ndarray:
        """Return the places of all classes, int64 (images,), without reading an image."""
        return self._splits[split].labels

    def name(self, split: Split, row: int) -> str:
        """Return the path of an image, or its source and row there, counted from 1."""
        source, place = self._splits[split].locate(row)
        return source.name(source.value(place), place)

    def digest(self) -> str:
        """Hash the images to train and validate on: which they are, their classes and the names of their files."""
        splits = [self._splits["train"], self._splits["valid"]]
        sources = {id(source): source for rows in splits for source in rows.sources}  # they share those held out of
        found = hashlib.sha256("\n".join(name for each in sources.values() for name in each.file_names()).encode())
        for rows in splits:
            found.update(rows.rows.tobytes() + rows.labels.tobytes())
        return found.hexdigest()

    def _decode(self, split: Split, row: int) -> Tensor:
        source, place = self._splits[split].locate(row)
        value = source.value(place)
        name, config = source.name(value, place), self.config
        return read_image(
            source.content(value, name), channels=config.channels, name=name, max_pixels=config.max_pixels
        )

    def _leave_out(self) -> Table | None:
        """Take out of every split what cannot be decoded, and list it; raises InputError where nothing is left."""
        listed = Table("Split", "Left out because", title="Images left out")
        listed.add_column("Images", justify="right")
        listed.add_column("First")
        for split, rows in self._splits.items():
            errors = self._errors(split)
            bad = np.array([error is not None for error in errors])
            if bad.all():
                first = next(error for error in errors if error)
                raise InputError(f"no image of the {split} split can be read; the first is {first}")
            names: dict[str, list[str]] = {}
            for error in filter(None, errors):
                names.setdefault(error.reason.partition(" (")[0], []).append(error.name)
            for reason, those in names.items():
                listed.add_row(split, reason, f"{len(those):,}", ", ".join(those[:3]))
            self._splits[split] = rows.only(np.flatnonzero(~bad))
        return listed if listed.row_count else None

    def _errors(self, split: Split) -> list[ImageError | None]:
        """Decode every image of a split; the threads gain by it, since decoders let go of the interpreter."""

        def error(row: int) -> ImageError | None:
            try:
                self._decode(split, row)
            except ImageError as error:
                return ImageError(error.name, error.reason)  # that one holds on to the data

        errors, size = [], self.sizes[split]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            begins = range(0, size, ROWS_AT_ONCE)
            for begin in shown(begins, f"{split} images looked at", total=size, size=ROWS_AT_ONCE):
                errors += threads.map(error, range(begin, min(begin + ROWS_AT_ONCE, size)))
        return errors


@dataclass(frozen=True)
class _Rows:
    """The images of a split: their rows, counted through all sources, and the places of their classes."""

    sources: Sequence[Source]
    rows: np.ndarray
    labels: np.ndarray

    def locate(self, row: int) -> tuple[Source, int]:
        """Return the source of an image and its row there."""
        place = int(self.rows[row])
        for source in self.sources:
            if place < len(source.labels):
                return source, place
            place -= len(source.labels)
        raise IndexError(f"row {row} is in none of {len(self.sources)} sources")

    def only(self, chosen: np.ndarray) -> "_Rows":
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen])


def _digits() -> tuple[list[str], dict[Split, _Rows]]:
    """Return the embedded digits, 8 x 8 pixels; who trains on them anywhere leaves out the same ones."""
    from datasets import Dataset
    from sklearn.datasets import load_digits  # takes a second, and is seldom wanted

    light, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(light) * (255 / 16)).astype(np.uint8)
    images = encoded(Dataset.from_dict({IMAGE: [b"P5 8 8 255\n" + image.tobytes() for image in pixels]}), IMAGE)
    names = [str(digit) for digit in range(10)]
    source = Source("handwritten digits", Path(), images, np.asarray(labels, np.int64), names)
    rows = _join([source], names)
    order = np.random.default_rng(0).permutation(len(pixels))
    test, valid, train = np.split(order, [DIGITS_TEST, DIGITS_TEST + DIGITS_VALID])
    return names, {"train": rows.only(train), "valid": rows.only(valid), "test": rows.only(test)}


def _open_splits(config: Images) -> tuple[list[str], dict[Split, _Rows]]:
    folder = Path(config.folder).expanduser()
    sources = [open_source(source, folder) for source in config.train]
    orders = [source.names for source in sources]
    classes = orders[0] if all(order == orders[0] for order in orders) else sorted(set().union(*orders))
    train = _join(sources, classes)
    if config.valid:
        valid = _join([open_source(source, folder) for source in config.valid], classes)
    else:
        train, valid = _hold_out(train, config)
    splits: dict[Split, _Rows] = {"train": train, "valid": valid}
    if config.test:
        splits["test"] = _join([open_source(source, folder) for source in config.test], classes)
    return classes, splits


def _join(sources: Sequence[Source], classes: list[str]) -> _Rows:
    """Let the labels of all sources count the same classes; raises InputError for one that is not among them."""
    places = {name: place for place, name in enumerate(classes)}
    labels = []
    for source in sources:
        used = {source.names[label] for label in np.unique(source.labels)}
        if unknown := sorted(used - places.keys()):
            raise InputError(
                f"{source.place}: no training image is of class {listed(unknown)}; there are {listed(classes)}: "
                "rename it, take its images out, or train on some."
            )
        labels.append(np.array([places.get(name, -1) for name in source.names], np.int64)[source.labels])
    joined = np.concatenate(labels)
    return _Rows(sources, np.arange(len(joined)), joined)


def _hold_out(train: _Rows, config: Images) -> tuple[_Rows, _Rows]:
    """Part the training images into those to train on and those to validate on, the same share of every class.

    No class loses its last image to validation; those of few images take turns.
    """
    size, draw = len(train.rows), np.random.default_rng(config.seed)
    order = draw.permutation(size)
    order = order[np.argsort(train.labels[order], kind="stable")]  # class by class
    spare = order[1:][np.diff(train.labels[order]) == 0]  # all but one of each
    count = max(1, round(size * config.held_out))
    if count > len(spare):
        raise InputError(
            f"held_out={config.held_out} of {size} training images leaves a class none to train on: "
            "lower --data.held_out, or name images to validate on, --data.valid."
        )
    held = np.zeros(size, bool)
    held[spare[((np.arange(count) + draw.random()) * len(spare) / count).astype(np.int64)]] = True
    return train.only(np.flatnonzero(~held)), train.only(np.flatnonzero(held))
