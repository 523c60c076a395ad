import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.table import MemoryMappedTable

from tasks.errors import InputError
from tasks.translation.data import Corpus, read_corpora, read_corpus

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TRANSFORMER_CORE_DATA", ROOT.parent / "shared" / "data"))

# Sentences that careless readers split, merge, trim or take for nothing.
AWKWARD = [
    ("NA", "null"),
    ('a "quoted" word', '"'),
    ("one\u2028two", "eins\u0085zwei"),
    ("tab is not here", "\x0b \x1c \x0c"),
    ("", "leer"),
    ("empty", ""),
    ("  blanks  ", "3.0"),
    ("nul\0inside", "\ufeffmark"),
    ("naïve 😀 e\u0301", "1e5"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder / "parallel_text"


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def files(folder, source, target, ending=""):
    return Corpus(
        source=str(write(folder / f"train.en{ending}", source)), target=str(write(folder / f"train.de{ending}", target))
    )


def table(folder, name, content, source_column="en", target_column="de"):
    path = str(write(folder / name, content))
    return Corpus(table=path, source_column=source_column, target_column=target_column)


def pairs(corpus):
    return [(row["source"], row["target"]) for row in read_corpus(corpus)]


def refusal(corpus):
    with pytest.raises(InputError) as caught:
        read_corpus(corpus)
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_tsv(rows):
    return "".join(f"{one}\t{other}\n" for one, other in [("en", "de"), *rows])


def as_jsonl(rows):
    return "".join(json.dumps({"de": other, "id": 7, "en": one}) + "\n" for one, other in rows)


# What is read.


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_line_n_of_one_file_is_paired_with_line_n_of_the_other(tmp_path, ending):
    sources, targets = ("".join(f"{line}\n" for line in side) for side in zip(*AWKWARD, strict=True))
    assert pairs(files(tmp_path, sources, targets, ending)) == AWKWARD


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_tab_separated_table_has_no_quotes_and_no_missing_values(tmp_path, ending):
    assert pairs(table(tmp_path, f"train.tsv{ending}", as_tsv(AWKWARD))) == AWKWARD


def test_a_comma_separated_table_written_by_python_is_read_back(tmp_path):
    rows = [*AWKWARD, ("one, two", "two\nlines"), ('""', "a\rb")]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("de", "id", "en"), *((other, "1", one) for one, other in rows)])
    assert pairs(Corpus(table=str(tmp_path / "train.csv"), source_column="en", target_column="de")) == rows


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines_are_read_by_key(tmp_path, ending):
    assert pairs(table(tmp_path, f"train.jsonl{ending}", as_jsonl(AWKWARD))) == AWKWARD


def test_parquet_is_read_by_column_over_several_row_groups(tmp_path):
    sources, targets = (list(side) for side in zip(*AWKWARD, strict=True))
    columns = pa.table({"de": pa.array(targets, pa.large_string()), "en": pa.array(sources).dictionary_encode()})
    pq.write_table(columns, tmp_path / "train.parquet", row_group_size=2)
    assert pairs(Corpus(table=str(tmp_path / "train.parquet"), source_column="en", target_column="de")) == AWKWARD


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dot_reaches_into_a_column(tmp_path, kind):
    rows = [{"id": 1, "translation": {"en": "a", "de": "b"}}, {"id": 2, "translation": {"en": "c", "de": "d"}}]
    path = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    corpus = Corpus(table=str(path), source_column="translation.en", target_column="translation.de")
    assert pairs(corpus) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("stray", ["\r", "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\0"])
def test_only_a_line_feed_ends_a_line(tmp_path, stray):
    source = f"one{stray}two\n{stray}x\nlast\n"
    corpus = files(tmp_path, source, "eins\nzwei\ndrei\n")
    assert [one for one, _ in pairs(corpus)] == [f"one{stray}two", f"{stray}x", "last"]


def test_a_mark_at_the_start_and_carriage_returns_before_line_feeds_are_taken_off(tmp_path):
    corpus = files(tmp_path, b"\xef\xbb\xbfone\r\n\xef\xbb\xbftwo\r\r\n", b"eins\nzwei")
    assert pairs(corpus) == [("one", "eins"), ("\ufefftwo\r", "zwei")]


@pytest.mark.parametrize(
    ("source", "count"), [("one", 1), ("one\n", 1), ("\n", 1), ("one\n\n", 2), (" \n\t\n", 2), ("a\nb\n\n\n", 4)]
)
def test_blank_lines_are_lines(tmp_path, source, count):
    assert len(read_corpus(files(tmp_path, source, "x\n" * count))) == count


