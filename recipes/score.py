"""Score translations against references.

    python -m recipes.score --hypotheses out.de --references test.de
    python -m recipes.score --hypotheses out.de.gz --references test.de --sources test.en --json true

Prints BLEU, chrF2 and TER with 95 % intervals and signatures, and how the translations misbehave.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.config import launch
from tasks.translation.evaluate import Score, ScoreConfig, behaviour, check_aligned, score, table
from tasks.translation.files import read_lines


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Score translations against references."""

    hypotheses: Path
    """The translations, one per line; plain text or .gz, like every file here."""
    references: Path
    """What people wrote, line by line."""
    more_references: tuple[Path, ...] = ()
    """Files of further translators, as '[second, third]'."""
    sources: Path | None = None
    """What was translated; counts the lines that were copied instead."""
    score: ScoreConfig = ScoreConfig(bootstrap=1000)
    """How to score."""
    json: bool = False
    """Print JSON for programs instead of tables."""


def main(recipe: Recipe) -> None:
    """Read the files, score them and print."""
    references = (recipe.references, *recipe.more_references)
    paths = [recipe.hypotheses, *references, *([recipe.sources] if recipe.sources else [])]
    texts = {path: read_lines(path) for path in paths}
    check_aligned({str(path): lines for path, lines in texts.items()})
    hypotheses, streams = texts[recipe.hypotheses], [texts[path] for path in references]
    scores = score(hypotheses, streams, recipe.score)
    habits = behaviour(hypotheses, streams, texts[recipe.sources] if recipe.sources else None)
    if recipe.json:
        print(json.dumps({"scores": [asdict(each) for each in scores], "behaviour": habits}, indent=2))
    else:
        show(scores, habits)


def show(scores: list[Score], habits: dict[str, float]) -> None:
    """Print scores and behaviour as tables, then the lines to quote, unwrapped."""
    shares = Table("Behaviour", "Value")
    for name, value in habits.items():
        shares.add_row(name, f"{value:.4f}")
    Console().print(table(scores), shares)
    for each in scores:
        print(each)


if __name__ == "__main__":
    launch(Recipe, main)
