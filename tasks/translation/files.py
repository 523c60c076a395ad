"""Strict readers of files of parallel text.

The loaders of `datasets` split at a lone carriage return, take the word `NA` for nothing, merge rows at a stray quote
and fill missing keys; these readers return what is there, or say in one line where it goes wrong.

In text files only a line feed ends a line. One carriage return before it and a byte order mark at the start of the file
are taken off; every other character, NUL included, is text.
"""

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import InputError, one_line

TABLES = (".tsv", ".csv", ".jsonl", ".parquet")

Pair = tuple[str, str]


def existing_file(name: str) -> Path:
    """Return the path of a file that is there; `~` is the home folder."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise InputError(f"{path}: not a regular file: name one that can be read twice.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no such file, and no folder {path.parent}.")
    raise InputError(f"{path}: no such file.{_nearest(path.name, [entry.name for entry in path.parent.iterdir()])}")


def read_pairs(paths: Sequence[Path], columns: Pair) -> Iterator[Pair]:
    """Yield source and target from two line-aligned files, or from those columns of one table."""
    if len(paths) == 2:
        yield from _aligned(*paths)
        return
    (path,) = paths
    read = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[table_kind(path)]
    pair = None
    for pair in read(path, columns):
        yield pair
    if pair is None:
        raise InputError(f"{path}: the table has no rows.")


def read_lines(path: Path) -> list[str]:
    """Read a text file, plain or .gz, line by line; raises InputError as `read_pairs` does."""
    return list(_lines(existing_file(str(path))))


def decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield lines as text; raises InputError with `name`, line and byte for what is not UTF-8."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise InputError(
                f"{name}:{number}:{error.start + 1}: byte {error.start + 1} of line {number} is 0x{byte:02x}, "
                "which is not UTF-8 there: convert it to UTF-8."
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def table_kind(name: str | Path) -> str:
    """Return the ending that says how a table is written, seen through `.gz`."""
    return Path(str(name).removesuffix(".gz")).suffix


def known_column(name: str, names: Collection[str], place: str) -> str:
    """Return the name if it is one of the names; otherwise say what there is at the place, and what is nearest."""
    if name not in names:
        raise InputError(f"{place}: no column {name}; there are {', '.join(names):.300}.{_nearest(name, names)}")
    return name


def check_strings(column: pa.ChunkedArray, name: str, place: str, before: int = 0) -> None:
    """Refuse a column that holds anything but strings; `before` is the number of rows before it."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{place}: column {name} holds {kind}, not strings.")
    if column.null_count:
        row = before + column.is_null().index(True).as_py() + 1
        raise InputError(f"{place}: column {name} has no value in row {row}: fill it or take the row out.")


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for text in decoded(file, str(path)):
                number += 1
                yield text
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(
            f"{path}: cannot be read beyond line {number} ({one_line(error)}): fetch or pack it again."
        ) from error
    if number == 0:
        raise InputError(f"{path}: the file is empty.")


def _aligned(source: Path, target: Path) -> Iterator[Pair]:
    sources, targets = _lines(source), _lines(target)
    for before, (one, other) in enumerate(zip_longest(sources, targets)):
        if one is None or other is None:
            rests = ((one, sources), (other, targets))
            counts = [before + (text is not None) + sum(1 for _ in rest) for text, rest in rests]
            raise InputError(
                f"{source} has {counts[0]} lines and {target} has {counts[1]}: "
                "line n of one must translate line n of the other."
            )
        yield one, other


def _tsv(path: Path, columns: Pair) -> Iterator[Pair]:
    rows = ((number, line.split("\t")) for number, line in enumerate(_lines(path), 1))
    return _rows(path, rows, columns)


def _csv(path: Path, columns: Pair) -> Iterator[Pair]:
    return _rows(path, _csv_rows(path), columns)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for line in _lines(path)), strict=True)
    number = 1
    try:
        for row in reader:
            yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{number}: the row that starts here is not CSV ({error}): put a field that holds quotes, commas or "
            "line breaks between quotes, and double the quotes in it."
        ) from error


def _rows(path: Path, rows: Iterator[tuple[int, list[str]]], columns: Pair) -> Iterator[Pair]:
    _, header = next(rows)
    source, target = (header.index(known_column(column, header, f"{path}:1")) for column in columns)
    for column in columns:
        if header.count(column) > 1:
            raise InputError(f"{path}:1: {header.count(column)} columns are called {column}: rename all but one.")
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: fields in the row: {len(row)}, in the header: {len(header)}.")
        yield row[source], row[target]


def _jsonl(path: Path, columns: Pair) -> Iterator[Pair]:
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
            values = _leaves(record) if isinstance(record, dict) else None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: the line is not JSON ({error}): write one object a line.") from error
        if values is None:
            raise InputError(f"{place}: the line holds {line!r:.40}, not an object: write one object a line.")
        source, target = (_string(values[known_column(column, values, place)], column, place) for column in columns)
        yield source, target


def _leaves(record: dict[str, Any]) -> dict[str, Any]:
    """Name nested values as Parquet does: outer.inner."""
    leaves = {}
    for key, value in record.items():
        inside = {f"{key}.{inner}": leaf for inner, leaf in _leaves(value).items()} if isinstance(value, dict) else {}
        leaves |= inside or {key: value}
    return leaves


def _string(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: column {column} holds {json.dumps(value):.40}, not a string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: column {column} holds half a character, {value[error.start]!r}.") from error
    return value


def _parquet(path: Path, columns: Pair) -> Iterator[Pair]:
    before = 0
    try:
        with pq.ParquetFile(path) as file:
            names = _flat(file.schema_arrow.empty_table()).column_names
            for column in columns:
                known_column(column, names, str(path))
            for batch in file.iter_batches(columns=list(columns)):
                table = _flat(pa.Table.from_batches([batch]))
                for column in columns:
                    check_strings(table[column], column, str(path), before)
                source, target = (table[column].to_pylist() for column in columns)
                yield from zip(source, target, strict=True)
                before += len(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read beyond row {before} ({one_line(error)}): fetch it again.") from error


def _flat(table: pa.Table) -> pa.Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table
