"""The largest batch of each library in equal memory, and what an image or a sentence takes of it in training.

    python -m benchmarks.memory
    python -m benchmarks.memory --task text --shape base --memory_gb 8

No data are needed: images are noise, sentences have 32 tokens on both sides, of a vocabulary of 10,000. Each batch
trains in a process of its own, two updates with AdamW, out of the box; what counts is the most that the process held,
PyTorch itself included. glibc is told to give back what is free (`HEAP`): the holes in its heap, which differ from run
to run, would hide what a library holds. Memory grows almost in proportion to the batch: two small ones give a line,
which says how large a batch fits; that batch is run, and where it needs more, smaller ones are, so that the last
columns are measured. "recompute" is ours with the activations of the blocks computed again in the backward pass
(model.block.recompute); an image of a large batch takes more there than the line says.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, NamedTuple
from unittest.mock import patch

import torch

from benchmarks import training_text
from benchmarks.peers import images, text
from benchmarks.result import command, machine, versions
from benchmarks.tables import Sheet, keep
from benchmarks.worker import Contender, Failed, Setting, Step, Worker
from recipes.config import launch
from recipes.train_translation import Recipe as Translation
from tasks.translation.model import TranslationConfig

GB = 1024**3
LENGTH, VOCABULARY = 32, 10_000
"""Tokens of a sentence, and how many there are."""
HEAP = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's usual threshold, which does not rise if it is set: each block above it has pages of its own, and returns
them."""
RECOMPUTE = ", recompute"
"""Ends the name of ours where activations are computed again."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Find the largest batch that trains in a given memory."""

    task: Literal["images", "text"] = "images"
    """ViT-Ti/16 on images of 224 pixels, or a translation model."""
    shape: Literal["small", "base"] = "small"
    """Dimension 256 and 3 + 3 blocks, or Transformer-base, for translation."""
    memory_gb: float = 3.0
    """Memory of a process, in units of 1024^3 bytes."""
    only: list[str] = field(default_factory=list)
    """Names of the libraries that take part; empty: all that are installed."""
    out: str = "benchmarks/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        if self.memory_gb <= 0:
            raise ValueError(f"--memory_gb {self.memory_gb}: give some memory.")


class Size(NamedTuple):
    """Two small batches, in what a batch counts: images or sentences."""

    small: int
    larger: int


CLOSE = 0.95
"""Share of the memory that a batch found by trying fills at least."""
SIZES = {"images": Size(4, 12), "text": Size(32, 96)}


@dataclass(frozen=True)
class Fit:
    """What was found of one library."""

    name: str
    each: float
    """Bytes of an image or a sentence, of small batches."""
    fixed: float
    """Bytes of a process that trains on nothing: PyTorch, weights, gradients, moments."""
    largest: int
    """Images or sentences that fit."""
    peak: int
    """Bytes that the process held that trained on so many."""


def main(recipe: Recipe) -> None:
    """Measure one library after the other, and write the table."""
    found: list[Fit] = []
    left_out: dict[str, str] = {}
    for name in names(recipe):
        try:
            found.append(fit(recipe, name))
        except Failed as failure:
            left_out[name] = str(failure).partition("\n")[0]
    sheet = make_sheet(recipe, found, left_out)
    keep(sheet, recipe.out, f"memory_{recipe.task}", fits=[asdict(each) for each in found])


def names(recipe: Recipe) -> list[str]:
    """Return who takes part."""
    peers = images.PEERS if recipe.task == "images" else text.PEERS
    everybody = [
        "transformer_core",
        f"transformer_core{RECOMPUTE}",
        *(name for name in peers if name != "transformer_core"),
    ]
    return [name for name in everybody if not recipe.only or name in recipe.only]


