"""Find out which target pieces are worth considering for which source pieces, from the training pairs of a run.

python -m recipes.make_shortlist runs/demo
python -m recipes.translate runs/demo --shortlist --input talks.en --output talks.de
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from recipes import train_translation
from recipes.config import launch, recipe_of
from recipes.tracking import console
from tasks.translation.pairs import PairData
from tasks.translation.shortlist import FILE, count_shortlist


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Make the shortlist of a run."""

    run: str
    """Run folder of train_translation, whose recipe says where the training pairs lie."""
    frequent: int = 400
    """The most frequent target pieces, which are considered always."""
    each: int = 60
    """Target pieces that are considered because of one source piece."""
    pairs: int = 1_000_000
    """Training pairs that are read at most."""

    def __post_init__(self) -> None:
        for name in ("frequent", "each", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: choose 1 or more.")


def main(recipe: Recipe) -> None:
    """Count, and keep the shortlist in the run folder."""
    folder = Path(recipe.run)
    data = PairData(recipe_of(train_translation.Recipe, folder).data, folder)
    split = data.splits["train"]
    pairs = ((split.source[row], split.target[row]) for row in islice(split.rows.tolist(), recipe.pairs))
    sizes = len(data.source), len(data.target)
    count_shortlist(pairs, sizes, frequent=recipe.frequent, each=recipe.each).save(folder)
    console().print(f"wrote {folder / FILE}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    launch(Recipe, main)
