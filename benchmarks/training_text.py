"""Target tokens a second of a training step, beside the libraries that people use.

    python -m benchmarks.training_text
    python -m benchmarks.training_text --shape base --config recipes/multi30k_en_de.yaml --data.folder DATA/multi30k/tok
    python -m benchmarks.training_text --shape recipe --config recipes/multi30k_en_de.yaml --data.folder …

The data, and with them the distribution of lengths, are those of a translation recipe; without one, of the embedded
corpus. All libraries get the same micro-batches. How they differ otherwise is said in benchmarks/peers/text.py.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.duel import DuelConfig, duel, in_all_settings
from benchmarks.peers import text
from benchmarks.tables import publish
from recipes.config import launch
from recipes.train_translation import Recipe as Translation
from tasks.errors import InputError
from tasks.translation.task import Translation as Task
from transformer_core import BlockConfig

Shape = Literal["small", "base", "big", "recipe"]
BLOCKS = {
    "small": (BlockConfig(dim=256, num_heads=8, hidden_dim=1024, order="post", dropout=0.1), 3),
    "base": (BlockConfig(dim=512, num_heads=8, hidden_dim=2048, order="post", dropout=0.1), 6),
    "big": (BlockConfig(dim=1024, num_heads=16, hidden_dim=4096, order="post", dropout=0.3), 6),
}
"""Blocks, and how many of them encoder and decoder have each; the last two of Vaswani et al. (2017), table 3."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Translation):
    """Measure the training step of a translation model."""

    shape: Shape = "small"
    """Dimension 256 and 3 + 3 blocks, Transformer-base or -big, or the model of the recipe; the first three take
    batches of `target_tokens`, the last one those of the recipe."""
    target_tokens: int = 2048
    """Target tokens of a batch, padding counted."""
    duel: DuelConfig = field(default_factory=lambda: DuelConfig(rounds=5, steps=6, warmup=6))


def main(recipe: Recipe) -> None:
    """Cut the batches, then let all train on them."""
    if recipe.shape != "recipe":
        block, depth = BLOCKS[recipe.shape]
        model = replace(recipe.model, block=block, encoder_depth=depth, decoder_depth=depth, tie="all")
        recipe = replace(recipe, model=model, data=replace(recipe.data, tokens=recipe.target_tokens))
    if recipe.model.tie != "all":
        raise InputError("the peers share one matrix between all embeddings and the output: give --model.tie all.")
    work = read_work(recipe, recipe.duel.steps)
    needs = {name: package for name, (package, _) in text.PEERS.items()}
    contenders = in_all_settings(needs, text.training, work, recipe.duel)
    block, depth = recipe.model.block, recipe.model.encoder_depth
    title = f"Training step, translation, d {block.dim}, {depth} + {recipe.model.decoder_depth} blocks"
    publish(duel(title, "tokens", contenders, recipe.duel), recipe.duel.out, f"training_text_{recipe.shape}")


def read_work(recipe: Translation, batches: int) -> text.TextWork:
    """Read so many batches of the recipe's first epoch, as a turn has steps.

    They come again in each turn, after the steps before the first one: a long run knows all its shapes, too.
    """
    with TemporaryDirectory() as folder:
        task = Task(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
        task.prepare(Path(folder))
        plan = task.plan("train", 0)[:batches]
        pieces = [list(task.pairs.ids("train", rows, 0)) for rows in plan]
        return text.TextWork(recipe, len(task.pairs.source), pieces)


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_en_de.yaml")