def test_a_very_long_line_is_one_line(tmp_path):
    assert pairs(files(tmp_path, "word " * 100_000 + "\n", "Wort\n")) == [("word " * 100_000, "Wort")]


def test_more_rows_than_are_written_at_once_keep_their_order(tmp_path):
    rows = [(f"source {n}", f"target {n}") for n in range(20_011)]
    assert pairs(table(tmp_path, "train.tsv", as_tsv(rows))) == rows


def test_the_columns_are_two_strings_mapped_from_disk(tmp_path, cache):
    read = read_corpus(files(tmp_path, "a\n", "b\n"))
    assert read.features == datasets.Features({"source": datasets.Value("string"), "target": datasets.Value("string")})
    assert isinstance(read.data, MemoryMappedTable)
    assert [Path(file["filename"]).parent for file in read.cache_files] == [cache]


def test_several_corpora_follow_each_other_and_say_which_is_which(tmp_path):
    first = files(tmp_path, "a\nb\nc\n", "A\nB\nC\n")
    second = table(tmp_path, "more.tsv", as_tsv([("d", "D"), ("e", "E")]))
    read = read_corpora([first, second, first])
    assert read["source"][:] == list("abcdeabc")
    assert read["target"][:] == list("ABCDEABC")
    assert read["corpus"][:] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_no_corpus_at_all_is_refused():
    with pytest.raises(InputError, match="no corpus is given"):
        read_corpora([])


# What is refused.


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("counts", [(5, 4), (5, 6), (1, 3), (30_001, 2)])
def test_files_of_unequal_length_are_named_with_both_counts(tmp_path, counts, ending):
    message = refusal(files(tmp_path, "x\n" * counts[0], "y\n" * counts[1], ending))
    assert f"train.en{ending} has {counts[0]} lines and " in message
    assert f"train.de{ending} has {counts[1]}:" in message


@pytest.mark.parametrize(
    ("line", "byte", "value"), [(b"gr\xfc\xdfe", 3, "fc"), (b"\xff\xfea", 1, "ff"), ("grü".encode()[:-1], 3, "c3")]
)
def test_bytes_that_are_not_utf_8_are_named_by_file_line_and_byte(tmp_path, line, byte, value):
    message = refusal(files(tmp_path, b"a\nb\n" + line + b"\n", "x\ny\nz\n"))
    assert f"train.en:3:{byte}: byte {byte} of line 3 is 0x{value}" in message


def test_the_byte_of_the_first_line_counts_the_mark_that_is_taken_off(tmp_path):
    assert "train.de:1:4: byte 4 of line 1 is 0xff" in refusal(files(tmp_path, "a\n", b"\xef\xbb\xbf\xff\n"))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_empty_file_is_refused(tmp_path, ending):
    assert f"train.de{ending}: the file is empty" in refusal(files(tmp_path, "a\n", "", ending))


@pytest.mark.parametrize("name", ["train.tsv", "train.csv", "train.jsonl", "train.tsv.gz"])
def test_an_empty_table_is_refused(tmp_path, name):
    assert f"{name}: the file is empty" in refusal(table(tmp_path, name, ""))


