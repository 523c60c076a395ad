"""A trained classifier: images in, names of classes and their probabilities out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.decode import MAX_PIXELS, file_content, read_image
from tasks.image_classification.augment import TransformConfig, evaluation_transform, normalize


class Guess(NamedTuple):
    """One class that an image may show."""

    name: str
    probability: float


class Classifier:
    """Says what is in images.

    classifier = Classifier(model, ["cat", "dog"], TransformConfig(), image_size=(224, 224), channels=3)
    classifier("photo.jpg")   # [Guess(name="dog", probability=0.93), Guess(name="cat", probability=0.07)]
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        transform: TransformConfig,
        *,
        image_size: tuple[int, int],
        channels: int,
        max_pixels: int = MAX_PIXELS,
        batch: int = 64,
    ) -> None:
        self.model, self.classes, self.transform = model.eval(), list(classes), transform
        self.channels, self.max_pixels, self.size = channels, max_pixels, batch
        self.resize = evaluation_transform(transform, image_size)
        self.device = next(model.parameters()).device

    def __call__(self, image: str | Path | Tensor, *, top: int = 5) -> list[Guess]:
        """Return the likeliest classes of one image, best first: a file, or uint8 (channels, height, width).

        Raises ImageError, naming the file, where it cannot be read.
        """
        return self.classify([image], top=top)[0]

    def classify(self, images: Sequence[str | Path | Tensor], *, top: int = 5) -> list[list[Guess]]:
        """Return the likeliest classes of each image, best first."""
        found: list[list[Guess]] = []
        for begin in range(0, len(images), self.size):
            batch = [self.prepare(image) for image in images[begin : begin + self.size]]
            found += self.guess(torch.stack(batch), top=top)
        return found

    def guess(self, images: Tensor, *, top: int = 5) -> list[list[Guess]]:
        """Return the likeliest classes of uint8 images (batch, channels, height, width) that `prepare` made."""
        best = self.probabilities(images).topk(min(top, len(self.classes)))
        return [
            [Guess(self.classes[place], value) for value, place in zip(values, places, strict=True)]
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def prepare(self, image: str | Path | Tensor) -> Tensor:
        """Read an image and bring it to the size of the model, uint8 (channels, height, width)."""
        if not isinstance(image, Tensor):
            image = read_image(file_content(image), channels=self.channels, name=str(image), max_pixels=self.max_pixels)
        return self.resize(image)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return (batch, classes) for uint8 images (batch, channels, height, width) that `prepare` made."""
        inputs = normalize(images.to(self.device), self.transform.mean, self.transform.std)
        return self.model(inputs).float().softmax(1).cpu()
