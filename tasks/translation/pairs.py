"""The text of a translation task, read, cut into pieces and measured, split by split."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import InputError
from tasks.progress import shown
from tasks.task import Split
from tasks.translation.batching import epoch_examples, plan_batches
from tasks.translation.data import MORE_ROOM, ROWS_AT_ONCE, Corpus, kept_folder, read_corpora
from tasks.translation.filters import Filter, Report, apply_filter
from tasks.translation.locale_corpus import locale_pairs
from tasks.translation.vocabulary import Vocabulary, VocabularyConfig, train_vocabulary
from tasks.writing import whole

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDED_EVALUATION = 500
"""Pairs in the validation and in the test part of the embedded corpus."""
PIECES_FORMAT = "pieces 1"
"""Part of the name of every kept array of pieces: raise the number when the encoding changes."""
JOINT, SOURCE, TARGET = "vocabulary.model", "source.model", "target.model"
"""Files of the vocabularies in a run folder."""
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class TextPairs:
    """Parallel text: where it lies, how it is cut into pieces, and how it is gathered into batches."""

    source: str = "en"
    """Language of the source; a CLDR locale such as `en` or `pt_BR` where the embedded corpus is used."""
    target: str = "de"
    """Language of the target."""
    folder: str = "."
    """Where the relative paths of the corpora start."""
    train: list[Corpus] = field(default_factory=list)
    """Corpora to train on, weighted; none: the embedded corpus of dates, numbers and units."""
    valid: list[Corpus] = field(default_factory=list)
    """Corpora to validate on while training; every line is kept."""
    test: list[Corpus] = field(default_factory=list)
    """Corpora to score at the end; every line is kept."""
    embedded: int = 40_000
    """Training pairs that are generated where no corpus is named."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """Pieces of both languages."""
    filter: Filter = field(default_factory=Filter)
    """Which training pairs are dropped."""
    tokens: int = 4096
    """Tokens in a micro-batch, padding counted: rows times the longest side. Memory grows with it; BPE-dropout makes
    sentences, and so the micro-batch, longer than planned by about its share."""
    window: int = 50_000
    """Pairs that are sorted by length together; larger pads less, smaller mixes more freely."""
    seed: int = 1
    """Order of the data and BPE-dropout; the same number gives the same batches on any number of processes."""

    def __post_init__(self) -> None:
        if self.embedded < 1:
            raise ValueError(f"embedded={self.embedded} leaves nothing to train on: choose --data.embedded 1 or more.")
        if self.train and not self.valid:
            raise ValueError("train names corpora and valid none: name the corpora to validate on, --data.valid.")
        if not self.train and (self.valid or self.test):
            raise ValueError("valid or test name corpora and train none: name the corpora to train on, --data.train.")
        if not self.train and self.folder != ".":
            raise ValueError(f"folder={self.folder} is given, and no corpus in it: name some, --data.train.")
        if self.window < 1:
            raise ValueError(f"window={self.window} sorts nothing: choose --data.window 1 or more; 50000 is usual.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: choose --data.seed 0 or more.")
        if self.tokens <= self.filter.max_length:
            raise ValueError(
                f"tokens={self.tokens} holds no pair of filter.max_length={self.filter.max_length} pieces and an end "
                "mark: raise --data.tokens or lower --data.filter.max_length."
            )


class Pieces:
    """The pieces of one side of a split: one flat array and where each row begins, both mapped from disk."""

    def __init__(self, ids: np.ndarray, edges: np.ndarray) -> None:
        self.ids, self.edges = ids, edges

    def __getitem__(self, row: int) -> list[int]:
        return self.ids[self.edges[row] : self.edges[row + 1]].tolist()

    @cached_property
    def lengths(self) -> np.ndarray:
        """Pieces per row, without an end mark."""
        return np.diff(self.edges)


class SplitPairs:
    """One split: its text, its pieces, and the rows that take part."""

    def __init__(self, text: "Dataset", source: Vocabulary, target: Vocabulary) -> None:
        self.text = text
        self.digest = _digest(text)
        """Hash of what its rows say."""
        self.source = _encode(text, "source", source, self.digest)
        self.target = _encode(text, "target", target, self.digest)
        self.rows = np.arange(len(text))


class PairData:
    """All splits of a task with their vocabularies; training pairs are filtered, the others kept line by line."""

    def __init__(self, config: TextPairs, folder: Path) -> None:
        self.config = config
        texts = {split: text for split in SPLITS if (text := read_split(config, split)) is not None}
        self.source, self.target = load_vocabularies(config, folder, texts["train"])
        self.splits = {split: SplitPairs(text, self.source, self.target) for split, text in texts.items()}
        train = self.splits["train"]
        train.rows, self.report = apply_filter(train.text, train.source.lengths, train.target.lengths, config.filter)
        if not len(train.rows):
            raise InputError(
                f"the filter dropped all {len(train.text)} training pairs ({_reasons(self.report)}): "
                "see --data.filter.min_length, max_length and max_ratio."
            )

    def cut(self) -> list[str]:
        """Say of each evaluated split, a line each, how many of its pairs are too long to be read whole, if any."""
        said, limit = [], self.config.filter.max_length
        for split in self.splits.keys() - {"train"}:
            pairs = self.splits[split]
            if count := int((np.maximum(pairs.source.lengths, pairs.target.lengths) > limit).sum()):
                said.append(
                    f"{count:,} of {len(pairs.rows):,} {split} pairs are longer than --data.filter.max_length {limit}: "
                    "they are translated, and references scored by the loss, up to there"
                )
        return sorted(said)

    def plan(self, split: Split, epoch: int) -> list[list[int]]:
        """Gather the rows of a split into micro-batches: a pure function of the configuration and the arguments."""
        pairs, config = self.splits[split], self.config
        rows = pairs.rows
        if split == "train":
            weights = [corpus.weight for corpus in config.train] or [1.0]
            corpus = np.asarray(pairs.text.with_format("numpy")["corpus"][:])
            rows = epoch_examples(rows, corpus, weights, seed=config.seed, epoch=epoch)
        limit = config.filter.max_length
        return plan_batches(
            pairs.source.lengths.clip(max=limit) + 1,
            pairs.target.lengths.clip(max=limit) + 1,
            examples=rows,
            tokens=config.tokens,
            seed=config.seed,
            epoch=epoch,
            window=config.window,
            shuffle=split == "train",
        )

    def ids(self, split: Split, rows: Sequence[int], epoch: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the pieces of both sides of each row; in training freshly sampled where the vocabulary asks for it."""
        pairs, limit = self.splits[split], self.config.filter.max_length
        dropout = self.config.vocabulary.dropout if split == "train" else 0.0
        if not dropout:
            yield from ((pairs.source[row][:limit], pairs.target[row][:limit]) for row in rows)
            return
        text = pairs.text[list(rows)]
        for row, source, target in zip(rows, text["source"], text["target"], strict=True):
            seed = f"{self.config.seed}-{epoch}-{row}"
            sampled = (
                self.source.sample(source, dropout, f"{seed}-source"),
                self.target.sample(target, dropout, f"{seed}-target"),
            )
            # A sample that is too long would be cut, and teach to stop early.
            yield sampled if max(map(len, sampled)) <= limit else (pairs.source[row], pairs.target[row])


