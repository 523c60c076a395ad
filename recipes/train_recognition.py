"""Train a model that reads text in images.

    accelerate launch -m recipes.train_recognition
    accelerate launch -m recipes.train_recognition --data.text my_corpus.txt --data.longest 32

Without a configuration it takes recognition.yaml and reads lines of the embedded corpus, rendered in several fonts.
Images with captions, or with anything else that is to be written about them, are the same task: --data.dataset.
"""

from dataclasses import dataclass, field

from recipes.config import launch
from recipes.ladder import Expected, finish
from recipes.loop import train
from recipes.train_config import TrainConfig
from tasks.text_recognition.lines import TextImages
from tasks.text_recognition.task import ReaderConfig, TextRecognition
from tasks.translation.locale_corpus import locale_pairs
from transformer_core.search import SearchConfig

RARE = frozenset("₩₹")
"""Signs of the embedded corpus that fonts may lack, those of the test among them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Train a reader of text in images."""

    data: TextImages = field(default_factory=TextImages)
    model: ReaderConfig = field(default_factory=ReaderConfig)
    search: SearchConfig = field(default_factory=lambda: SearchConfig(beams=1, max_length=64))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(monitor="cer"))
    expected: Expected = field(default_factory=Expected)

    def __post_init__(self) -> None:
        size, patch, longest = self.data.size, self.model.patch_size, self.data.longest
        if any(side % part for side, part in zip(size, patch, strict=True)):
            raise ValueError(f"--data.size {list(size)} cannot be cut into --model.patch_size {list(patch)}.")
        if not self.data.dataset and self.search.max_length < longest:
            raise ValueError(
                f"--search.max_length {self.search.max_length} ends before the {longest} characters of --data.longest: "
                "raise it."
            )


def main(recipe: Recipe) -> None:
    """Train, then choose the final weights."""
    task = make_task(recipe)
    run = train(task, recipe.train, recipe)
    finish(task, run, recipe.train, recipe.expected, ["valid", "test"])


def make_task(recipe: Recipe) -> TextRecognition:
    """Build the task that a recipe describes."""
    own = recipe.data.text or recipe.data.dataset
    embedded = [] if own else [source for source, _ in locale_pairs("en", "de", "train", 10_000)]
    corpus = [line for line in embedded if RARE.isdisjoint(line)]
    return TextRecognition(recipe.data, recipe.model, recipe.search, corpus)


if __name__ == "__main__":
    launch(Recipe, main, config="recognition.yaml")
