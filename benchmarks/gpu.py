"""Training steps on a GPU in bfloat16, eager and compiled, beside the libraries that people use.

    python -m benchmarks.gpu --config recipes/multi30k_en_de.yaml --data.folder DATA/multi30k/tok
    python -m benchmarks.gpu --shapes '[vit_b]' --duel.rounds 8

Translation trains on the sentences of the recipe, Vision Transformers on noise of 224 pixels. "Of the limit" is the
share of the rate of a product of two bfloat16 matrices in the same run; the operations are those of our model. How the
libraries differ is said in benchmarks/peers. All models of all shapes take part in one duel: while one computes, the
others hold weights, but no activations.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch

from benchmarks.duel import GPU_LIMIT, DuelConfig, installed, play, warmed_up
from benchmarks.peers import images, text
from benchmarks.peers.images import ImageWork
from benchmarks.result import Result
from benchmarks.tables import publish
from benchmarks.training_text import BLOCKS, read_work
from benchmarks.worker import Contender
from recipes.config import launch
from recipes.train_translation import Recipe as Translation
from tasks.errors import InputError

TITLES = {
    "base": "Transformer-base",
    "big": "Transformer-big",
    "vit_s": "ViT-S/16",
    "vit_b": "ViT-B/16",
    "vit_l": "ViT-L/16",
}
"""Transformers of Vaswani et al. (2017), table 3, and Vision Transformers of Dosovitskiy et al. (2021), table 1."""
TOKENS = {"base": 25_000, "big": 12_000}
"""Target tokens of a batch, padding counted."""
IMAGES = {
    "vit_s": ImageWork(224, 16, depth=12, dim=384, num_heads=6, hidden_dim=1536, batch=256),
    "vit_b": ImageWork(224, 16, depth=12, dim=768, num_heads=12, hidden_dim=3072, batch=192),
    "vit_l": ImageWork(224, 16, depth=24, dim=1024, num_heads=16, hidden_dim=4096, batch=96),
}
NEEDS = {"transformer_core": "", "transformers": "transformers", "timm": "timm"}
"""Who takes part where it knows the shape, and the package of each."""
DEVICE = "cuda"


Shape = Literal["base", "big", "vit_s", "vit_b", "vit_l"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Translation):
    """Measure training steps on a GPU."""

    shapes: list[Shape] = field(default_factory=lambda: ["base", "big", "vit_s", "vit_b", "vit_l"])
    """What is trained, one after the other."""
    duel: DuelConfig = field(default_factory=lambda: DuelConfig(steps=6, warmup=6, pause=0.0))

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError(f"--shapes names none: choose among {', '.join(TITLES)}.")


class Match(NamedTuple):
    """Who is compared with each other, ours first, and what was found."""

    shape: str
    contenders: list[Contender]
    result: Result


def main(recipe: Recipe) -> None:
    """Let all train by turns, then make a table for each shape."""
    if not torch.cuda.is_available():
        raise InputError("benchmarks.gpu needs a CUDA device: training_text and training_images measure CPUs.")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # of each process
    matches = [match(recipe, shape) for shape in recipe.shapes]
    with ExitStack() as stack:
        # Shape by shape, so that large models warm up beside small ones.
        rows = zip_longest(*([(each, match.result) for each in match.contenders] for match in matches))
        everybody = [place for row in rows for place in row if place is not None]
        limit, *workers = warmed_up([(GPU_LIMIT, matches[0].result), *everybody], recipe.duel, stack)
        play([limit, *workers], recipe.duel)
        for shape, own, result in matches:
            result.add(limit.entry)
            for worker in (worker for worker in workers if any(worker.contender is each for each in own)):
                result.flops = result.flops or worker.ask("flops")
                result.add(worker.entry)
            publish(result, recipe.duel.out, f"gpu_{shape}")


def match(recipe: Recipe, shape: Shape) -> Match:
    """Name who trains a shape, eager and compiled."""
    work: ImageWork | text.TextWork
    if shape in IMAGES:
        work, make = IMAGES[shape], images.training
        title, unit, peers = f"{TITLES[shape]}, 224 pixels, batch {work.batch}", "images", images.PEERS
    else:
        block, depth = BLOCKS[shape]
        model = replace(recipe.model, block=block, encoder_depth=depth, decoder_depth=depth, tie="all")
        data = replace(recipe.data, tokens=TOKENS[shape])
        work, make = read_work(replace(recipe, model=model, data=data), recipe.duel.steps), text.training
        title, unit, peers = f"{TITLES[shape]}, {TOKENS[shape]:,} target tokens", "tokens", text.PEERS
    contenders = [
        Contender(
            name=name,
            needs=NEEDS[name],
            make=make,
            arguments=(name, replace(work, device=DEVICE, compiled=compiled)),
            setting="bf16",
            ours=name == "transformer_core",
            league="compiled" if compiled else "eager",
        )
        for compiled in (False, True)
        for name in NEEDS
        if name in peers
    ]
    result = Result(title=f"Training step on a GPU in bf16, {title}", unit=unit, sittings=1)
    return Match(shape, installed(contenders, recipe.duel, result), result)


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_en_de.yaml")
