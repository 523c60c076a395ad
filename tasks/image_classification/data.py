"""Labelled images, from wherever they lie; they stay encoded until one is asked for.

Image tables are mapped from disk by `datasets`, image folders are listed, so that many processes read from one copy.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset
from rich.table import Table
from torch import Tensor

from tasks.errors import InputError
from tasks.image_classification.decode import ImageError, read_image
from tasks.task import Split

CLASSES = "classes.json"
"""File of the class names in a run folder."""
SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files of an image folder that are images, in small or capital letters."""
DIGITS_VALID, DIGITS_TEST = 200, 300
"""Images in the validation and in the test part of the embedded digits."""
IMAGE = "image"
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where labelled images lie: a folder with one folder a class, a table, or a data set of the Hugging Face hub."""

    folder: str | None = None
    """Path of a folder whose sub-folders are the classes, named as they; images may lie at any depth below."""
    table: str | None = None
    """Path of a .parquet file: encoded images, or their paths, which start where the file lies."""
    dataset: str | None = None
    """Name of a data set on the hub, or a folder that `datasets` loads or has saved."""
    subset: str | None = None
    """Which configuration of `dataset`, where it has several."""
    split: str = "train"
    """Which split of `dataset`; a slice such as `train[:1000]` is one too, save of what was saved to disk."""
    image_column: str = "image"
    """Column of the images in `table` or `dataset`."""
    label_column: str = "label"
    """Column of the classes in `table` or `dataset`: names, or whole numbers with or without names."""

    def __post_init__(self) -> None:
        given = [name for name in ("folder", "table", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a source of images is one of folder, table and dataset: give exactly one "
                f"(given: {', '.join(given) or 'none'})."
            )
        if self.table is not None and Path(self.table).suffix != ".parquet":
            raise ValueError(f"table={self.table} does not end with .parquet: convert it, or choose folder or dataset.")
        if self.dataset is None and (self.subset is not None or self.split != "train"):
            raise ValueError(
                f"subset={self.subset} and split={self.split} are parts of a dataset, and dataset is not given."
            )
        if self.image_column == self.label_column:
            raise ValueError(f"image_column and label_column are both {self.image_column}: name two columns.")


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
    """Share of the training images that is kept for validation where `valid` names none, drawn by `seed`."""
    corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be read stops the program when its turn comes, or is left out, counted and named; `skip`
    decodes every image once at the start."""
    max_pixels: int = 100_000_000
    """An image of more pixels cannot be read; decoding takes up to 8 bytes of memory a pixel."""
    channels: int = 3
    """3: red, green and blue; 1: grey."""
    batch: int = 128
    """Images in a micro-batch; memory grows with it."""
    seed: int = 1
    """Which images are held out."""

    def __post_init__(self) -> None:
        if not self.train and (self.valid or self.test):
            raise ValueError("valid or test name sources and train none: name the images to train on, --data.train.")
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
        _keep_classes(self.classes, folder)
        self.report: Table | None = self._leave_out() if config.corrupt == "skip" else None
        """What was left out, by split and reason, with the first names; None where nothing was."""

    @property
    def sizes(self) -> dict[Split, int]:
        """Images in each split; `test` is there only if it was named, or embedded."""
        return {split: len(rows.labels) for split, rows in self._splits.items()}

    def image(self, split: Split, row: int) -> Tensor:
        """Read and decode one image, uint8 (channels, height, width); raises `ImageError`, naming it."""
        try:
            return self._decode(split, row)
        except ImageError as error:
            remedy = "replace it, take it out, or leave such images out with --data.corrupt skip"
            raise ImageError(error.name, error.reason, remedy) from error

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
            for begin in range(0, size, ROWS_AT_ONCE):
                errors += threads.map(error, range(begin, min(begin + ROWS_AT_ONCE, size)))
        return errors


def saved_classes(folder: Path) -> list[str]:
    """Return the class names that a run folder holds, in the order of the labels; raises InputError without them."""
    path = folder / CLASSES
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_one_line(error)}): name the folder of a training run.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: not a list of class names: put back the file that the run began with.")
    return classes


