"""Score a trained image classifier: accuracy, calibration, class by class, and pictures of what goes wrong.

python -m recipes.evaluate_images runs/digits
python -m recipes.evaluate_images runs/pets --split valid --output pets_valid
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.table import Table

from recipes import checkpoint, image_runs
from recipes.config import launch, recipe_of
from recipes.evaluation import predict
from recipes.image_runs import load, make_task
from recipes.pictures import save_picture
from recipes.processes import use_machine
from recipes.state import CHECKPOINTS
from recipes.tracking import console, number
from tasks.errors import InputError
from tasks.image_classification.distill import DistillConfig
from tasks.image_classification.evaluate import (
    class_table,
    confusion_matrix,
    draw_confusion,
    draw_mistakes,
    worst_mistakes,
)
from tasks.image_classification.pretrained import PretrainedConfig
from tasks.image_classification.task import ImageClassification


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Score an image classifier and draw its mistakes."""

    run: str
    """Run folder of train_images, whose recipe says where the images lie."""
    split: Literal["valid", "test"] = "test"
    """Which images."""
    output: str = ""
    """Folder for confusion.png and mistakes.png; empty: the run folder."""
    mistakes: int = 25
    """Images in mistakes.png, the most confident mistakes first."""
    weights: str | None = None
    """A .safetensors file or checkpoint folder to use instead of the final model."""


def main(recipe: Recipe) -> None:
    """Predict every image of the split, print the scores, write the pictures."""
    use_machine(0)
    # What a run started from, and who taught it, may be gone by now.
    trained = replace(recipe_of(image_runs.Recipe, recipe.run), pretrained=PretrainedConfig(), distill=DistillConfig())
    task, classifier = make_task(trained), load(recipe.run, weights=recipe.weights)
    task.prepare(Path(recipe.run))
    if recipe.split not in task.images.sizes:
        raise InputError(f"{recipe.run} has no {recipe.split} images: choose --split {' or '.join(task.images.sizes)}.")
    if recipe.split == "valid" and not trained.data.valid:
        check_data(task, Path(recipe.run))
    folder = Path(recipe.output or recipe.run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder} can be no folder ({error.strerror}): choose another.") from None
    plan, workers = task.plan(recipe.split, 0), trained.train.workers
    found = predict(task, classifier.model, recipe.split, plan, classifier.device, workers=workers)
    predictions, classes = [prediction for _, prediction in found], classifier.classes
    scores = Table("", recipe.split, title=f"{len(predictions):,} images")
    for name, value in task.measure(recipe.split, predictions).items():
        scores.add_row(name, number(value))
    console().print(scores, class_table(predictions, classes))
    save_picture(draw_confusion(confusion_matrix(predictions, classes), classes), folder / "confusion.png")
    worst = worst_mistakes(predictions, recipe.mistakes)
    images = [task.images.image(recipe.split, row) for row in worst]
    save_picture(draw_mistakes(images, [predictions[row] for row in worst], classes), folder / "mistakes.png")
    console().print(f"wrote {folder / 'confusion.png'} and {folder / 'mistakes.png'}", highlight=False, soft_wrap=True)


def check_data(task: ImageClassification, run: Path) -> None:
    """Refuse to score images that were held out, where some came or went since: the run held out others.

    Raises InputError.
    """
    newest = checkpoint.newest(run / CHECKPOINTS, read_only=True)
    state = {} if newest is None else json.loads((newest / "state.json").read_text(encoding="utf-8"))["progress"]
    if state.get("data", "") not in ("", task.digest()):
        raise InputError(
            f"{run} was trained on other images than are there now, and held out others: give them back, or score test "
            "images."
        )


if __name__ == "__main__":
    launch(Recipe, main)
