"""Recurrent models beside the Transformer: equal data, weights, loop and time; what each learns in it.

    python -m benchmarks.recurrent
    python -m benchmarks.recurrent --minutes 10 --models '[transformer, recurrent_attention]'

The Transformer is that of the recipe, by default of the embedded corpus. The others are recipes/variants/recurrent_*,
with the width that gives as many weights. Each trains in a process of its own until its time is up; the learning rate
falls with the root of the updates, so that it need not know how many there will be. Times are those of the wall, so
that a machine that others use as well favours those whose minutes are quieter.
"""

import json
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.multiprocessing.spawn import spawn

import recipes
from benchmarks.result import command, machine
from benchmarks.tables import Sheet, keep
from recipes.config import launch, load_config
from recipes.evaluation import evaluate
from recipes.loop import train
from recipes.tracking import number
from recipes.train_config import TrainConfig
from recipes.train_translation import Recipe as Translation
from tasks.errors import InputError
from tasks.task import Loss, Split
from tasks.translation.model import TranslationConfig, make_model
from tasks.translation.task import Batch
from tasks.translation.task import Translation as Task
from tasks.translation.vocabulary import PAD

ModelName = Literal[
    "recurrent_every_step",
    "recurrent_initial",
    "recurrent_attention",
    "recurrent_bilinear_attention",
    "transformer",
]
TITLES: dict[ModelName, str] = {
    "recurrent_every_step": "GRU, context at every step (Cho et al. 2014)",
    "recurrent_initial": "LSTM, reversed source (Sutskever et al. 2014)",
    "recurrent_attention": "GRU, additive attention (Bahdanau et al. 2015)",
    "recurrent_bilinear_attention": "LSTM, bilinear attention (Luong et al. 2015)",
    "transformer": "Transformer (Vaswani et al. 2017)",
}
TOLERANCE = 0.05
"""By how much the number of weights may differ from the Transformer's, as a share of it."""
ENDLESS = 10**6
"""Updates that nobody makes in the time."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Translation):
    """Train recurrent models and the Transformer for the same time."""

    minutes: float = 2.0
    """Time that each model trains, data and scoring not counted."""
    models: list[ModelName] = field(default_factory=lambda: list(TITLES))
    """Who takes part."""
    out: str = "benchmarks/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"--minutes {self.minutes}: give some time.")
        if self.model.kind != "transformer":
            raise ValueError("--model.kind recurrent leaves nothing to compare with: the recipe is the Transformer's.")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a model learned."""

    name: ModelName
    dim: int
    parameters: int
    updates: int
    seconds: float
    """Of training alone."""
    tokens: int
    """Target tokens, end marks counted."""
    valid_loss: float
    """Nats a token of the validation part."""
    bleu: float
    exact: float
    """Share of the sentences of the test part that are translated exactly as their reference."""


class TimeIsUp(Exception):
    """A model has trained for its time."""


