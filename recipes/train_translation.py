"""Train a translator.

    accelerate launch -m recipes.train_translation
    accelerate launch -m recipes.train_translation --config recipes/multi30k_en_de.yaml --train.lr 3e-3

Without a configuration it takes embedded_en_de.yaml and learns to translate dates, times, numbers, currencies and units
from English to German, in minutes on a laptop. The same command again continues the run.
"""

from dataclasses import dataclass, field

from recipes.config import launch
from recipes.ladder import Expected, finish
from recipes.loop import train
from recipes.train_config import TrainConfig
from tasks.translation.evaluate import ScoreConfig
from tasks.translation.model import TranslationConfig
from tasks.translation.pairs import TextPairs
from tasks.translation.task import LossConfig, Translation
from transformer_core.search import SearchConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Train a translator on parallel text."""

    data: TextPairs = field(default_factory=TextPairs)
    model: TranslationConfig = field(default_factory=TranslationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    expected: Expected = field(default_factory=Expected)


def main(recipe: Recipe) -> None:
    """Train, then choose the final weights."""
    task = Translation(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
    run = train(task, recipe.train, recipe)
    finish(task, run, recipe.train, recipe.expected, ["valid", "test"] if "test" in task.pairs.splits else ["valid"])


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_en_de.yaml")
