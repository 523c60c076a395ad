"""How well images are classified, class by class and over all, by torchmetrics; and pictures of what goes wrong.

Predictions are gathered over processes first and measured once.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
"""Bins of the calibration error, as Guo et al. (2017) take them."""
NUMBERED_CLASSES = 20
"""Most classes of which a picture of the confusion matrix also writes the counts; more would overlap."""
NAMED_CLASSES = 50
"""Most classes whose names it writes; beyond them it does not grow."""
LONGEST_NAME = 24
"""Characters of a class name in a picture."""


class Prediction(NamedTuple):
    """What a model makes of one image."""

    probabilities: np.ndarray
    """(classes,) float32. Give an array, not a tensor: a row of a tensor is pickled with the whole tensor."""
    label: int
    """Place of the true class."""


class ClassScore(NamedTuple):
    """How one class fares; shares are from 0 to 1, and None where nothing is divided by."""

    name: str
    images: int
    right: int
    precision: float | None
    """Of the images called this class, the share that are."""
    recall: float | None
    """Of the images of this class, the share that are called so."""
    f1: float | None
    """Harmonic mean of both."""
    taken_for: str | None
    """The wrong class that its images are called most often, the first of several; None if all are right."""
    times: int
    """How often."""


def measure(predictions: Sequence[Prediction], classes: Sequence[str]) -> dict[str, float]:
    """Return `loss` in nats, and in percent `top1`, `top5` where there are more than 5 classes, `balanced` and `ece`.

    `balanced` is the mean over the classes of the share of their images that is right: what to watch where some classes
    have few. `loss` is the mean negative log-likelihood of the true class, without label smoothing; a probability of 0
    counts as the smallest float32. `ece` is the expected calibration error (Guo et al. 2017) of the first class over 15
    bins: by how much confidence and accuracy differ. Raises ValueError where there are no predictions, or one does not
    fit the classes.
    """
    probabilities, labels = _stack(predictions, classes)
    count = len(classes)
    likelihoods = probabilities.gather(1, labels[:, None]).clamp(min=torch.finfo(torch.float32).tiny)
    result = {"loss": -float(likelihoods.double().log().mean())}
    for best in (1, 5):
        if best == 1 or count > best:
            right = _metric("accuracy")(probabilities, labels, count, average="micro", top_k=best)
            result[f"top{best}"] = 100 * float(right)
    shares = _metric("recall")(probabilities.argmax(1), labels, count, average="none")[labels.unique()]
    error = _metric("calibration_error")(probabilities, labels, count, n_bins=BINS)
    return result | {"balanced": 100 * float(shares.mean()), "ece": 100 * float(error)}


def confusion_matrix(predictions: Sequence[Prediction], classes: Sequence[str]) -> Tensor:
    """Count images as a (classes, classes) int64 matrix: one row per true class, one column per predicted class.

    Raises ValueError as `measure` does.
    """
    probabilities, labels = _stack(predictions, classes)
    return _metric("confusion_matrix")(probabilities.argmax(1), labels, len(classes))


def class_scores(predictions: Sequence[Prediction], classes: Sequence[str]) -> list[ClassScore]:
    """Return the score of each class, in the order of the classes. Raises ValueError as `measure` does."""
    probabilities, labels = _stack(predictions, classes)
    called, count = probabilities.argmax(1), len(classes)
    matrix = _metric("confusion_matrix")(called, labels, count)
    images, said, right = matrix.sum(1), matrix.sum(0), matrix.diag()
    mistakes, taken_for = (matrix - right.diag()).max(1)
    columns = [
        _known(_metric("precision")(called, labels, count, average="none"), said),
        _known(_metric("recall")(called, labels, count, average="none"), images),
        _known(_metric("f1_score")(called, labels, count, average="none"), images + said),
        [classes[wrong] if times else None for wrong, times in zip(taken_for.tolist(), mistakes.tolist(), strict=True)],
    ]
    return list(map(ClassScore, classes, images.tolist(), right.tolist(), *columns, mistakes.tolist()))


def class_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> Table:
    """Lay out the scores of each class for people, in percent. Raises ValueError as `measure` does."""
    table = Table("Class", "Images", "Right", "Precision", "Recall", "F1", "Most often taken for")
    for each in class_scores(predictions, classes):
        shares = ("-" if share is None else f"{100 * share:.1f}" for share in (each.precision, each.recall, each.f1))
        wrong = f"{each.taken_for} ({each.times})" if each.taken_for is not None else "-"
        table.add_row(each.name, str(each.images), str(each.right), *shares, wrong)
    return table


def worst_mistakes(predictions: Sequence[Prediction], count: int) -> list[int]:
    """Return the places of up to `count` wrong predictions, the most confident first."""
    called = [int(each.probabilities.argmax()) for each in predictions]
    wrong = [place for place, each in enumerate(predictions) if called[place] != each.label]
    return sorted(wrong, key=lambda place: -float(predictions[place].probabilities[called[place]]))[:count]


def draw_confusion(matrix: Tensor, classes: Sequence[str]) -> "Figure":
    """Draw a (classes, classes) confusion matrix, each row shaded by its share of the true class.

    Of more than 20 classes no counts are written, of more than 50 no names.
    """
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    side = 4 + 0.4 * min(len(classes), NAMED_CLASSES)
    figure = _figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [_short(name) for name in classes] if len(classes) <= NAMED_CLASSES else []
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= NUMBERED_CLASSES:
        for row, column in torch.cartesian_prod(torch.arange(len(classes)), torch.arange(len(classes))).tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(matrix[row, column])), ha="center", va="center", color=colour)
    return figure


def draw_mistakes(images: Sequence[Tensor], predictions: Sequence[Prediction], classes: Sequence[str]) -> "Figure":
    """Draw uint8 (channels, height, width) images in a grid, with what they were taken for, how surely, and the truth.

    Give those that `worst_mistakes` names, and their predictions in the same order; of none, the picture says so.
    Raises ValueError where there are not as many images as predictions.
    """
    if len(images) != len(predictions):
        raise ValueError(f"{len(images)} images have {len(predictions)} predictions: give one for each image.")
    columns = max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = _figure(2.4 * columns, 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    if not images:
        grid[0].text(0.5, 0.5, "no mistakes", ha="center", va="center")
    for axes, image, each in zip(grid, images, predictions, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(_caption(each, classes), fontsize=9, parse_math=False)
    return figure


def _metric(name: str) -> Any:
    """Return a metric of torchmetrics, which takes seconds to import: who trains or classifies does not wait for it."""
    return getattr(import_module("torchmetrics.functional.classification"), f"multiclass_{name}")


def _figure(width: float, height: float) -> "Figure":
    """Return an empty picture of so many inches; matplotlib is not waited for either."""
    return import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _caption(prediction: Prediction, classes: Sequence[str]) -> str:
    called = int(prediction.probabilities.argmax())
    sure = float(prediction.probabilities[called])
    return f"{_short(classes[called])} ({sure:.0%})\nis {_short(classes[prediction.label])}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _known(shares: Tensor, divisors: Tensor) -> list[float | None]:
    """Return shares, None where the divisor is 0, for which torchmetrics has a 0."""
    return [share if divisor else None for share, divisor in zip(shares.tolist(), divisors.tolist(), strict=True)]


def _stack(predictions: Sequence[Prediction], classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return probabilities (predictions, classes) and labels (predictions,)."""
    if not predictions:
        raise ValueError("predictions=[] cannot be measured: give at least one.")
    for place, each in enumerate(predictions):
        if len(each.probabilities) != len(classes):
            raise ValueError(
                f"prediction {place} has {len(each.probabilities)} probabilities for {len(classes)} classes: "
                "give one for each class."
            )
        if not 0 <= each.label < len(classes):
            raise ValueError(
                f"prediction {place} has label={each.label}: choose 0 to {len(classes) - 1}, a place among the classes."
            )
    probabilities = torch.from_numpy(np.stack([each.probabilities for each in predictions], dtype=np.float32))
    return probabilities, torch.tensor([each.label for each in predictions])
