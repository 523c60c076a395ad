"""Learning from a teacher: its opinion of each image beside the label (Hinton et al. 2015; Touvron et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What is learned from a teacher."""

    teacher: str = ""
    """Run folder of the classifier that teaches, with the same classes; empty: nobody."""
    kind: Literal["hard", "soft"] = "hard"
    """Learn the class that the teacher finds likeliest (DeiT), or all its probabilities."""
    weight: float = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    temperature: float = 1.0
    """What the logits of both are divided by for `soft`; larger shows more of what the teacher finds unlikely."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"distill.weight={self.weight} is no share: choose from 0 to 1.")
        if self.temperature <= 0:
            raise ValueError(f"distill.temperature={self.temperature}: choose more than 0; 1 changes nothing.")


class Teacher(nn.Module):
    """A classifier that sees the images of another model: brought to its size and to its mean and deviation."""

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        *,
        image_size: tuple[int, int],
        own: tuple[Tensor, Tensor],
        given: tuple[Tensor, Tensor],
    ) -> None:
        """Take a trained model.

        Args:
            model: maps (batch, channels, height, width) to logits.
            classes: their names, in the order of the logits.
            image_size: height and width that it wants.
            own: mean and deviation of each channel that it was trained with, (channels,) each.
            given: those of the images it will be shown.
        """
        super().__init__()
        self.model, self.classes = model.eval().requires_grad_(False), list(classes)
        self.image_size = image_size
        scale = given[1] / own[1]
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", ((given[0] - own[0]) / own[1])[:, None, None], persistent=False)

    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the teacher, which follows the images to their device."""
        if images.device != self.scale.device or images.device != next(self.model.parameters(), self.scale).device:
            self.to(images.device)
        images = images * self.scale + self.shift
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bicubic", antialias=True)
        return self.model(images)


def distillation_loss(
    logits: Float[Tensor, "batch classes"], taught: Float[Tensor, "batch classes"], config: DistillConfig
) -> Float[Tensor, ""]:
    """Sum over the images how far the logits are from what the teacher says, `taught`."""
    if config.kind == "hard":
        return F.cross_entropy(logits, taught.argmax(1), reduction="sum")
    own, their = (F.log_softmax(part / config.temperature, 1) for part in (logits, taught))
    # The gradient shrinks with the square of the temperature (Hinton et al. 2015, section 2).
    return F.kl_div(own, their, reduction="sum", log_target=True) * config.temperature**2
