"""Say what is in images: files, and folders of them.

python -m recipes.classify runs/digits four.png
python -m recipes.classify runs/pets photos more/cat.jpg --top 3 --json
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from recipes.config import launch
from recipes.image_runs import load
from tasks.decode import ImageError
from tasks.errors import InputError
from tasks.image_classification.classifier import Classifier, Guess
from tasks.image_classification.sources import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Classify images with a trained model."""

    run: str
    """Run folder of train_images."""
    images: list[str]
    """Images, and folders whose images, at any depth, are taken in the order of their paths."""
    top: int = 1
    """Classes to name for each image, the likeliest first."""
    json: bool = False
    """Write one JSON object a line instead of text."""
    weights: str | None = None
    """A .safetensors file or checkpoint folder to use instead of the final model."""
    corrupt: Literal["stop", "skip"] = "stop"
    """An image that cannot be read stops the program, or is named on standard error and left out."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top {self.top} names no class: choose 1 or more.")


def main(recipe: Recipe) -> None:
    """Classify and print a line for each image."""
    classifier = load(recipe.run, weights=recipe.weights)
    paths = [path for name in recipe.images for path in image_paths(Path(name))]
    for begin in range(0, len(paths), classifier.size):
        images = prepared(classifier, paths[begin : begin + classifier.size], skip=recipe.corrupt == "skip")
        found = classifier.guess(torch.stack([image for _, image in images]), top=recipe.top) if images else []
        for (path, _), guesses in zip(images, found, strict=True):
            print(as_json(path, guesses) if recipe.json else as_text(path, guesses), flush=True)


def prepared(classifier: Classifier, paths: Sequence[Path], *, skip: bool) -> list[tuple[Path, Tensor]]:
    """Return paths and images at the size of the model; with `skip` those that cannot be read are told apart."""
    images: list[tuple[Path, Tensor]] = []
    for path in paths:
        try:
            images.append((path, classifier.prepare(path)))
        except ImageError as error:
            if not skip:
                raise
            print(f"left out: {error}", file=sys.stderr)
    return images


def image_paths(path: Path) -> list[Path]:
    """Return the file, or the images below the folder that are not hidden. Raises InputError where there are none."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        shown = (file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts))
        paths = sorted(shown)
        if not paths:
            raise InputError(f"{path} holds no images ({', '.join(SUFFIXES)}): name another folder, or a file.")
        return paths
    if not path.exists():
        raise InputError(f"{path} does not exist: name an image, or a folder of images.")
    return [path]


def as_text(path: Path, guesses: list[Guess]) -> str:
    """Write the path, then class and probability of each guess, separated by tabs."""
    return "\t".join([str(path), *(f"{guess.name} {guess.probability:.1%}" for guess in guesses)])


def as_json(path: Path, guesses: list[Guess]) -> str:
    """Write path and guesses as one JSON object."""
    found = [{"class": guess.name, "probability": round(guess.probability, 6)} for guess in guesses]
    return json.dumps({"image": str(path), "classes": found}, ensure_ascii=False)


if __name__ == "__main__":
    launch(Recipe, main)
