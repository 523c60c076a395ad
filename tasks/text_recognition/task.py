"""Reading text in images: an encoder of patches and a decoder of characters, as the training loop sees them.

`docs/new_task.md` walks through this file for those who have a task of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tasks.names import keep_names, read_names
from tasks.task import Loss, Split, Task
from tasks.text_recognition.lines import Lines, TextImages
from tasks.text_recognition.model import BOS, EOS, PAD, UNKNOWN, Reader, ReaderConfig
from transformer_core import FactoredLogits, linear_cross_entropy
from transformer_core.search import SearchConfig, search

CHARACTERS = "characters.json"
"""File of the characters in a run folder."""


class Batch(NamedTuple):
    """A micro-batch; `labels`, (tokens,), are what follows the tokens at `positions` of the flattened target."""

    rows: list[int]
    texts: list[str]
    images: Tensor
    target: Tensor
    positions: Tensor
    labels: Tensor


class TextRecognition(Task[Batch]):
    """Read text in images: data, model, loss, search and scores."""

    falling = frozenset({"cer", "wer"})
    unit = "characters"

    def __init__(self, data: TextImages, model: ReaderConfig, search: SearchConfig, corpus: Sequence[str]) -> None:
        self.data, self.model, self.search, self.corpus = data, model, search, corpus

    def prepare(self, folder: Path) -> None:
        """Open the images; the run folder keeps the characters, so that ids stay what they are."""
        self.lines = Lines(self.data, self.corpus)
        keep_names(self.lines.characters, folder / CHARACTERS, of="characters")
        self.restore(folder)

    def digest(self) -> str:
        """Hash the texts to train and validate on."""
        return self.lines.digest()

    def restore(self, folder: Path) -> None:
        """Take the characters that a run folder keeps, which is all that reading needs.

        Raises InputError where it keeps none.
        """
        self.names = ["", "", "", "", *read_names(folder / CHARACTERS)]
        self.ids = {char: id for id, char in enumerate(self.names) if char}

    def build(self) -> Reader:
        """Return a fresh model for the characters of the run."""
        return Reader(self.model, len(self.names), channels=self.data.channels, size=self.data.size)

    def plan(self, split: Split, epoch: int) -> list[list[int]]:
        """Shuffle the training images anew each epoch; take the others as they come."""
        rows, size = np.arange(self.lines.sizes[split]), self.data.batch
        if split == "train":
            np.random.default_rng([self.data.seed, epoch]).shuffle(rows)
        return [rows[begin : begin + size].tolist() for begin in range(0, len(rows), size)]

    def batch(self, split: Split, indices: Sequence[int], epoch: int) -> Batch:
        """Render or read some images and put the marks around their texts."""
        images, texts = zip(*(self.lines.example(split, row, epoch) for row in indices), strict=True)
        ids = [torch.tensor([BOS, *(self.ids.get(char, UNKNOWN) for char in text), EOS]) for text in texts]
        target = pad_sequence([each[:-1] for each in ids], batch_first=True, padding_value=PAD)
        positions = (target != PAD).flatten().nonzero()[:, 0]
        return Batch(
            list(indices), list(texts), torch.stack(images), target, positions, torch.cat([each[1:] for each in ids])
        )

    def targets(self, batch: Batch) -> int:
        """Count characters and end marks."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum the cross-entropy of the characters."""
        logits = FactoredLogits(*model(batch.images, batch.target, batch.positions))
        return Loss(linear_cross_entropy(logits, batch.labels).smoothed, {})

    def predict(self, split: Split, model: nn.Module, batch: Batch) -> list[tuple[int, tuple[str, str]]]:
        """Return what is read and what is written."""
        return list(zip(batch.rows, zip(self.read(model, batch.images), batch.texts, strict=True), strict=True))

    def read(self, model: nn.Module, images: Tensor) -> list[str]:
        """Return the text of each image, (batch, channels, height, width) uint8."""
        assert isinstance(model, Reader)
        limits = torch.full((len(images),), self.search.max_length, device=images.device)
        state = model.start(images, beams=self.search.rows_per_sentence, capacity=self.search.max_length + 1)
        banned = PAD, BOS, UNKNOWN
        found = search(state, self.search, max_lengths=limits, bos_id=BOS, eos_id=EOS, banned=banned)
        return ["".join(self.names[id] for id in hypotheses[0].ids) for hypotheses in found]

    def measure(self, split: Split, outputs: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Return character and word error rate, in percent: edits over the length of what is written."""
        from torchmetrics.functional.text import char_error_rate, word_error_rate  # takes seconds

        read, written = [read for read, _ in outputs], [written for _, written in outputs]
        rates = {"cer": char_error_rate(read, written), "wer": word_error_rate(read, written)}
        return {name: 100 * float(rate) for name, rate in rates.items()}

    def samples(self, split: Split, outputs: Sequence[tuple[str, str]]) -> list[str]:
        """Return a few texts under what was read."""
        return [f"  read     {read}\n  written  {written}" for read, written in outputs[:3]]
