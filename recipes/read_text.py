"""Read the text in images: files, and folders of them.

python -m recipes.read_text runs/recognition --images line.png
python -m recipes.read_text runs/recognition --images scans --output read.png
python -m recipes.read_text runs/recognition --output test_lines.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from recipes.classify import image_paths
from recipes.config import launch, recipe_of
from recipes.ladder import MODEL
from recipes.pictures import save_picture
from recipes.train_recognition import Recipe as Training
from recipes.train_recognition import make_task
from recipes.weights import load_weights
from tasks.decode import file_content, open_image
from tasks.text_recognition.lines import fit
from tasks.text_recognition.task import TextRecognition


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Read images with a trained model."""

    run: str
    """Run folder of train_recognition."""
    images: str = ""
    """An image, or a folder whose images, at any depth, are taken in the order of their paths; empty: ten test lines of
    the run."""
    output: str = ""
    """Picture of the first ten images over what was read; empty: none."""
    weights: str | None = None
    """A .safetensors file or checkpoint folder to use instead of the final model."""


class TextReader:
    """A trained model, ready to read.

    reader = TextReader("runs/recognition")
    print(reader([Image.open("line.png")])[0])
    """

    def __init__(self, run: str | Path, *, weights: str | Path | None = None) -> None:
        """Load the model of a run folder, on the GPU if there is one; InputError where it is not a finished run."""
        recipe, folder = recipe_of(Training, run), Path(run)
        self.data, self.task = recipe.data, TextRecognition(recipe.data, recipe.model, recipe.search, ())
        self.task.restore(folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.task.build()
        load_weights(self.model, Path(weights or folder / MODEL))
        self.model.to(self.device).eval()

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Return what is written in each image."""
        fitted = [fit(image, self.data) for image in images]
        batches = [fitted[begin : begin + self.data.batch] for begin in range(0, len(fitted), self.data.batch)]
        return [text for some in batches for text in self.task.read(self.model, torch.stack(some).to(self.device))]


def main(recipe: Recipe) -> None:
    """Print path and text of each image."""
    reader = TextReader(recipe.run, weights=recipe.weights)
    if recipe.images:
        names = [str(path) for path in image_paths(Path(recipe.images))]
        images = [open_image(file_content(name), channels=3, name=name) for name in names]
    else:
        names, images = test_lines(recipe.run)
    texts = reader(images)
    for name, text in zip(names, texts, strict=True):
        print(f"{name}\t{text}", flush=True)
    if recipe.output:
        draw(images[:10], texts[:10], Path(recipe.output))


def test_lines(run: str) -> tuple[list[str], list[Image.Image]]:
    """Return what is written in the first ten test images of a run, and the images."""
    task = make_task(recipe_of(Training, run))
    task.prepare(Path(run))
    rows = range(min(10, task.lines.sizes["test"]))
    images, texts = zip(*(task.lines.example("test", row, 0) for row in rows), strict=True)
    return list(texts), list(map(to_pil_image, images))


def draw(images: Sequence[Image.Image], texts: Sequence[str], path: Path) -> None:
    """Write a picture of images, each over its text."""
    figure = Figure(figsize=(5, 0.75 * len(images)), layout="constrained")
    for axes, image, text in zip(figure.subplots(len(images), squeeze=False)[:, 0], images, texts, strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.set_title(text, fontsize=9, loc="left", parse_math=False)
        axes.set_axis_off()
    save_picture(figure, path, dpi=120)


if __name__ == "__main__":
    launch(Recipe, main)
