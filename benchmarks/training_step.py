"""Target tokens a second of a training step, beside torch.nn.Transformer on equal work.

    python -m benchmarks.training_step --config recipes/multi30k_en_de.yaml --data.folder DATA/multi30k/tok

Both sides get the same micro-batches of the recipe, the same width, depth, dropout, tied embeddings, loss and fused
optimizer. They alternate, update by update; the table has medians.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from recipes.config import launch
from recipes.processes import use_machine
from recipes.tracking import console
from recipes.train_translation import Recipe as Translation
from tasks.translation.model import TranslationConfig
from tasks.translation.task import Batch
from tasks.translation.task import Translation as Task
from tasks.translation.vocabulary import PAD
from transformer_core import sinusoidal_table


@dataclass(frozen=True, kw_only=True)
class Recipe(Translation):
    """Measure the training step of a translation recipe."""

    updates: int = 12
    """Updates that are timed for each side, after two that are not."""


class Peer(nn.Module):
    """torch.nn.Transformer with the embeddings and the output layer of our model."""

    def __init__(self, config: TranslationConfig, vocabulary: int) -> None:
        super().__init__()
        block = config.block
        self.embedding = nn.Embedding(vocabulary, block.dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=block.dim**-0.5)
        self.register_buffer("positions", sinusoidal_table(1024, block.dim).float())
        self.dropout = nn.Dropout(block.dropout)
        self.transformer = nn.Transformer(
            block.dim,
            block.num_heads,
            config.encoder_depth,
            config.decoder_depth,
            block.hidden_dim,
            block.dropout,
            block.activation,
            batch_first=True,
            norm_first=block.order == "pre",
        )

    positions: Tensor

    def embed(self, ids: Tensor) -> Tensor:
        """Embed (batch, length) tokens with their positions."""
        scale = math.sqrt(self.embedding.embedding_dim)
        return self.dropout(self.embedding(ids) * scale + self.positions[: ids.size(1)])

    def forward(self, batch: Batch) -> Tensor:
        """Return the summed label-smoothed loss of a batch."""
        padding = None if batch.mask is None else ~batch.mask[:, 0, 0]
        causal = nn.Transformer.generate_square_subsequent_mask(batch.target.size(1))
        states = self.transformer(
            self.embed(batch.source),
            self.embed(batch.target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        logits = states.flatten(0, 1)[batch.positions] @ self.embedding.weight.T
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.1, reduction="sum")


def main(recipe: Recipe) -> None:
    """Time both sides in float32 and under bf16 autocast."""
    threads = use_machine(0)
    with TemporaryDirectory() as folder:
        task = Task(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
        task.prepare(Path(folder))
        plan = task.plan("train", 0)[: recipe.updates + 2]
        batches = [task.batch("train", rows, 0) for rows in plan]
    ours, peer = task.build(), Peer(recipe.model, len(task.pairs.source))
    sides: dict[str, tuple[nn.Module, Callable[[Batch], Tensor]]] = {
        "transformer_core": (ours, lambda batch: task.loss(ours, batch).total),
        "torch.nn.Transformer": (peer, peer),
    }
    title = f"{threads} threads, torch {torch.__version__}"
    table = Table("training step", "float32, tokens/s", "bf16 autocast, tokens/s", title=title)
    rates = {precision: measure(sides, batches, precision) for precision in (torch.float32, torch.bfloat16)}
    for name in sides:
        table.add_row(name, *(f"{rates[precision][name]:,.0f}" for precision in rates))
    console().print(table)


def measure(
    sides: dict[str, tuple[nn.Module, Callable[[Batch], Tensor]]], batches: list[Batch], precision: torch.dtype
) -> dict[str, float]:
    """Return the median target tokens a second of each side; the first two batches warm up."""
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-4, fused=True) for name, (model, _) in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        for name, (_, loss) in sides.items():
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                total = loss(batch)
            (total / len(batch.labels)).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            rates[name].append(len(batch.labels) / (time.perf_counter() - began))
    return {name: statistics.median(values[2:]) for name, values in rates.items()}


if __name__ == "__main__":
    launch(Recipe, main)
