"""Draw which parts of an image a classifier looked at: its attention, followed back through all layers.

python -m recipes.show_rollout runs/digits --image docs/digit.png --output rollout.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from recipes.config import launch
from recipes.image_runs import load
from recipes.pictures import save_picture
from tasks.image_classification.augment import normalize
from tasks.image_classification.classifier import Guess
from tasks.image_classification.rollout import attention_rollout
from tasks.image_classification.swin import SwinTransformer
from tasks.image_classification.vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Draw the attention rollout of a classifier over one image."""

    run: str
    """Run folder of train_images."""
    image: str
    """The image."""
    output: str = "rollout.png"
    """Picture to write; the ending chooses its kind: .png, .svg, .pdf."""


def main(recipe: Recipe) -> None:
    """Classify the image and draw where the model looked."""
    classifier = load(recipe.run)
    assert isinstance(classifier.model, VisionTransformer | SwinTransformer)
    image = classifier.prepare(recipe.image)
    inputs = normalize(image[None].to(classifier.device), classifier.transform.mean, classifier.transform.std)
    shares = attention_rollout(classifier.model, inputs)[0].cpu()
    (guess,) = classifier.guess(image[None], top=1)[0]
    draw(image, shares, guess, Path(recipe.output))
    print(f"{guess.name} {guess.probability:.1%}")


def draw(image: Tensor, shares: Tensor, guess: Guess, path: Path) -> None:
    """Write the image, uint8 (channels, height, width), beside itself under its shares, (rows, columns)."""
    over = F.interpolate(shares[None, None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    pixels = image.permute(1, 2, 0).float() / 255
    pixels = pixels.expand(-1, -1, 3)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(pixels.numpy())
    right.imshow(pixels.mean(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    right.imshow(over.numpy(), cmap="inferno", alpha=0.6)
    left.set_title("what it saw", parse_math=False)
    right.set_title(f"where it looked: {guess.name}, {guess.probability:.0%}", parse_math=False)
    for axes in (left, right):
        axes.set_axis_off()
    save_picture(figure, path, dpi=150)


if __name__ == "__main__":
    launch(Recipe, main)