def _keep_classes(classes: list[str], folder: Path) -> None:
    """Write the class names at first; later raise InputError where they are others, or in another order."""
    path = folder / CLASSES
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(classes, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        aside.replace(path)
    elif (kept := saved_classes(folder)) != classes:
        lost, new = [x for x in kept if x not in classes], [x for x in classes if x not in kept]
        parts = [f"{_listed(names)} {what}" for names, what in ((lost, "is gone"), (new, "is new")) if names]
        raise InputError(
            f"{path}: the run began with other classes ({'; '.join(parts) or 'in another order'}): "
            "give back the data that it began with, or start a new run."
        )


@dataclass(frozen=True)
class _Source:
    """A source, opened: images still encoded, and labels that count its own class names."""

    place: str
    folder: Path
    """Where the paths in it start."""
    images: Dataset
    labels: np.ndarray
    names: list[str]

    def value(self, row: int) -> dict[str, Any]:
        """Return the `bytes` and the `path` of an image, either of which may be None."""
        return self.images[row][IMAGE] or {"bytes": None, "path": None}

    def name(self, value: dict[str, Any], row: int) -> str:
        """Return the path of an image that has its own file, otherwise its row, counted from 1."""
        if value["bytes"] is None and value["path"] is not None:
            return str(self.folder / value["path"])
        return f"{self.place} row {row + 1}"

    def content(self, value: dict[str, Any], name: str) -> bytes:
        if value["bytes"] is not None:
            return value["bytes"]
        if value["path"] is None:
            raise ImageError(name, "no image there")
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise ImageError(name, f"no file that can be read ({error.strerror})") from error


@dataclass(frozen=True)
class _Rows:
    """The images of a split: their rows, counted through all sources, and the places of their classes."""

    sources: Sequence[_Source]
    rows: np.ndarray
    labels: np.ndarray

    def locate(self, row: int) -> tuple[_Source, int]:
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
    from sklearn.datasets import load_digits  # takes a second, and is seldom wanted

    light, labels = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(light) * (255 / 16)).astype(np.uint8)
    images = _encoded(Dataset.from_dict({IMAGE: [b"P5 8 8 255\n" + image.tobytes() for image in pixels]}), IMAGE)
    names = [str(digit) for digit in range(10)]
    source = _Source("handwritten digits", Path(), images, np.asarray(labels, np.int64), names)
    rows = _join([source], names)
    order = np.random.default_rng(0).permutation(len(pixels))
    test, valid, train = np.split(order, [DIGITS_TEST, DIGITS_TEST + DIGITS_VALID])
    return names, {"train": rows.only(train), "valid": rows.only(valid), "test": rows.only(test)}


def _open_splits(config: Images) -> tuple[list[str], dict[Split, _Rows]]:
    folder = Path(config.folder).expanduser()
    sources = [_open(source, folder) for source in config.train]
    orders = [source.names for source in sources]
    classes = orders[0] if all(order == orders[0] for order in orders) else sorted(set().union(*orders))
    train = _join(sources, classes)
    if config.valid:
        valid = _join([_open(source, folder) for source in config.valid], classes)
    else:
        train, valid = _hold_out(train, config)
    splits: dict[Split, _Rows] = {"train": train, "valid": valid}
    if config.test:
        splits["test"] = _join([_open(source, folder) for source in config.test], classes)
    return classes, splits


def _join(sources: Sequence[_Source], classes: list[str]) -> _Rows:
    """Let the labels of all sources count the same classes; raises InputError for one that is not among them."""
    places = {name: place for place, name in enumerate(classes)}
    labels = []
    for source in sources:
        used = {source.names[label] for label in np.unique(source.labels)}
        if unknown := sorted(used - places.keys()):
            raise InputError(
                f"{source.place}: no training image is of class {_listed(unknown)}; there are {_listed(classes)}: "
                "rename it, take its images out, or train on some."
            )
        labels.append(np.array([places.get(name, -1) for name in source.names], np.int64)[source.labels])
    joined = np.concatenate(labels)
    return _Rows(sources, np.arange(len(joined)), joined)


def _hold_out(train: _Rows, config: Images) -> tuple[_Rows, _Rows]:
    """Part the training images into those to train on and those to validate on, each in their order."""
    size = len(train.rows)
    count = max(1, round(size * config.held_out))
    if count >= size:
        raise InputError(
            f"held_out={config.held_out} of {size} training images leaves none to train on: "
            "lower --data.held_out, or name images to validate on, --data.valid."
        )
    order = np.random.default_rng(config.seed).permutation(size)
    return train.only(np.sort(order[count:])), train.only(np.sort(order[:count]))


def _open(source: ImageSource, folder: Path) -> _Source:
    if source.folder is not None:
        return _open_folder(folder / Path(source.folder).expanduser())
    if source.table is not None:
        path = folder / Path(source.table).expanduser()
        return _labelled(_read_table(path), source, str(path), path.parent)
    local = folder / Path(str(source.dataset)).expanduser()
    name = str(local) if local.is_dir() else str(source.dataset)
    place = f"dataset {' '.join(part for part in (name, source.subset, source.split) if part)}"
    return _labelled(_read_dataset(source, name, place), source, place, local if local.is_dir() else Path())


