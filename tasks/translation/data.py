"""Parallel text, from wherever it lies, as one memory-mapped table of strings.

Pair n is line n: nothing is dropped, merged or trimmed here, and an empty side stays an empty string (see `filters`).
Files are read once. The rows are kept in the cache of `datasets` under a name made of the content of the files, so an
edit is always seen and a second reading is a look-up.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import InputError, one_line
from tasks.progress import shown
from tasks.translation.files import (
    TABLES,
    Pair,
    check_strings,
    existing_file,
    known_column,
    read_pairs,
    table_kind,
)
from tasks.writing import whole

if TYPE_CHECKING:  # imported where it is called: it takes a second, and who uses a trained model never calls it
    from datasets import Dataset, Features

FORMAT = "parallel text 1"
"""Part of the name of every kept table: raise the number when a reader changes what it returns."""
ROWS_AT_ONCE = 10_000
MORE_ROOM = ": set HF_DATASETS_CACHE to a folder with room"
"""What to do where nothing can be kept."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where parallel text lies: two line-aligned files, one table, or a data set of the Hugging Face hub."""

    source: str | None = None
    """Path of the source sentences, one a line, plain or .gz; `target` is its other half."""
    target: str | None = None
    """Path of the target sentences: line n translates line n of `source`."""
    table: str | None = None
    """Path of a table: .tsv or .csv with a header line, .jsonl (each maybe .gz), or .parquet."""
    dataset: str | None = None
    """Name of a data set on the hub, or a folder that `datasets` loads (it misses edits of equal size and time)."""
    subset: str | None = None
    """Which configuration of `dataset`, where it has several."""
    split: str = "train"
    """Which split of `dataset`; a slice such as `train[:1000]` is one too."""
    source_column: str = "source"
    """Column or key of the source in `table` or `dataset`; a dot reaches inside: `translation.de`."""
    target_column: str = "target"
    """Column or key of the target in `table` or `dataset`."""
    weight: float = 1.0
    """How often this corpus is drawn from, relative to the others."""

    def __post_init__(self) -> None:
        given = [name for name in ("source", "target", "table", "dataset") if getattr(self, name) is not None]
        if given not in (["source", "target"], ["table"], ["dataset"]):
            raise ValueError(
                "a corpus is source and target, or table, or dataset: "
                f"give exactly one of the three (given: {', '.join(given) or 'none'})."
            )
        if self.table is not None and table_kind(self.table) not in TABLES:
            raise ValueError(f"table={self.table} does not say what it is: name it {' or '.join(TABLES)}.")
        if self.subset is not None and self.dataset is None:
            raise ValueError(f"subset={self.subset} is a part of a dataset, and dataset is not given.")
        if self.source_column == self.target_column:
            raise ValueError(f"source_column and target_column are both {self.source_column}: name two columns.")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight} must be above 0 and finite; leave the corpus out to ignore it.")


def read_corpora(corpora: Sequence[Corpus]) -> "Dataset":
    """Read several corpora one after the other.

    Columns: `source` and `target` as in `read_corpus`, and `corpus`, the index in `corpora` (int32).
    """
    if not corpora:
        raise InputError("no corpus is given: name at least one.")
    from datasets import concatenate_datasets

    tables = []
    for index, corpus in enumerate(corpora):
        table = read_corpus(corpus)
        # An array, whatever the annotation of `datasets` says: a list of millions is slow.
        tables.append(table.add_column("corpus", np.full(len(table), index, dtype=np.int32)))
    return concatenate_datasets(tables)


def read_corpus(corpus: Corpus) -> "Dataset":
    """Return every pair of the corpus, in its order, as the string columns `source` and `target`.

    The rows are mapped from an Arrow file on disk. Raises `InputError`, naming the file and the line, for text that is
    not UTF-8, sides of unequal length, ragged or empty tables, missing columns and values that are not strings.
    """
    return _from_files(corpus) if corpus.dataset is None else _from_hub(corpus)


def _from_files(corpus: Corpus) -> "Dataset":
    from datasets import Dataset

    paths = [existing_file(name) for name in (corpus.source, corpus.target, corpus.table) if name is not None]
    kept = kept_folder() / f"{_content_key(paths, corpus)}.arrow"
    if not kept.exists():
        with whole(kept, remedy=MORE_ROOM) as aside:
            _write(read_pairs(paths, (corpus.source_column, corpus.target_column)), aside)
    return Dataset.from_file(str(kept))


def kept_folder() -> Path:
    """Make the folder of all that is kept of text between runs, in the cache of `datasets`."""
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / "parallel_text"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({one_line(error)}){MORE_ROOM}.") from error
    return folder


def _content_key(paths: Sequence[Path], corpus: Corpus) -> str:
    parts = [FORMAT, corpus.source_column, corpus.target_column]
    for path in paths:
        try:
            with path.open("rb") as file:
                parts += ["".join(path.suffixes[-2:]), hashlib.file_digest(file, "sha256").hexdigest()]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}).") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(pairs: Iterator[Pair], path: Path) -> None:
    from datasets.arrow_writer import ArrowWriter

    with ArrowWriter(path=str(path), features=_features()) as writer:
        parts = iter(lambda: list(islice(pairs, ROWS_AT_ONCE)), [])
        for rows in shown(parts, "pairs read", size=ROWS_AT_ONCE):
            sources, targets = zip(*rows, strict=True)
            writer.write_batch({"source": list(sources), "target": list(targets)})
        writer.finalize()


def _from_hub(corpus: Corpus) -> "Dataset":
    from datasets import Dataset, load_dataset

    place = f"dataset {' '.join(part for part in (corpus.dataset, corpus.subset, corpus.split) if part)}"
    try:
        table = load_dataset(str(corpus.dataset), corpus.subset, split=corpus.split)
    except Exception as error:  # of many kinds; all of them concern the name, the network or the data
        raise InputError(f"{place}: {one_line(error.__cause__ or error)}") from error
    assert isinstance(table, Dataset)
    table = table.flatten()
    names = [known_column(column, table.column_names, place) for column in (corpus.source_column, corpus.target_column)]
    for name in names:
        check_strings(table.data.column(name), name, place)
    features = _features()
    table = table.select_columns(names).rename_columns(dict(zip(names, features, strict=True)))
    return table if table.features == features else table.cast(features)


def _features() -> "Features":
    from datasets import Features, Value

    return Features({"source": Value("string"), "target": Value("string")})