class TimedTranslation(Task):
    """Translation that ends training when the time is up, from the first update on."""

    def __init__(self, recipe: Translation, seconds: float) -> None:
        super().__init__(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
        self.limit, self.seconds, self.updates, self.tokens = seconds, 0.0, 0, 0

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Begin an update, or raise TimeIsUp and leave the model that was trained in `trained`."""
        now = time.perf_counter()
        if not self.updates:
            self.began = now
        self.seconds = now - self.began
        if self.seconds >= self.limit:
            self.trained = model
            raise TimeIsUp
        self.updates += 1
        self.tokens += self.targets(batch)
        return super().loss(model, batch)


def main(recipe: Recipe) -> None:
    """Train one after the other, and write what was found."""
    configs = model_configs(recipe)
    with TemporaryDirectory() as folder:
        found = [train_for(recipe, name, config, Path(folder, name)) for name, config in configs.items()]
    keep(make_sheet(recipe, found), recipe.out, "recurrent", models=[asdict(each) for each in found])


def model_configs(recipe: Recipe) -> dict[ModelName, TranslationConfig]:
    """Return the models that take part, with as many weights as the Transformer."""
    vocabulary = recipe.data.vocabulary.size
    wanted = count(recipe.model, vocabulary)
    variants = Path(recipes.__file__ or "").parent / "variants"
    configs: dict[ModelName, TranslationConfig] = {}
    for name in recipe.models:
        config = recipe.model
        if name != "transformer":
            variant = load_config(Translation, variants / f"{name}.yaml").model
            config = fitted(replace(variant, tie=recipe.model.tie), wanted, vocabulary)
        configs[name] = config
        print(f"{name}: {count(config, vocabulary):,} weights")
    return configs


def fitted(config: TranslationConfig, parameters: int, vocabulary: int) -> TranslationConfig:
    """Return a recurrent model of the even width that brings it nearest to a number of weights.

    Raises InputError where it stays further from it than `TOLERANCE`.
    """

    def of_width(half: int) -> TranslationConfig:
        return replace(config, recurrent=replace(config.recurrent, dim=2 * half))

    def distance(half: int) -> int:
        return abs(count(of_width(half), vocabulary) - parameters)

    above = bisect_left(range(1, 4096), parameters, key=lambda half: count(of_width(half), vocabulary)) + 1
    best = min(range(max(1, above - 1), above + 1), key=distance)
    if distance(best) > TOLERANCE * parameters:
        raise InputError(f"no width gives about {parameters:,} weights: give --model.block.dim a larger one.")
    return of_width(best)


def count(config: TranslationConfig, vocabulary: int) -> int:
    """Count the weights of a model, shared ones once."""
    with torch.device("meta"):
        model = make_model(config, vocabulary, vocabulary, pad_id=PAD)
    return sum(weight.numel() for weight in model.parameters())


def train_for(recipe: Recipe, name: ModelName, config: TranslationConfig, folder: Path) -> Trained:
    """Train a model for its time, and score it, in a process of its own."""
    given = Translation(
        data=recipe.data,
        model=config,
        loss=recipe.loss,
        search=recipe.search,
        scores=recipe.scores,
        train=endless(recipe.train, folder),
    )
    spawn(run, (given, recipe.minutes * 60), nprocs=1)
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return Trained(
        name=name,
        dim=config.block.dim if config.kind == "transformer" else config.recurrent.dim,
        parameters=count(config, recipe.data.vocabulary.size),
        **found,
    )


def endless(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the settings of a run that is not validated, saved or at its end before its time is up."""
    return replace(
        config,
        out=str(folder),
        schedule="inverse_sqrt",
        steps=ENDLESS,
        evaluate_every=ENDLESS,
        save_every=ENDLESS,
        average=0,
        tensorboard=False,
    )


def run(rank: int, recipe: Translation, seconds: float) -> None:
    """Be the process of a model; leave what was found in the run folder."""
    task = TimedTranslation(recipe, seconds)
    try:
        train(task, recipe.train, recipe)
    except TimeIsUp:
        pass
    splits: list[Split] = ["valid", "test"] if "test" in task.pairs.splits else ["valid"]
    scores = {split: evaluate(task, task.trained, split, Accelerator())[0] for split in splits}
    found = {
        "updates": task.updates,
        "seconds": task.seconds,
        "tokens": task.tokens,
        "valid_loss": scores["valid"]["loss"],
        "bleu": scores[splits[-1]]["bleu"],
        "exact": scores[splits[-1]]["exact"],
    }
    Path(recipe.train.out, "found.json").write_text(json.dumps(found), encoding="utf-8")


def make_sheet(recipe: Recipe, found: Sequence[Trained]) -> Sheet:
    """Lay out what the models learned, a row each."""
    head = ["", "dim", "parameters", "updates", "minutes", "tokens/s", "valid loss", "BLEU", "exact"]
    rows = [
        [
            TITLES[each.name],
            str(each.dim),
            f"{each.parameters:,}",
            f"{each.updates:,}",
            f"{each.seconds / 60:.2f}",
            number(each.tokens / each.seconds),
            f"{each.valid_loss:.3f}",
            f"{each.bleu:.1f}",
            f"{each.exact:.1%}",
        ]
        for each in found
    ]
    facts = machine()
    note = (
        f"`{command()}`. {facts['processor']}, {facts['cores']} cores, torch {torch.__version__}. Same data, optimizer "
        f"and learning rate, {recipe.train.lr:g} at its peak; scored on the test part, the loss on the validation part."
    )
    return Sheet("Recurrent models and the Transformer, trained for the same time", head, rows, [note])


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_en_de.yaml")
