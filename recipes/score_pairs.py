"""Score given translations: print the natural logarithm of the probability that a run gives to each line.

python -m recipes.score_pairs runs/demo --source talks.en --target talks.de
"""

from dataclasses import dataclass
from pathlib import Path

from recipes.config import launch
from recipes.processes import use_machine
from recipes.runs import load
from tasks.errors import InputError
from tasks.translation.evaluate import check_aligned
from tasks.translation.files import read_lines


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Score pairs of sentences with a trained run."""

    run: str
    """Run folder of train_translation."""
    source: str
    """File of source sentences, one a line, plain or .gz."""
    target: str
    """File of their translations."""


def main(recipe: Recipe) -> None:
    """Print one number a line."""
    source, target = read_lines(Path(recipe.source)), read_lines(Path(recipe.target))
    check_aligned({recipe.source: source, recipe.target: target})
    use_machine(0)
    try:
        values = load(recipe.run).log_probabilities(source, target)
    except ValueError as error:  # a pair is longer than the positions that were learned
        raise InputError(f"{recipe.source} and {recipe.target}: {error}") from None
    for value in values:
        print(f"{value:.4f}")


if __name__ == "__main__":
    launch(Recipe, main)
