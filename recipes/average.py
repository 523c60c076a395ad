"""Average the weights of the last checkpoints of a run (Vaswani et al. 2017, section 6.1).

python -m recipes.average runs/demo --last 5 --output runs/demo/averaged.safetensors
python -m recipes.translate runs/demo --weights '[runs/demo/averaged.safetensors]'
"""

from dataclasses import dataclass
from pathlib import Path

from recipes import checkpoint
from recipes.config import launch
from recipes.state import CHECKPOINTS, mean_weights
from tasks.errors import InputError
from tasks.writing import whole


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Average checkpoints of a run."""

    run: str
    """Run folder of a training recipe."""
    output: str
    """File to write."""
    last: int | None = None
    """How many checkpoints, counted from the newest; null: all that the run kept."""


def main(recipe: Recipe) -> None:
    """Average and write."""
    paths = checkpoint.list_checkpoints(Path(recipe.run, CHECKPOINTS))
    if not paths:
        raise InputError(f"{recipe.run} has no {CHECKPOINTS}/step-*: name the run folder of a training recipe.")
    last = len(paths) if recipe.last is None else recipe.last
    if not 1 <= last <= len(paths):
        raise InputError(f"{recipe.run} has {len(paths)} checkpoints: choose --last from 1 to {len(paths)}.")
    with whole(Path(recipe.output)) as aside:
        checkpoint.write_tensors(aside, mean_weights(paths[-last:]))


if __name__ == "__main__":
    launch(Recipe, main)
