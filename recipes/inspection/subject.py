"""What is inspected: the model of a recipe with batches of any size, without the data it is for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from recipes.config import read
from recipes.inspection.closed_form import Flops, is_textbook, recognition, swin, translation, vit
from recipes.inspection.dry_run import dry_run
from recipes.train_config import TrainConfig
from tasks.errors import InputError
from tasks.task import Task
from transformer_core.loss import FactoredLogits, log_likelihood

SIGNS = {
    "recognition": (
        *("data.text", "data.dataset", "data.fonts", "data.test_fonts", "data.lines", "data.longest", "data.size"),
        "model.patch_size",
    ),
    "translation": (
        *("data.source", "data.target", "data.vocabulary", "data.tokens", "data.filter", "search", "scores"),
        *("model.encoder_depth", "model.decoder_depth", "model.tie", "loss.r_drop"),
    ),
    "images": (
        *("data.batch", "data.held_out", "data.channels", "augment", "transform", "pretrained", "distill"),
        *("model.vit", "model.swin", "model.image_size"),
    ),
}
"""Beginnings of settings by which a recipe is known to belong to train_recognition, train_translation or train_images;
none of them is imported before that is known, because each takes seconds. Recognition, which shares settings with both
others, is known by one of its own."""


class Subject(NamedTuple):
    """A model of a recipe, and what is done with it."""

    task: Task[Any]
    """Builds the model and knows its loss; where its data would be, there are only their sizes."""
    model: nn.Module
    """Built once, for dry runs alone."""
    recompute: bool
    """Whether the recipe has activations computed again."""
    train: TrainConfig
    batch: Callable[[int], Any]
    """Makes a micro-batch of so many examples."""
    forward: Callable[[nn.Module, Any], Tensor]
    """Runs the model on a micro-batch as it is evaluated: translation scores a known target, it does not search."""
    examples: int
    """Examples of a micro-batch of the recipe."""
    units: int
    """What one example holds of what throughput is counted in: target tokens, characters, or 1 image."""
    parts: Mapping[str, str]
    """Part of the model by the first name of a module."""
    before: Sequence[str]
    """Modules that make vectors of the input by products."""
    after: Sequence[str]
    """Modules that make logits, and are called."""
    logits: Callable[[int], Mapping[str, tuple[int, ...]]]
    """Output shape, for so many examples, of modules whose weight is used without calling them."""
    closed_form: Callable[[int], tuple[int, Flops]] | None
    """Parameters and forward FLOPs, for so many examples, by the formulas of a textbook model; None: there are none."""
    said: str
    """What was assumed because the data would have said it."""


def read_subject(
    paths: Sequence[Path], settings: Sequence[str], *, length: int, classes: int, characters: int
) -> Subject:
    """Read recipes from left to right, then settings as flags, and return what they describe.

    Raises InputError for settings that cannot be used, and where it cannot be told which program they are for.
    """
    arguments = [*(f"--config={path}" for path in paths), *settings]
    keys = {key for path in paths for key in _keys(path)} | {flag.removeprefix("--") for flag in settings}
    found = [kind for kind, signs in SIGNS.items() if any(key.startswith(signs) for key in keys)]
    found = found[:1] if "recognition" in found else found
    if len(found) != 1:
        names = ", ".join(map(str, paths))
        raise InputError(
            f"--recipe {names} does not say whether it is for train_translation or train_images: add a recipe or a "
            "setting that one of them alone has, such as --model.encoder_depth 6 or --model.vit.depth 12."
        )
    try:
        match found[0]:
            case "recognition":
                return _recognition(arguments, characters)
            case "translation":
                return _translation(arguments, length)
            case _:
                return _images(arguments, classes)
    except ValueError as error:
        raise InputError(str(error)) from None


def _shapes_of(task: Task[Any]) -> nn.Module:
    with dry_run("cpu"):
        return task.build()


def _keys(path: Path) -> list[str]:
    """Return the first two names of each setting of a file; what is wrong with the file is said when it is read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    groups = content.items() if isinstance(content, dict) else ()
    return [f"{name}.{key}" for name, group in groups for key in (group if isinstance(group, dict) else [""])]


