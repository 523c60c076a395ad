"""Train a translator.

    accelerate launch -m recipes.train_translation
    accelerate launch -m recipes.train_translation --config recipes/multi30k_en_de.yaml --train.lr 3e-3

Without a configuration it learns to translate dates, times, numbers, currencies and units from English to German,
generated from the Unicode CLDR, in minutes on a laptop. Digits are pieces of their own and positions are rotary there,
because most of the work is copying numbers to other places. The same command again continues the run.
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
from tasks.translation.vocabulary import VocabularyConfig
from transformer_core import BlockConfig
from transformer_core.search import SearchConfig

EMBEDDED = Expected(metric="bleu", at_least=95.0)
"""What the default run on the embedded corpus is known to reach; text of one's own has no such figure."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Train a translator on parallel text."""

    data: TextPairs = field(
        default_factory=lambda: TextPairs(
            embedded=60_000, vocabulary=VocabularyConfig(size=1_000, split_digits=True), tokens=2_048
        )
    )
    model: TranslationConfig = field(
        default_factory=lambda: TranslationConfig(
            block=BlockConfig(dim=128, num_heads=4, hidden_dim=512, dropout=0.0, position="rotary"),
            encoder_depth=2,
            decoder_depth=2,
        )
    )
    loss: LossConfig = field(default_factory=LossConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    scores: ScoreConfig = field(default_factory=ScoreConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            out="runs/demo", steps=2_000, lr=2e-3, warmup=200, schedule="cosine", evaluate_every=500, save_every=500
        )
    )
    expected: Expected = field(default_factory=Expected)


def main(recipe: Recipe) -> None:
    """Train, then choose the final weights."""
    task = Translation(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
    run = train(task, recipe.train, recipe)
    expected = recipe.expected if recipe.data.train or recipe.expected.metric else EMBEDDED
    finish(task, run, recipe.train, expected, ["valid", "test"] if "test" in task.pairs.splits else ["valid"])


if __name__ == "__main__":
    launch(Recipe, main)
