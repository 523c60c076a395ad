"""Small training images that stay on the device: they are cut out and mirrored there, and loaders move no pixels."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from tasks.errors import InputError
from tasks.image_classification.augment import (
    AugmentConfig,
    TransformConfig,
    evaluation_transform,
    mean_colour,
    seeded,
)


class ResidentImages:
    """All training images in one tensor, a byte for each pixel and channel, read when the first are asked for.

    What an epoch shows of them is drawn on the host, four numbers an image, from the seeds of the images: the same
    pixels, to the bit, as those of `training_transform`.
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        count: int,
        augment: AugmentConfig,
        transform: TransformConfig,
        size: tuple[int, int],
    ) -> None:
        """Remember how to read each of `count` images, as uint8 (channels, height, width) of any size.

        Raises ValueError as `check_resident` does.
        """
        check_resident(augment)
        self.read, self.count, self.size, self.flip = read, count, size, augment.flip
        self.padding = augment.padding if augment.crop == "pad" else 0
        self.view, self.fill = evaluation_transform(transform, size), mean_colour(transform)
        self._held: Tensor | None = None

    def views(self, rows: Sequence[int], seeds: Sequence[int]) -> Int[Tensor, "batch 4"]:
        """Draw what is shown of each image: its row, the first line and column, and 1 where it is mirrored."""
        views: list[tuple[int, int, int, int]] = []
        for row, seed in zip(rows, seeds, strict=True):
            with seeded(seed):  # as RandomCrop draws, then RandomHorizontalFlip
                places = 2 * self.padding + 1
                top, left = (int(torch.randint(places, ())) for _ in range(2)) if self.padding else (0, 0)
                views.append((row, top, left, int(self.flip and float(torch.rand(1)) < 0.5)))
        return torch.tensor(views, dtype=torch.int64).view(-1, 4)

    def pixels(self, views: Int[Tensor, "batch 4"]) -> UInt8[Tensor, "batch channels height width"]:
        """Cut out what `views` says, on its device.

        The first time all images are read. Then raises what `read` does, and InputError where memory lacks for them.
        """
        if self._held is None:
            self._held = self._read_all(views.device)
        rows, top, left, mirrored = views.unbind(1)
        lines, columns = (
            begin.unsqueeze(1) + torch.arange(side, device=views.device)
            for begin, side in zip((top, left), self.size, strict=True)
        )
        columns = torch.where(mirrored.unsqueeze(1) == 1, columns.flip(1), columns)
        found = self._held[rows[:, None, None], lines.unsqueeze(2), columns.unsqueeze(1)]
        return found.permute(0, 3, 1, 2).contiguous()

    def _read_all(self, device: torch.device) -> UInt8[Tensor, "images height width channels"]:
        """Decode all images, with the border that a moved window sees."""
        border, (height, width), channels = self.padding, self.size, self.view(self.read(0)).size(0)
        shape = self.count, height + 2 * border, width + 2 * border, channels
        try:
            held = torch.empty(shape, dtype=torch.uint8, device=device)
            here = held if device.type == "cpu" else torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:
            raise InputError(
                f"on_device=True wants {math.prod(shape) / 1e9:,.1f} GB on {device} for {self.count:,} images, which "
                "it does not have: choose --data.on_device false."
            ) from error
        here[:] = torch.tensor(self.fill, dtype=torch.uint8)
        for row in range(self.count):
            here[row, border : border + height, border : border + width] = self.view(self.read(row)).permute(1, 2, 0)
        return held.copy_(here)


def check_resident(augment: AugmentConfig) -> None:
    """Raise ValueError if training images are to be changed in other ways than cut and mirrored."""
    more = {
        "crop": augment.crop == "random_resized",
        "policy": augment.policy != "none",
        "color_jitter": augment.color_jitter > 0,
        "erasing": augment.erasing > 0,
        "start_size": augment.start_size is not None,
    }
    if asked := [name for name, wanted in more.items() if wanted]:
        raise ValueError(
            f"on_device=True cuts and mirrors images and nothing else, and augment.{asked[0]} asks for more: choose "
            "augment.crop pad or none without policy, color_jitter, erasing and start_size, or on_device False."
        )
