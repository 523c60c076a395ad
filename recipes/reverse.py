"""Reverse a string of digits: the smallest task, to see what a task is and the loop at work.

    python -m recipes.reverse
    accelerate launch -m recipes.reverse --train.lr 3e-3 --train.out runs/faster

Expected: more than 99 % of unseen strings right to the last digit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from recipes.config import launch
from recipes.ladder import Expected, finish
from recipes.loop import train
from recipes.train_config import TrainConfig
from tasks.task import Loss, Split, Task
from transformer_core import BlockConfig, CachedState, Decoder, Encoder, Linear, Memory, TokenEmbedding
from transformer_core.search import SearchConfig, search

PAD, BOS, EOS, ZERO = 0, 1, 2, 3
VOCABULARY = ZERO + 10


@dataclass(frozen=True, kw_only=True)
class Strings:
    """Strings of digits: every one follows from the seed, its epoch and its index."""

    longest: int = 10
    """Digits of the longest string; the shortest has one."""
    train: int = 6_400
    """Strings of an epoch; no two epochs have the same."""
    valid: int = 500
    """Strings to validate on."""
    batch: int = 64
    """Strings of a micro-batch."""
    seed: int = 1
    """Another number gives other strings."""


class Batch(NamedTuple):
    """Some strings, padded on the right."""

    rows: list[int]
    source: Tensor
    """(batch, length) the digits."""
    target: Tensor
    """(batch, length + 1) what the decoder has seen: a begin mark and the digits reversed."""
    labels: Tensor
    """(batch, length + 1) what it is to say next: the digits reversed and an end mark."""


class Reverser(nn.Module):
    """An encoder and a decoder."""

    def __init__(self, block: BlockConfig, depth: int) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(VOCABULARY, block, pad_id=PAD)
        self.encoder, self.decoder = Encoder(block, depth), Decoder(block, depth)
        self.output = Linear(block.dim, VOCABULARY)

    def read(self, source: Tensor) -> Memory:
        """Encode strings, padded on the right, for the decoder."""
        mask = (source != PAD)[:, None, None]
        return self.decoder.read(self.encoder(self.embedding(source), mask), mask)

    def start(self, source: Tensor, capacity: int) -> CachedState:
        """Return what a search carries from token to token."""
        return CachedState(self.decoder, self.embedding, self.output, self.read(source), beams=1, capacity=capacity)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of each next token, (batch, target length, vocabulary)."""
        return self.output(self.decoder(self.embedding(target), self.read(source)))


class Reverse(Task[Batch]):
    """Say the digits of a string from the last to the first."""

    def __init__(self, strings: Strings, block: BlockConfig, depth: int) -> None:
        self.strings, self.block, self.depth = strings, block, depth

    def prepare(self, folder: Path) -> None:
        """There is nothing to read or to keep."""

    def build(self) -> Reverser:
        """Return a fresh model."""
        return Reverser(self.block, self.depth)

    def plan(self, split: Split, epoch: int) -> list[range]:
        """Take the strings as they come."""
        count, size = getattr(self.strings, split), self.strings.batch
        return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def digits(self, split: Split, epoch: int, row: int) -> list[int]:
        """Draw one string."""
        draw = random.Random(f"{self.strings.seed}-{split}-{epoch}-{row}")
        return [ZERO + draw.randrange(10) for _ in range(draw.randint(1, self.strings.longest))]

    def batch(self, split: Split, indices: Sequence[int], epoch: int) -> Batch:
        """Draw, reverse and pad some strings."""
        strings = [self.digits(split, epoch, row) for row in indices]
        return Batch(
            list(indices),
            _pad(strings),
            _pad([[BOS, *string[::-1]] for string in strings]),
            _pad([[*string[::-1], EOS] for string in strings]),
        )

    def targets(self, batch: Batch) -> int:
        """Count digits and end marks."""
        return int((batch.labels != PAD).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum the cross-entropy of digits and end marks."""
        logits = model(batch.source, batch.target)
        return Loss(F.cross_entropy(logits.mT, batch.labels, ignore_index=PAD, reduction="sum"), {})

    def predict(self, split: Split, model: nn.Module, batch: Batch) -> list[tuple[int, list[int]]]:
        """Let the model speak freely, one token after the other."""
        assert isinstance(model, Reverser)
        limits = torch.full((len(batch.rows),), self.strings.longest + 1, device=batch.source.device)
        state = model.start(batch.source, capacity=self.strings.longest + 2)
        found = search(state, SearchConfig(beams=1), max_lengths=limits, bos_id=BOS, eos_id=EOS)
        return [(row, hypotheses[0].ids) for row, hypotheses in zip(batch.rows, found, strict=True)]

    def measure(self, split: Split, outputs: Sequence[list[int]]) -> dict[str, float]:
        """Return the share of strings that are right from the first digit to the end mark."""
        right = [said[::-1] == self.digits(split, 0, row) for row, said in enumerate(outputs)]
        return {"exact": sum(right) / len(right)}

    def samples(self, split: Split, outputs: Sequence[list[int]]) -> list[str]:
        """Show the first strings and what was said."""
        return [f"  {_text(self.digits(split, 0, row))} -> {_text(said)}" for row, said in enumerate(outputs[:3])]


def _pad(rows: Sequence[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def _text(ids: Sequence[int]) -> str:
    return "".join(str(token - ZERO) if token >= ZERO else "?" for token in ids)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Reverse strings of digits."""

    data: Strings = field(default_factory=Strings)
    block: BlockConfig = field(default_factory=lambda: BlockConfig(dim=64, num_heads=4, hidden_dim=256, dropout=0.0))
    depth: int = 1
    """Blocks of the encoder, and of the decoder."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            out="runs/reverse", steps=1_000, lr=4e-3, warmup=100, schedule="cosine", monitor="exact"
        )
    )


def main(recipe: Recipe) -> None:
    """Train, then choose the final weights."""
    task = Reverse(recipe.data, recipe.block, recipe.depth)
    finish(task, train(task, recipe.train, recipe), recipe.train, Expected(metric="exact", at_least=0.99), ["valid"])


if __name__ == "__main__":
    launch(Recipe, main)
