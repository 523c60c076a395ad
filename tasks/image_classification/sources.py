"""Where labelled images lie, opened: each still encoded, with the place of its class among the names of its source."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tasks.decode import ImageError, file_content
from tasks.errors import InputError, one_line
from tasks.names import listed

if TYPE_CHECKING:  # imported where it is called: it takes a second, and who uses a trained model never calls it
    from datasets import Dataset

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files of an image folder that are images, in small or capital letters."""
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
"""What the folders around those of the classes are often called."""
IMAGE = "image"


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


@dataclass(frozen=True)
class Source:
    """A source, opened: images still encoded, and labels that count its own class names."""

    place: str
    folder: Path
    """Where the paths in it start."""
    images: "Dataset"
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

    def file_names(self) -> list[str]:
        """Return what all its images are called, without their folders; "" for one that has no name."""
        chunks = self.images.data.column(IMAGE).chunks
        return [os.path.basename(path or "") for chunk in chunks for path in chunk.field("path").to_pylist()]

    def content(self, value: dict[str, Any], name: str) -> bytes:
        """Return an encoded image; raises ImageError with its name where there is none."""
        if value["bytes"] is not None:
            return value["bytes"]
        if value["path"] is None:
            raise ImageError(name, "no image there")
        return file_content(name)


def open_source(source: ImageSource, folder: Path) -> Source:
    """Open a source whose relative paths start in `folder`; raises InputError naming what is not there or not so."""
    if source.folder is not None:
        return _open_folder(folder / Path(source.folder).expanduser())
    if source.table is not None:
        path = folder / Path(source.table).expanduser()
        return _labelled(_read_table(path), source, str(path), path.parent)
    local = folder / Path(str(source.dataset)).expanduser()
    name = str(local) if local.is_dir() else str(source.dataset)
    place = f"dataset {' '.join(part for part in (name, source.subset, source.split) if part)}"
    return _labelled(_read_dataset(source, name, place), source, place, local if local.is_dir() else Path())


def _open_folder(folder: Path) -> Source:
    """List the images of each class; files beside the class folders, and hidden ones anywhere, are passed over."""
    from datasets import Dataset

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: name one that holds a folder for each class.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: no folders in it: give each class a folder of its name, with its images.")
    if SPLITS.issuperset(names):
        raise InputError(
            f"{folder}: its folders are called {listed(names)}, which are no classes: name each where it belongs, "
            f"as in --data.train '[{{folder: {folder / names[-1]}}}]'."
        )
    found = [_list_images(folder / name) for name in names]
    for name, paths in zip(names, found, strict=True):
        if not paths:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{folder / name}: no images of this class ({kinds}): add some, or take the folder out.")
    images = encoded(Dataset.from_dict({IMAGE: [path for paths in found for path in paths]}), IMAGE)
    labels = np.repeat(np.arange(len(names)), [len(paths) for paths in found])
    return Source(str(folder), Path(), images, labels, names)


def _list_images(folder: Path) -> list[str]:
    found, seen = [], set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder that has been walked
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
        found += [os.path.join(place, name) for name in shown]
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path!r}: the name is not UTF-8: rename it.") from None
    return sorted(found)


def _read_table(path: Path) -> "Dataset":
    from datasets import Dataset

    if not path.is_file():
        raise InputError(f"{path}: no such file: name a .parquet file.")
    try:
        table = Dataset.from_parquet(str(path))
    except Exception as error:  # of many kinds; all of them concern the file or the cache
        raise InputError(f"{path}: cannot be read ({one_line(error)}): fetch or write it again.") from error
    assert isinstance(table, Dataset)
    return table


def _read_dataset(source: ImageSource, name: str, place: str) -> "Dataset":
    from datasets import Dataset, load_dataset, load_from_disk

    try:
        if not any(Path(name, file).is_file() for file in ("state.json", "dataset_dict.json")):
            return load_dataset(name, source.subset, split=source.split)
        saved = load_from_disk(name)
    except Exception as error:  # of many kinds; all of them concern the name, the network or the data
        raise InputError(f"{place}: cannot be loaded ({one_line(error.__cause__ or error)}).") from error
    splits = {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else saved
    if source.subset is not None or source.split not in splits:
        there = ", ".join(map(str, splits))
        raise InputError(f"{place}: what was saved there has no subsets, and these splits: {there}: choose among them.")
    return splits[source.split]


def _labelled(table: "Dataset", source: ImageSource, place: str, folder: Path) -> Source:
    for field_name in ("image_column", "label_column"):
        if (column := getattr(source, field_name)) not in table.column_names:
            there = listed(table.column_names)
            raise InputError(f"{place}: no column {column}; there are {there}: choose {field_name} among them.")
    if len(table) == 0:
        raise InputError(f"{place}: no rows: name a source with images.")
    column = source.image_column
    if not _holds_images(kind := table.data.schema.field(column).type):
        raise InputError(
            f"{place}: column {column} holds {kind}, neither encoded images nor paths: choose another image_column."
        )
    names, labels = _read_labels(table, source.label_column, place)
    return Source(place, folder, encoded(table, column), labels, names)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {field.name for field in kind} in ({"bytes", "path"}, {"bytes"}, {"path"})
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def encoded(table: "Dataset", column: str) -> "Dataset":
    """Return the one column, renamed to IMAGE, whose values are encoded images or paths."""
    from datasets import Image

    images = table.select_columns([column]).cast_column(column, Image(decode=False))
    return images if column == IMAGE else images.rename_column(column, IMAGE)


def _read_labels(table: "Dataset", column: str, place: str) -> tuple[list[str], np.ndarray]:
    """Return class names, and for each row the place of its class among them."""
    from datasets import ClassLabel

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