@pytest.mark.parametrize(("name", "header"), [("train.tsv", "en\tde\n"), ("train.csv", "en,de\n")])
def test_a_header_without_rows_is_refused(tmp_path, name, header):
    assert f"{name}: the table has no rows" in refusal(table(tmp_path, name, header))


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    pq.write_table(
        pa.table({"source": pa.array([], pa.string()), "target": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    assert "a.parquet: the table has no rows" in refusal(Corpus(table=str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("bytes_kept", [1, 5, 12, -9, -4, -1])
def test_a_gzip_file_that_was_cut_short_is_named(tmp_path, bytes_kept):
    whole = gzip.compress("".join(f"{n * n}\n" for n in range(500)).encode(), mtime=0)
    corpus = files(tmp_path, "a\n" * 500, "", ".gz")
    (tmp_path / "train.de.gz").write_bytes(whole[:bytes_kept])
    assert "train.de.gz: cannot be read beyond line" in refusal(corpus)


def test_a_gzip_file_that_is_damaged_or_none_is_named(tmp_path):
    whole = bytearray(gzip.compress(b"a\n" * 500, mtime=0))
    whole[-6] ^= 1
    corpus = files(tmp_path, "a\n" * 500, "", ".gz")
    for content in (bytes(whole), b"<html>not found</html>\n"):
        (tmp_path / "train.de.gz").write_bytes(content)
        assert "train.de.gz: cannot be read beyond line" in refusal(corpus)


@pytest.mark.parametrize("bytes_kept", [0, 1, 200, -1])
def test_a_parquet_file_that_was_cut_short_is_named(tmp_path, bytes_kept):
    pq.write_table(pa.table({"en": ["a", "b"], "de": ["c", "d"]}), tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()[:bytes_kept]
    assert "train.parquet: cannot be read beyond row 0" in refusal(table(tmp_path, "train.parquet", content))


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path):
    rows = {"en": [f"sentence {n}" for n in range(1000)], "de": ["x"] * 1000}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet", compression="gzip", use_dictionary=False)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    content[300:400] = bytes(100)
    assert "train.parquet: cannot be read beyond row" in refusal(table(tmp_path, "train.parquet", bytes(content)))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("train.tsv", "en\tde\na\tb\nc\td\te\n", "train.tsv:3: fields in the row: 3, in the header: 2"),
        ("train.tsv", "en\tde\na\tb\nc\n", "train.tsv:3: fields in the row: 1, in the header: 2"),
        ("train.tsv", "en\tde\na\tb\n\n", "train.tsv:3: fields in the row: 1, in the header: 2"),
        ("train.csv", 'en,de\n"a\nb",c\nd\n', "train.csv:4: fields in the row: 1, in the header: 2"),
        ("train.csv", 'en,de\na,b\n"c,d\ne,f\n', "train.csv:3: the row that starts here is not CSV"),
        ("train.csv", 'en,de\na,b\n"c"d,e\n', "train.csv:3: the row that starts here is not CSV"),
        ("train.csv", "en,de\na,b\nc\rd,e\n", "train.csv:3: the row that starts here is not CSV"),
    ],
)
def test_a_ragged_row_is_named_by_file_and_line(tmp_path, name, content, place):
    assert place in refusal(table(tmp_path, name, content))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"en": "a", "de": "b"', "train.jsonl:2: the line is not JSON"),
        ("", "train.jsonl:2: the line is not JSON"),
        ("[" * 100_000, "train.jsonl:2: the line is not JSON"),
        ('["a", "b"]', 'train.jsonl:2: the line holds \'["a", "b"]\', not an object'),
        ('{"en": "a"}', "train.jsonl:2: no column de; there are en."),
        ('{"en": "a", "de": 3}', "train.jsonl:2: column de holds 3, not a string"),
        ('{"en": "a", "de": null}', "train.jsonl:2: column de holds null, not a string"),
        ('{"en": ["a"], "de": "b"}', 'train.jsonl:2: column en holds ["a"], not a string'),
        ('{"en": "a", "de": "\\ud83d"}', "train.jsonl:2: column de holds half a character"),
    ],
)
def test_a_json_line_that_does_not_fit_is_named(tmp_path, line, reason):
    assert reason in refusal(table(tmp_path, "train.jsonl", as_jsonl([("a", "b")]) + line + "\n"))


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_a_missing_column_is_refused_with_those_there_are_and_the_nearest(tmp_path, kind):
    contents = {
        "tsv": "german\tenglish\na\tb\n",
        "csv": "german,english\na,b\n",
        "jsonl": '{"german":"a","english":"b"}\n',
    }
    if kind == "parquet":
        pq.write_table(pa.table({"german": ["a"], "english": ["b"]}), tmp_path / "train.parquet")
        contents["parquet"] = (tmp_path / "train.parquet").read_bytes()
    message = refusal(table(tmp_path, f"train.{kind}", contents[kind], "english", "germn"))
    assert "no column germn; there are german, english. Did you mean german?" in message
    assert f"train.{kind}:" in message


def test_two_columns_of_the_wanted_name_are_refused(tmp_path):
    assert "train.tsv:1: 2 columns are called de" in refusal(table(tmp_path, "train.tsv", "en\tde\tde\na\tb\tc\n"))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([1, 2, 3]), "column de holds int64, not strings"),
        (pa.array([["a"], ["b"], ["c"]]), "column de holds list<element: string>, not strings"),
        (pa.array(["a", None, "c"]), "column de has no value in row 2"),
    ],
)
def test_a_parquet_column_of_other_things_than_strings_is_refused(tmp_path, column, reason):
    pq.write_table(pa.table({"en": ["x", "y", "z"], "de": column}), tmp_path / "train.parquet")
    corpus = Corpus(table=str(tmp_path / "train.parquet"), source_column="en", target_column="de")
    assert f"train.parquet: {reason}" in refusal(corpus)