def fit(recipe: Recipe, name: str) -> Fit:
    """Run the batch that the line through two small ones says fits; where it does not, look between it and those.

    Memory may grow in jumps, where lines lead nowhere: each step goes a quarter of the way that is left, or further.

    Raises Failed as `peak` does.
    """
    limit, sizes = recipe.memory_gb * GB, SIZES[recipe.task]
    below, above = ((size, peak(recipe, name, size)) for size in sizes)
    each = (above[1] - below[1]) / (above[0] - below[0])
    fixed = below[1] - each * below[0]
    if below[1] > limit:
        return Fit(name, each, fixed, 0, 0)
    while True:
        left, fits = above[0] - below[0], above[1] <= limit
        if left == 1 and not fits:
            return Fit(name, each, fixed, *below)
        slope = max(1.0, (above[1] - below[1]) / left)
        least = above[0] + 1 if fits else below[0] + -(-left // 4)
        size = max(int(below[0] + (limit - below[1]) / slope), least)
        found = peak(recipe, name, size)
        if CLOSE * limit < found <= limit:
            return Fit(name, each, fixed, size, found)
        if fits:
            below, above = above, (size, found)
        elif found > limit:
            above = size, found
        else:
            below = size, found


def peak(recipe: Recipe, name: str, size: int) -> int:
    """Train on a batch of so many images or sentences in a fresh process, and return the bytes that it held at most.

    Raises Failed where the library is missing or cannot do it.
    """
    bare = name.removesuffix(RECOMPUTE)
    make, arguments = (train_images if recipe.task == "images" else train_text), (recipe, bare, bare != name, size)
    worker = Worker(Contender(name=name, make=make, arguments=arguments), warmup=2)
    with patch.dict(os.environ, HEAP), worker:
        return worker.ask("start")


def train_images(setting: Setting, recipe: Recipe, name: str, recompute: bool, size: int) -> Step:
    """Return the update of a Vision Transformer on so many images."""
    work = images.ImageWork(224, 16, depth=12, dim=192, num_heads=3, hidden_dim=768, batch=size, recompute=recompute)
    return images.training(setting, name, work)


def train_text(setting: Setting, recipe: Recipe, name: str, recompute: bool, size: int) -> Step:
    """Return the update of a translation model on so many sentences."""
    block, depth = training_text.BLOCKS[recipe.shape]
    model = TranslationConfig(block=replace(block, recompute=recompute), encoder_depth=depth, decoder_depth=depth)
    sentence = [VOCABULARY - 1] * (LENGTH - 1)  # and its mark
    work = text.TextWork(Translation(model=model), VOCABULARY, [[(sentence, sentence)] * size])
    return text.training(setting, name, work)


def make_sheet(recipe: Recipe, found: Sequence[Fit], left_out: dict[str, str]) -> Sheet:
    """Lay out what was found, a row each, the largest batch first."""
    unit = "image" if recipe.task == "images" else "sentence"
    small, larger = SIZES[recipe.task]
    head = ["", f"MB for each {unit}, of {small} to {larger}", "MB for none", f"largest batch, {unit}s", "MB of it"]
    rows = [
        [
            each.name,
            f"{each.each / 2**20:,.2f}",
            f"{each.fixed / 2**20:,.0f}",
            f"{each.largest:,}",
            f"{each.peak / 2**20:,.0f}",
        ]
        for each in sorted(found, key=lambda each: -each.largest)
    ]
    facts = machine()
    notes = [
        f"`{command()}`. {facts['processor']}, {facts['cores']} cores, torch {torch.__version__}, "
        + ", ".join(f"{name} {version}" for name, version in versions().items() if name != "torch")
        + "."
    ]
    if left_out:
        notes.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in left_out.items()) + ".")
    block, depth = training_text.BLOCKS[recipe.shape]
    text = f"translation, d {block.dim}, {depth} + {depth} blocks, {LENGTH} tokens a sentence"
    what = "ViT-Ti/16, 224 pixels" if recipe.task == "images" else text
    return Sheet(f"Training in {recipe.memory_gb:g} GB: {what}", head, rows, notes)


if __name__ == "__main__":
    launch(Recipe, main)
