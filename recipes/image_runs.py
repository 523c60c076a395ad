"""Run folders of image classifiers: the configuration they begin with, and the classifier they end as."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from recipes.config import recipe_of
from recipes.ladder import MODEL, Expected
from recipes.train_config import TrainConfig
from recipes.weights import load_weights
from tasks.errors import InputError
from tasks.image_classification.augment import AugmentConfig, TransformConfig
from tasks.image_classification.classifier import Classifier
from tasks.image_classification.data import CLASSES, Images
from tasks.image_classification.distill import DistillConfig, Teacher
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.pretrained import PretrainedConfig
from tasks.image_classification.task import ImageClassification, LossConfig
from tasks.names import read_names


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Train a classifier on labelled images."""

    data: Images = field(default_factory=Images)
    model: ImageModelConfig = field(default_factory=ImageModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pretrained: PretrainedConfig = field(default_factory=PretrainedConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    expected: Expected = field(default_factory=Expected)


def make_task(recipe: Recipe) -> ImageClassification:
    """Build the task that a recipe describes. Raises InputError for settings that do not go together."""
    return ImageClassification(
        recipe.data,
        recipe.model,
        recipe.augment,
        recipe.transform,
        recipe.loss,
        pretrained=recipe.pretrained,
        distill=recipe.distill,
        teacher=_load_teacher(recipe) if recipe.distill.teacher else None,
    )


def load(run: str | Path, *, weights: str | Path | None = None) -> Classifier:
    """Load a classifier from its run folder, on the GPU if there is one.

        from recipes.image_runs import load
        classifier = load("runs/digits")
        print(classifier("four.png"))

    `weights` is a .safetensors file or a checkpoint folder instead of the final model.
    Raises InputError where the folder is not a finished run.
    """
    recipe, classes = recipe_of(Recipe, run), read_names(Path(run, CLASSES))
    model = build_model(recipe.model, len(classes), channels=recipe.data.channels)
    load_weights(model, Path(weights or Path(run, MODEL)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Classifier(
        model.to(device),
        classes,
        recipe.transform,
        image_size=recipe.model.image_size,
        channels=recipe.data.channels,
        max_pixels=recipe.data.max_pixels,
    )


def _load_teacher(recipe: Recipe) -> Teacher:
    """Load the teacher that a recipe names, for images as the recipe makes them."""
    theirs, classifier = recipe_of(Recipe, recipe.distill.teacher), load(recipe.distill.teacher)
    if theirs.data.channels != recipe.data.channels:
        raise InputError(
            f"--distill.teacher {recipe.distill.teacher} sees {theirs.data.channels} channels, and --data.channels is "
            f"{recipe.data.channels}: give both the same."
        )
    own, given = (_mean_and_std(transform, recipe.data.channels) for transform in (theirs.transform, recipe.transform))
    return Teacher(classifier.model, classifier.classes, image_size=theirs.model.image_size, own=own, given=given)


def _mean_and_std(transform: TransformConfig, channels: int) -> tuple[Tensor, Tensor]:
    """Return both as (channels,), however many numbers were given."""
    return torch.tensor(transform.mean).expand(channels), torch.tensor(transform.std).expand(channels)