def test_the_row_of_a_missing_value_is_counted_from_the_start_of_the_file(tmp_path):
    column = pa.array(["x"] * 70_000 + [None])
    pq.write_table(pa.table({"source": column, "target": ["y"] * 70_001}), tmp_path / "train.parquet")
    assert "column source has no value in row 70001" in refusal(Corpus(table=str(tmp_path / "train.parquet")))


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    write(tmp_path / "train.de.gz", "a\n")
    write(tmp_path / "README", "")
    message = refusal(Corpus(source=f"{tmp_path}/train.de", target=f"{tmp_path}/train.en"))
    assert message == f"{tmp_path}/train.de: no such file. Did you mean train.de.gz?"


def test_the_home_folder_may_be_called_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files(tmp_path, "a\n", "b\n")
    assert pairs(Corpus(source="~/train.en", target="~/train.de")) == [("a", "b")]


def test_a_folder_that_is_missing_or_stands_for_a_file_is_refused(tmp_path):
    assert f"no folder {tmp_path / 'nowhere'}" in refusal(Corpus(table=str(tmp_path / "nowhere" / "train.tsv")))
    (tmp_path / "folder.tsv").mkdir()
    assert "folder.tsv: not a regular file" in refusal(Corpus(table=str(tmp_path / "folder.tsv")))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that root cannot read either")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    corpus = files(tmp_path, "a\n", "b\n")
    assert "/proc/self/mem: cannot be read" in refusal(Corpus(source="/proc/self/mem", target=corpus.target))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "given: none"),
        ({"source": "a"}, "given: source"),
        ({"source": "a", "target": "b", "table": "c.tsv"}, "given: source, target, table"),
        ({"table": "c.tsv", "dataset": "d"}, "given: table, dataset"),
        ({"table": "c.txt"}, "table=c.txt"),
        ({"table": "c.tsv", "subset": "de-en"}, "subset=de-en"),
        ({"table": "c.tsv", "source_column": "de", "target_column": "de"}, "both de"),
        ({"table": "c.tsv", "weight": 0.0}, "weight=0.0"),
        ({"table": "c.tsv", "weight": float("nan")}, "weight=nan"),
        ({"table": "c.tsv", "weight": float("inf")}, "weight=inf"),
    ],
)
def test_a_corpus_of_no_or_two_kinds_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        Corpus(**fields)


# What is kept.


def test_a_second_reading_uses_what_the_first_has_kept(tmp_path, cache):
    corpus = files(tmp_path, "a\n", "b\n")
    first = read_corpus(corpus)
    (kept,) = cache.iterdir()
    before = kept.stat()
    second = read_corpus(corpus)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second[:] == first[:]
    assert second._fingerprint == first._fingerprint


def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path):
    corpus = files(tmp_path, "a\n", "b\n")
    assert pairs(corpus) == [("a", "b")]
    path, times = tmp_path / "train.de", (tmp_path / "train.de").stat()
    path.write_text("c\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert pairs(corpus) == [("a", "c")]


def test_the_same_bytes_read_as_something_else_are_read_again(tmp_path):
    content = "en,de,x\ten\tde\n1,2,x\t3\t4\n"
    assert pairs(table(tmp_path, "a.tsv", content)) == [("3", "4")]
    assert pairs(table(tmp_path, "a.tsv", content, "de", "en")) == [("4", "3")]
    assert pairs(table(tmp_path, "a.csv", content)) == [("1", "2")]
    assert pairs(Corpus(source=str(tmp_path / "a.tsv"), target=str(tmp_path / "a.csv")))[1] == ("1,2,x\t3\t4",) * 2


def test_a_reading_that_fails_leaves_nothing_behind(tmp_path, cache):
    corpus = files(tmp_path, b"a\n" * 20_000 + b"\xff\n", "b\n" * 20_001)
    refusal(corpus)
    assert list(cache.iterdir()) == []
    write(tmp_path / "train.en", "a\n" * 20_001)
    assert len(read_corpus(corpus)) == 20_001


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", write(tmp_path / "occupied", "") / "cache")
    message = refusal(files(tmp_path, "a\n", "b\n"))
    assert "occupied/cache" in message and "set HF_DATASETS_CACHE" in message


def test_two_processes_may_read_the_same_corpus_at_once(tmp_path, cache):
    rows = [(f"source {n}", f"target {n}") for n in range(30_011)]
    corpus = table(tmp_path, "train.tsv", as_tsv(rows))
    program = (
        "import sys; from tasks.translation.data import Corpus, read_corpus\n"
        f"corpus = {corpus!r}\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "read = read_corpus(corpus); print(len(read), read[30_010]['target'])"
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache.parent)}
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    for reader in readers:
        output, _ = reader.communicate()
        assert (reader.returncode, output) == (0, "30011 target 30010\n")
    assert len(list(cache.iterdir())) == 1
    assert pairs(corpus) == rows