def _translation(arguments: Sequence[str], length: int) -> Subject:
    program, tasks = import_module("recipes.train_translation"), import_module("tasks.translation.task")
    recipe = read(program.Recipe, arguments)
    task = tasks.Translation(recipe.data, recipe.model, recipe.loss, recipe.search, recipe.scores)
    vocabulary = recipe.data.vocabulary.size
    task.pairs = SimpleNamespace(source=range(vocabulary), target=range(vocabulary))

    def batch(examples: int) -> Any:
        source, target = torch.zeros(2, examples, length, dtype=torch.int64)
        places = torch.arange(examples * length)
        return tasks.Batch(list(range(examples)), source, None, target, places, torch.zeros_like(places))

    def forward(model: nn.Module, batch: Any) -> Tensor:
        factors = FactoredLogits(*model(batch.source, batch.mask, batch.target, batch.positions))
        return log_likelihood(factors, batch.labels)

    formula = recipe.model.kind == "transformer" and is_textbook(recipe.model.block)
    return Subject(
        task=task,
        model=_shapes_of(task),
        recompute=recipe.model.block.recompute,
        train=recipe.train,
        batch=batch,
        forward=forward,
        examples=max(1, recipe.data.tokens // length),
        units=length,
        parts={"target_embedding": "embedding", "source_embedding": "embedding"},
        before=[],
        after=[],
        logits=lambda examples: {"output": (examples * length, vocabulary)},
        closed_form=(lambda examples: translation(recipe.model, vocabulary, examples, length)) if formula else None,
        said=f"{vocabulary:,} pieces (--data.vocabulary.size), sentences of {length} (--length), no padding",
    )


def _images(arguments: Sequence[str], classes: int) -> Subject:
    program, tasks = import_module("recipes.image_runs"), import_module("tasks.image_classification.task")
    recipe = read(program.Recipe, arguments)
    augment = replace(recipe.augment, mixup=0.0, cutmix=0.0)
    groups = recipe.data, recipe.model, augment, recipe.transform, recipe.loss
    task = tasks.ImageClassification(*groups, pretrained=recipe.pretrained)
    task.images = SimpleNamespace(classes=range(classes))
    channels, size = recipe.data.channels, recipe.model.image_size
    own, formula = recipe.model.vit, vit if recipe.model.kind == "vit" else swin
    plain = recipe.model.kind == "swin" or (own.stem == "none" and own.pool != "attention")
    textbook = plain and is_textbook(recipe.model.block, windows=recipe.model.kind == "swin")

    def batch(examples: int) -> Any:
        images = torch.zeros(examples, channels, *size, dtype=torch.uint8)
        return tasks.Batch(list(range(examples)), images, torch.zeros(examples, dtype=torch.int64), 0)

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(tasks.normalize(batch.images, recipe.transform.mean, recipe.transform.std))

    return Subject(
        task=task,
        model=_shapes_of(task),
        recompute=recipe.model.block.recompute,
        train=recipe.train,
        batch=batch,
        forward=forward,
        examples=recipe.data.batch,
        units=1,
        parts={
            **dict.fromkeys(("prefix", "position", "stem", "patches", "patch_norm"), "patches"),
            **dict.fromkeys(("encoder", "stages", "mergings", "norm"), "blocks"),
            **dict.fromkeys(("pool", "representation", "head", "distillation_head"), "head"),
        },
        before=["stem", "patches"],
        after=["head", "distillation_head"],
        logits=lambda examples: {},
        closed_form=(lambda examples: formula(recipe.model, classes, channels, examples)) if textbook else None,
        said=f"{classes:,} classes (--classes), images of {size[0]} x {size[1]} pixels",
    )


def _recognition(arguments: Sequence[str], characters: int) -> Subject:
    program, tasks = import_module("recipes.train_recognition"), import_module("tasks.text_recognition.task")
    recipe = read(program.Recipe, arguments)
    task = tasks.TextRecognition(recipe.data, recipe.model, recipe.search, [])
    task.names = range(characters)
    length, channels, size = recipe.data.longest + 1, recipe.data.channels, recipe.data.size

    def batch(examples: int) -> Any:
        images = torch.zeros(examples, channels, *size, dtype=torch.uint8)
        target, places = torch.zeros(examples, length, dtype=torch.int64), torch.arange(examples * length)
        return tasks.Batch(list(range(examples)), [""] * examples, images, target, places, torch.zeros_like(places))

    def forward(model: nn.Module, batch: Any) -> Tensor:
        factors = FactoredLogits(*model(batch.images, batch.target, batch.positions))
        return log_likelihood(factors, batch.labels)

    return Subject(
        task=task,
        model=_shapes_of(task),
        recompute=recipe.model.block.recompute,
        train=recipe.train,
        batch=batch,
        forward=forward,
        examples=recipe.data.batch,
        units=length,
        parts={},
        before=["patches"],
        after=[],
        logits=lambda examples: {"output": (examples * length, characters)},
        closed_form=(lambda examples: recognition(recipe.model, characters, channels, size, examples, length))
        if is_textbook(recipe.model.block)
        else None,
        said=f"{characters:,} characters (--characters), lines of {length} with their mark (--data.longest), images "
        f"of {size[0]} x {size[1]} pixels",
    )
