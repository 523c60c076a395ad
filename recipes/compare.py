"""Tell whether one system translates better than another, by paired bootstrap.

    python -m recipes.compare --a old.de --b new.de --references test.de

A difference with a p-value of 0.05 or more may be chance: ask for more sentences before believing it.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.config import launch
from tasks.translation.evaluate import Comparison, ScoreConfig, check_aligned, compare, label
from tasks.translation.files import read_lines


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Compare two systems that translated the same sentences."""

    a: Path
    """Translations of the first system, one per line; plain text or .gz, like every file here."""
    b: Path
    """Translations of the second system."""
    references: Path
    """What people wrote, line by line."""
    more_references: tuple[Path, ...] = ()
    """Files of further translators, as '[second, third]'."""
    score: ScoreConfig = ScoreConfig(bootstrap=1000)
    """How to score, and how often to resample."""


def main(recipe: Recipe) -> None:
    """Read the files, compare them and print."""
    references = (recipe.references, *recipe.more_references)
    texts = {path: read_lines(path) for path in (recipe.a, recipe.b, *references)}
    check_aligned({str(path): lines for path, lines in texts.items()})
    comparisons = compare(texts[recipe.a], texts[recipe.b], [texts[path] for path in references], recipe.score)
    Console().print(table(comparisons))
    for each in comparisons:
        print(f"A {each.a}\nB {each.b}")


def table(comparisons: list[Comparison]) -> Table:
    """Lay out both systems' scores, by how much B exceeds A, and p, with a star below 0.05."""
    caption = "Of 10 pairs of equal systems, 1 gets a star: sacreBLEU's p is near a one-sided one."
    result = Table("Metric", "A", "B", "B - A", "p", caption=caption)
    for each in comparisons:
        star = " *" if each.p_value < 0.05 else ""
        scores = (f"{system.value:.2f}" for system in (each.a, each.b))
        result.add_row(label(each.a.name), *scores, f"{each.difference:+.2f}", f"{each.p_value:.4f}{star}")
    return result


if __name__ == "__main__":
    launch(Recipe, main)