# Data sets of the hub: a folder stands for one, since tests have no network.


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "books"
    for subset, split, rows in [
        ("de-en", "train", [{"id": n, "translation": {"de": f"de {n}", "en": f"en {n}"}} for n in range(5)]),
        ("de-en", "test", [{"id": 9, "translation": {"de": "ein", "en": "one"}}]),
        ("flat", "train", [{"de": "a", "en": None}, {"de": "b", "en": "c"}]),
    ]:
        (folder / subset).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / subset / f"{split}.parquet")
    subsets = [{"config_name": name, "data_dir": name} for name in ("de-en", "flat")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(subsets)}\n---\n")
    return str(folder)


def from_hub(folder, **fields):
    columns = {"source_column": "translation.de", "target_column": "translation.en"}
    return Corpus(**{"dataset": folder, "subset": "de-en"} | columns | fields)


def test_a_data_set_is_read_by_name_subset_and_split(hub):
    assert pairs(from_hub(hub)) == [(f"de {n}", f"en {n}") for n in range(5)]
    assert pairs(from_hub(hub, split="test")) == [("ein", "one")]
    assert pairs(from_hub(hub, split="train[3:]")) == [("de 3", "en 3"), ("de 4", "en 4")]


def test_a_data_set_and_files_are_read_together(hub, tmp_path):
    read = read_corpora([from_hub(hub, split="test"), files(tmp_path, "a\n", "b\n")])
    assert read[:] == {"source": ["ein", "a"], "target": ["one", "b"], "corpus": [0, 1]}


def test_columns_called_the_other_way_round_are_swapped(hub):
    columns = pa.table({"source": pa.array(["a"], pa.large_string()), "target": pa.array(["b"], pa.large_string())})
    pq.write_table(columns, Path(hub) / "flat" / "train.parquet")
    corpus = Corpus(dataset=hub, subset="flat", source_column="target", target_column="source")
    assert pairs(corpus) == [("b", "a")]
    assert read_corpus(corpus).features == read_corpus(from_hub(hub)).features


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.csv", "source,target\n", "no data"),
        ("train.jsonl", '{"source": "a", "target": "b"}\n{"so\n', "JSON parse error"),
    ],
)
def test_a_data_set_without_rows_or_with_broken_ones_is_refused_with_the_reason(tmp_path, name, content, reason):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / name, content)
    message = refusal(Corpus(dataset=str(folder)))
    assert message.startswith(f"dataset {folder} train: ") and reason in message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"source_column": "translation.dee"},
            "no column translation.dee; there are id, translation.de, translation.en.",
        ),
        ({"source_column": "id"}, "column id holds int64, not strings"),
        ({"subset": "de-fr"}, "de-fr"),
        ({"split": "validation"}, "validation"),
        ({"subset": "flat", "source_column": "de", "target_column": "en"}, "column en has no value in row 1"),
        ({"split": "test[1:]"}, "no data"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(hub, fields, reason):
    message = refusal(from_hub(hub, **fields))
    assert message.startswith(f"dataset {hub}") and reason in message


def test_a_data_set_that_is_nowhere_is_refused(tmp_path):
    assert "nowhere" in refusal(Corpus(dataset=str(tmp_path / "nowhere")))


@pytest.mark.realdata
@pytest.mark.parametrize(("split", "count"), [("train", 29_000), ("val", 1_014), ("test_2016_flickr", 1_000)])
def test_multi30k_has_the_published_number_of_pairs(split, count):
    folder = DATA / "multi30k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set TRANSFORMER_CORE_DATA to the folder that holds multi30k")
    assert len(read_corpus(Corpus(source=f"{folder}/{split}.en.gz", target=f"{folder}/{split}.de.gz"))) == count
