"""Which pairs are fit for training, and a table of what was dropped and why.

For training only: validation and test sets keep every line. Lengths are numbers of pieces, so a limit here is a limit
on what the model sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

if TYPE_CHECKING:
    from datasets import Dataset

RATIO_FROM = 10
"""The ratio is only looked at where the longer side has more pieces than this: short sentences differ freely."""

ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which training pairs are dropped."""

    min_length: int = 1
    """Fewest pieces of either side; a side without any is always dropped."""
    max_length: int = 256
    """Most pieces of either side; longer pairs are dropped, not cut."""
    max_ratio: float = 3.0
    """Most times that the longer side may be as long as the shorter, where it has more than 10 pieces; 0 is off."""
    drop_duplicates: bool = False
    """Keep the first only of pairs that are the same on both sides, over all corpora."""
    drop_copies: bool = False
    """Drop pairs whose target is the source, letter by letter."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(f"min_length={self.min_length} must be from 1 to max_length={self.max_length}.")
        if not (self.max_ratio == 0 or self.max_ratio >= 1):
            raise ValueError(f"max_ratio={self.max_ratio} must be 1 or more, or 0 for no limit.")


@dataclass(frozen=True)
class Dropped:
    """The pairs that one rule dropped."""

    reason: str
    pairs: int
    example: str
    """The first of them, `pair` or `corpus:pair`, both counted from 1; empty where there is none."""


@dataclass(frozen=True)
class Report:
    """What a filter did; every pair counts once, for the first rule in the list that drops it."""

    total: int
    kept: int
    dropped: tuple[Dropped, ...]

    def table(self) -> Table:
        """Return a table to print with rich: reason, pairs, percent of all pairs, and an example to look up."""
        table = Table(
            "Dropped because", title="Training pairs", caption="Pairs are counted from 1; 2:7 is pair 7 of corpus 2."
        )
        for heading in ("Pairs", "Percent", "First"):
            table.add_column(heading, justify="right")
        for rule in self.dropped:
            table.add_row(rule.reason, f"{rule.pairs:,}", self._percent(rule.pairs), rule.example)
        table.add_section()
        table.add_row("kept", f"{self.kept:,}", self._percent(self.kept), "")
        table.add_row("all", f"{self.total:,}", self._percent(self.total), "")
        return table

    def _percent(self, pairs: int) -> str:
        return f"{100 * pairs / max(self.total, 1):.2f}"


def apply_filter(
    dataset: "Dataset", source_lengths: np.ndarray, target_lengths: np.ndarray, rules: Filter
) -> tuple[np.ndarray, Report]:
    """Return the ascending indices of the pairs to keep, and a report of the others.

    The lengths are pieces per pair, (len(dataset),) integers. The text itself is only read for duplicates and copies.
    """
    if not len(dataset) == len(source_lengths) == len(target_lengths):
        raise ValueError(f"{len(source_lengths)} and {len(target_lengths)} lengths for {len(dataset)} pairs.")
    keep = np.ones(len(dataset), dtype=bool)
    dropped = []
    for reason, failing in _failing(dataset, source_lengths, target_lengths, rules):
        found = np.flatnonzero(keep & failing)
        keep[found] = False
        dropped.append(Dropped(reason, len(found), _place(dataset, int(found[0])) if len(found) else ""))
    kept = np.flatnonzero(keep)
    return kept, Report(total=len(dataset), kept=len(kept), dropped=tuple(dropped))


def _failing(
    dataset: "Dataset", source: np.ndarray, target: np.ndarray, rules: Filter
) -> Iterator[tuple[str, np.ndarray]]:
    sides = {"source": source, "target": target}
    shorter, longer = np.minimum(source, target), np.maximum(source, target)
    for side, lengths in sides.items():
        yield f"empty {side}", lengths == 0
    if rules.min_length > 1:
        for side, lengths in sides.items():
            yield f"{side} under {rules.min_length} pieces", lengths < rules.min_length
    for side, lengths in sides.items():
        yield f"{side} over {rules.max_length} pieces", lengths > rules.max_length
    if rules.max_ratio:
        yield (
            f"one side over {rules.max_ratio:g} times the other",
            (longer > RATIO_FROM) & (longer > rules.max_ratio * shorter),
        )
    if rules.drop_duplicates:
        yield "duplicate", _repeated(dataset)
    if rules.drop_copies:
        yield (
            "target is a copy of the source",
            np.array([source == target for source, target in _text(dataset)], dtype=bool),
        )


def _repeated(dataset: "Dataset") -> np.ndarray:
    """True where an earlier pair is the same, by 64-bit digests: small in memory, and no false match to be expected."""
    digests = np.fromiter((_digest(*pair) for pair in _text(dataset)), np.uint64, len(dataset))
    repeated = np.ones(len(dataset), dtype=bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    return repeated


def _digest(source: str, target: str) -> int:
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    text = f"{len(source)} {source}{target}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _text(dataset: "Dataset") -> Iterator[tuple[str, str]]:
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        rows = dataset[start : start + ROWS_AT_ONCE]
        yield from zip(rows["source"], rows["target"], strict=True)


def _place(dataset: "Dataset", index: int) -> str:
    if "corpus" not in dataset.column_names:
        return f"{index + 1}"
    corpora = np.asarray(dataset["corpus"][: index + 1])
    return f"{corpora[index] + 1}:{np.count_nonzero(corpora == corpora[index])}"
