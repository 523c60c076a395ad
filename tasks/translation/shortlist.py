"""A shortlist of target pieces: those worth considering for a batch of sentences, so that logits are few."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from tasks.errors import InputError, one_line
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from tasks.writing import whole

FILE = "shortlist.safetensors"
"""File of a shortlist in a run folder."""


class Shortlist:
    """Which target pieces may occur in a translation: the most frequent ones, and some for each source piece.

    Source: Jean et al. (2015), section 3.2; pieces go together by how often they meet in a pair, as in L'Hostis et al.
    (2016), "co-occurrence", here measured by the Dice coefficient.
    """

    def __init__(self, frequent: Int[np.ndarray, "frequent"], partners: Int[np.ndarray, "source each"]) -> None:
        self.frequent, self.partners = frequent, partners

    def pieces(self, source: Int[Tensor, "batch length"], *, also: Sequence[int] = ()) -> Int[Tensor, "candidates"]:
        """Return the candidates for a batch of source pieces, ascending, without repeats; marks and `also` are among
        them."""
        seen = np.unique(source.cpu().numpy())
        found = np.unique(np.concatenate([self.frequent, self.partners[seen].ravel(), [PAD, UNK, BOS, EOS], also]))
        found = found.astype(np.int64)
        return torch.from_numpy(found).to(source.device)

    def save(self, folder: Path) -> None:
        """Keep it in a run folder. Raises InputError where the disk refuses."""
        with whole(folder / FILE) as aside:
            aside.write_bytes(save({"frequent": self.frequent, "partners": self.partners}))

    @classmethod
    def load(cls, folder: Path) -> "Shortlist":
        """Read it back. Raises InputError where the folder has none."""
        try:
            return cls(**load_file(folder / FILE))
        except (OSError, SafetensorError, TypeError) as error:
            raise InputError(
                f"{folder / FILE}: cannot be read ({one_line(error)}): make it with `python -m recipes.make_shortlist "
                f"{folder}`."
            ) from None


def count_shortlist(
    pairs: Iterable[tuple[list[int], list[int]]], vocabularies: tuple[int, int], *, frequent: int, each: int
) -> Shortlist:
    """Learn a shortlist from pairs of pieces.

    Args:
        pairs: source and target pieces of sentences that translate each other.
        vocabularies: how many source and target pieces there are.
        frequent: how many of the most frequent target pieces are candidates always.
        each: how many target pieces are candidates because of one source piece.
    """
    sources, targets = vocabularies
    alone = np.zeros(sources, np.int64), np.zeros(targets, np.int64)
    codes, met = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[np.ndarray] = []
    for source, target in pairs:
        own, their = np.unique(source), np.unique(target)
        alone[0][own] += 1
        alone[1][their] += 1
        waiting.append((own[:, None] * targets + their).ravel())
        if len(waiting) == 10_000:
            codes, met = _add(codes, met, waiting)
            waiting = []
    codes, met = _add(codes, met, waiting)
    source, target = np.divmod(codes, targets)
    score = 2 * met / (alone[0][source] + alone[1][target])
    order = np.lexsort((target, -score, source))
    place = np.arange(len(order)) - np.searchsorted(source[order], source[order])
    chosen = order[place < each]
    partners = np.full((sources, each), EOS, np.int64)
    partners[source[chosen], place[place < each]] = target[chosen]
    return Shortlist(np.sort(np.argsort(-alone[1], kind="stable")[:frequent]), partners)


def _add(codes: np.ndarray, met: np.ndarray, more: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Count further meetings."""
    every = np.concatenate([codes, *more])
    weights = np.concatenate([met, np.ones(len(every) - len(codes), np.int64)])
    unique, where = np.unique(every, return_inverse=True)
    return unique, np.bincount(where, weights, len(unique)).astype(np.int64)
