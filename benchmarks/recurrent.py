"""Recurrent models beside the Transformer: equal data, weights, loop and time; what each learns in it.

    python -m benchmarks.recurrent
    python -m benchmarks.recurrent --minutes 10 --models '[transformer, recurrent_attention]'

The Transformer is that of the recipe, by default of the embedded corpus. The others are recipes/variants/recurrent_*,
with the width that gives as many weights. Each first makes some updates to be timed; then it trains afresh for as many
as fit into the time, so that its learning rate ends where the time does. Each lives in a process of its own.
"""

import json
import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

import recipes
from benchmarks.result import command, machine, versions
from benchmarks.tables import Sheet
from recipes.config import launch, load_config
from recipes.ladder import finish
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
TRIAL = 30
"""Updates that are made to be timed."""


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


class Enough(Exception):
    """A trial has made its updates."""


class TimedTranslation(Task):
    """Translation that notes when its updates began."""

    def __init__(self, recipe: Translation, *, limit: float) -> None:
        super().__init__(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
        self.limit, self.tokens = limit, 0
        self.began: list[float] = []

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Note the time and the tokens; raise Enough after `limit` calls."""
        if len(self.began) == self.limit:
            raise Enough
        self.began.append(time.perf_counter())
        self.tokens += self.targets(batch)
        return super().loss(model, batch)

    def seconds(self, skip: int = 0) -> float:
        """Return how long updates took after the first `skip`; the last counts as long as the mean of the others."""
        began = self.began[skip:]
        return (began[-1] - began[0]) * len(began) / (len(began) - 1)


def main(recipe: Recipe) -> None:
    """Train one after the other, and write what was found."""
    configs = model_configs(recipe)
    with TemporaryDirectory() as folder:
        found = [train_for(recipe, name, config, Path(folder, name)) for name, config in configs.items()]
    sheet = make_sheet(recipe, found)
    sheet.show()
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "models": [asdict(each) for each in found],
    }
    (out / "recurrent.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "recurrent.md").write_text(sheet.markdown() + "\n", encoding="utf-8")


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
    """Time some updates, then train for as many as the time holds."""
    given = Translation(
        data=recipe.data,
        model=config,
        loss=recipe.loss,
        search=recipe.search,
        scores=recipe.scores,
        train=recipe.train,
    )
    trial = run(replace(given, train=for_steps(recipe.train, recipe.train.steps, folder / "trial")), limit=TRIAL)
    steps = max(2, round(recipe.minutes * 60 / trial["pace"]))
    result = run(replace(given, train=for_steps(recipe.train, steps, folder / "run")))
    report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))["results"]["last"]
    scored = report.get("test", report["valid"])
    return Trained(
        name=name,
        dim=config.block.dim if config.kind == "transformer" else config.recurrent.dim,
        parameters=count(config, recipe.data.vocabulary.size),
        updates=steps,
        seconds=result["seconds"],
        tokens=int(result["tokens"]),
        valid_loss=report["valid"]["loss"],
        bleu=scored["bleu"],
        exact=scored["exact"],
    )


def for_steps(config: TrainConfig, steps: int, folder: Path) -> TrainConfig:
    """Return the settings for a run of so many updates, scored at its end."""
    return replace(
        config,
        out=str(folder),
        steps=steps,
        warmup=min(config.warmup, steps // 10),
        evaluate_every=steps,
        save_every=steps,
        average=0,
        tensorboard=False,
    )


def run(recipe: Translation, *, limit: float = math.inf) -> dict[str, float]:
    """Train in a process of its own, and score unless that ends after `limit` updates; return what was noted."""
    spawn(run_process, (recipe, limit), nprocs=1)
    return json.loads(Path(recipe.train.out, "timed.json").read_text(encoding="utf-8"))


def run_process(rank: int, recipe: Translation, limit: float) -> None:
    """Be that process."""
    task = TimedTranslation(recipe, limit=limit)
    try:
        trained = train(task, recipe.train, recipe)
        splits: list[Split] = ["valid", "test"] if "test" in task.pairs.splits else ["valid"]
        finish(task, trained, recipe.train, recipe.expected, splits)
    except Enough:
        pass
    skip = len(task.began) // 3  # the first ones warm up
    noted = {
        "pace": task.seconds(skip) / (len(task.began) - skip),
        "seconds": task.seconds(),
        "tokens": task.tokens,
    }
    Path(recipe.train.out, "timed.json").write_text(json.dumps(noted), encoding="utf-8")


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
    )
    note += (
        f"and learning rate, {recipe.train.lr:g}; the final weights, scored on the test part, the loss on the other."
    )
    return Sheet("Recurrent models and the Transformer, trained for the same time", head, rows, [note])


if __name__ == "__main__":
    launch(Recipe, main, config="embedded_en_de.yaml")