def read_split(config: TextPairs, split: Split) -> "Dataset | None":
    """Return the pairs of a split, with the columns of `read_corpora`; None where the configuration names no corpus."""
    if config.train:
        corpora = {"train": config.train, "valid": config.valid, "test": config.test}[split]
        return read_corpora([_placed(corpus, config.folder) for corpus in corpora]) if corpora else None
    from datasets import Dataset

    size = config.embedded if split == "train" else EMBEDDED_EVALUATION
    source, target = zip(*locale_pairs(config.source, config.target, split, size), strict=True)
    return Dataset.from_dict({"source": source, "target": target, "corpus": [0] * len(source)})


def _placed(corpus: Corpus, folder: str) -> Corpus:
    """Let the paths of a corpus start in `folder`."""
    paths = {name: getattr(corpus, name) for name in ("source", "target", "table")}
    placed = {name: Path(folder, Path(path).expanduser()) for name, path in paths.items() if path is not None}
    return replace(corpus, **{name: str(path) for name, path in placed.items()})


def load_vocabularies(config: TextPairs, folder: Path, text: "Dataset") -> tuple[Vocabulary, Vocabulary]:
    """Return the vocabularies of the run folder; at first they are trained, or copied from where they are given."""
    rules = config.vocabulary
    if rules.joint:
        vocabulary = _vocabulary(rules, folder / JOINT, rules.source_model, text, ["source", "target"])
        return vocabulary, vocabulary
    return (
        _vocabulary(rules, folder / SOURCE, rules.source_model, text, ["source"]),
        _vocabulary(rules, folder / TARGET, rules.target_model, text, ["target"]),
    )