def _open_folder(folder: Path) -> _Source:
    """List the images of each class; files beside the class folders, and hidden ones anywhere, are passed over."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: name one that holds a folder for each class.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no folders in it: give each class a folder of its name, with its images.")
    found = [_list_images(folder / name) for name in names]
    for name, paths in zip(names, found, strict=True):
        if not paths:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{folder / name}: no images of this class ({kinds}): add some, or take the folder out.")
    images = _encoded(Dataset.from_dict({IMAGE: [path for paths in found for path in paths]}), IMAGE)
    labels = np.repeat(np.arange(len(names)), [len(paths) for paths in found])
    return _Source(str(folder), Path(), images, labels, names)


def _list_images(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
        found += [os.path.join(place, name) for name in shown]
    return sorted(found)


def _read_table(path: Path) -> Dataset:
    if not path.is_file():
        raise InputError(f"{path}: no such file: name a .parquet file.")
    try:
        table = Dataset.from_parquet(str(path))
    except Exception as error:  # of many kinds; all of them concern the file or the cache
        raise InputError(f"{path}: cannot be read ({_one_line(error)}): fetch or write it again.") from error
    assert isinstance(table, Dataset)
    return table


def _read_dataset(source: ImageSource, name: str, place: str) -> Dataset:
    try:
        if not any(Path(name, file).is_file() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(name, source.subset, split=source.split)
        saved = datasets.load_from_disk(name)
    except Exception as error:  # of many kinds; all of them concern the name, the network or the data
        raise InputError(f"{place}: cannot be loaded ({_one_line(error.__cause__ or error)}).") from error
    splits = {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else saved
    if source.subset is not None or source.split not in splits:
        there = ", ".join(map(str, splits))
        raise InputError(f"{place}: what was saved there has no subsets, and these splits: {there}: choose among them.")
    return splits[source.split]


def _labelled(table: Dataset, source: ImageSource, place: str, folder: Path) -> _Source:
    for field_name in ("image_column", "label_column"):
        if (column := getattr(source, field_name)) not in table.column_names:
            there = _listed(table.column_names)
            raise InputError(f"{place}: no column {column}; there are {there}: choose {field_name} among them.")
    if len(table) == 0:
        raise InputError(f"{place}: no rows: name a source with images.")
    column = source.image_column
    if not _holds_images(kind := table.data.schema.field(column).type):
        raise InputError(
            f"{place}: column {column} holds {kind}, neither encoded images nor paths: choose another image_column."
        )
    names, labels = _read_labels(table, source.label_column, place)
    return _Source(place, folder, _encoded(table, column), labels, names)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {field.name for field in kind} in ({"bytes", "path"}, {"bytes"}, {"path"})
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _encoded(table: Dataset, column: str) -> Dataset:
    """Return the one column, renamed to IMAGE, whose values are encoded images or paths."""
    images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return images if column == IMAGE else images.rename_column(column, IMAGE)


def _read_labels(table: Dataset, column: str, place: str) -> tuple[list[str], np.ndarray]:
    """Return class names, and for each row the place of its class among them."""
    feature = table.features[column]
    values: pa.ChunkedArray = table.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        row = values.is_null().index(True).as_py() + 1
        raise InputError(f"{place}: column {column} has no value in row {row}: fill it or take the row out.")
    if isinstance(feature, ClassLabel):
        return feature.names, _checked(values.to_numpy(), len(feature.names), column, place)
    if pa.types.is_integer(values.type):
        _checked(values.to_numpy(), None, column, place)
    elif not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise InputError(f"{place}: column {column} holds {values.type}, neither names nor whole numbers of classes.")
    present = sorted(values.unique().to_pylist())
    place_of = {value: place for place, value in enumerate(present)}
    labels = np.fromiter((place_of[value] for value in values.to_pylist()), np.int64, len(values))
    return [str(value) for value in present], labels


def _checked(labels: np.ndarray, classes: int | None, column: str, place: str) -> np.ndarray:
    outside = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if outside.any():
        row, wanted = int(outside.argmax()), "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(
            f"{place}: column {column} holds {labels[row]} in row {row + 1}, and labels are {wanted}: "
            "mend it or take the row out."
        )
    return labels.astype(np.int64)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