def saved_vocabularies(config: TextPairs, folder: Path) -> tuple[Vocabulary, Vocabulary]:
    """Return the vocabularies that a run folder holds."""
    if config.vocabulary.joint:
        vocabulary = _kept(folder / JOINT)
        return vocabulary, vocabulary
    return _kept(folder / SOURCE), _kept(folder / TARGET)


def _vocabulary(
    rules: VocabularyConfig, path: Path, given: str | None, text: "Dataset", columns: list[str]
) -> Vocabulary:
    if not path.exists() and given is not None:
        Vocabulary.load(given).save(path)
    elif not path.exists():
        most = max(1, rules.sentences // len(columns)) if rules.sentences else len(text)
        if most < len(text):  # evenly spaced, so that every corpus has its share
            text = text.select(np.arange(most) * len(text) // most)
        sentences = (line for column in columns for lines in _column(text, column) for line in lines)
        train_vocabulary(shown(sentences, path.name, total=len(text) * len(columns)), rules, path)
    vocabulary = _kept(path)
    if not (checksum := _checksum_file(path)).exists():
        with whole(checksum) as aside:
            aside.write_text(_checksum(vocabulary, path), encoding="utf-8")
    return vocabulary


def _kept(path: Path) -> Vocabulary:
    """Load a vocabulary of a run folder; raise InputError where it is no longer the one that the run began with.

    Another one of the same size would fit the model, and translate nonsense.
    """
    vocabulary, checksum = Vocabulary.load(path), _checksum_file(path)
    if checksum.exists() and checksum.read_text(encoding="utf-8") != _checksum(vocabulary, path):
        raise InputError(
            f"{path} is not the file that the run began with: its SHA-256 is {vocabulary.digest}, and {checksum.name} "
            "says another. Put the first one back, or start a new run."
        )
    return vocabulary


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _checksum(vocabulary: Vocabulary, path: Path) -> str:
    """Return what `sha256sum` writes and checks."""
    return f"{vocabulary.digest}  {path.name}\n"


def _encode(text: "Dataset", column: str, vocabulary: Vocabulary, digest: str) -> Pieces:
    key = hashlib.sha256(f"{PIECES_FORMAT} {digest} {column} {vocabulary.digest}".encode()).hexdigest()
    paths = [kept_folder() / f"{key}.{name}.npy" for name in ("ids", "edges")]
    if not all(path.exists() for path in paths):
        lengths = [np.zeros(1, np.int64)]
        with whole(paths[0], remedy=MORE_ROOM) as aside, TemporaryFile(dir=aside.parent) as pieces:
            # Through a file, because the pieces of all text may be more than memory holds.
            for lines in shown(_column(text, column), f"{column} in pieces", total=len(text), size=ROWS_AT_ONCE):
                encoded = vocabulary.encode_all(lines)
                lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
                np.fromiter((piece for ids in encoded for piece in ids), np.int32).tofile(pieces)
            edges = np.concatenate(lengths).cumsum()
            np.save(aside, np.memmap(pieces, np.int32, "r") if edges[-1] else np.empty(0, np.int32))
        with whole(paths[1], remedy=MORE_ROOM) as aside:
            np.save(aside, edges)
    return Pieces(*(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths))


def _column(text: "Dataset", column: str) -> Iterator[list[str]]:
    rows: Any
    for rows in text.select_columns([column]).iter(ROWS_AT_ONCE):
        yield rows[column]


def _digest(text: "Dataset") -> str:
    """Hash what the rows say: an edited file of the same name, size and time is another text."""
    result = hashlib.sha256()
    table: Any
    for table in text.with_format("arrow").iter(ROWS_AT_ONCE):
        for batch in table.select(["source", "target"]).combine_chunks().to_batches():
            result.update(batch.serialize())
    return result.hexdigest()


def _reasons(report: Report) -> str:
    return ", ".join(f"{rule.reason}: {rule.pairs}" for rule in report.dropped if rule.pairs)
