"""The ResNet from whose features the hybrid ViT cuts its patches."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DEPTHS = (3, 4, 9)
"""Blocks of the three stages."""


class ResNetStem(nn.Module):
    """Images to features at 1/16 of their size: the first three stages of ResNet-50 as the hybrid ViT uses it.

    Source: Dosovitskiy et al. (2021), section 3.1 and appendix B: ResNetV2 of Kolesnikov et al. (2020) with group norm
    and standardised weights. Numbers as in timm (weights divided by sqrt(var + 1e-8), group norm with 1e-5); the JAX
    original divides by std + 1e-5 and uses 1e-6.
    """

    dim: ClassVar[int] = 1024
    stride: ClassVar[int] = 16

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = StandardizedConvolution(channels, 64, 7, stride=2)
        self.norm = nn.GroupNorm(32, 64)
        blocks: list[Bottleneck] = []
        source = 64
        for stage, depth in enumerate(DEPTHS):
            target = 256 * 2**stage
            for index in range(depth):
                blocks.append(Bottleneck(source, target, stride=2 if stage and not index else 1))
                source = target
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return the features, 1024 at each place."""
        x = F.relu(self.norm(self.convolution(images)))
        x = F.max_pool2d(pad_to_stride(x, 3, 2, value=float("-inf")), 3, stride=2)
        return self.blocks(x)


class Bottleneck(nn.Module):
    """A residual block of three convolutions around a narrow middle (He et al. 2016, section 4.1)."""

    def __init__(self, source: int, target: int, *, stride: int) -> None:
        super().__init__()
        middle = target // 4
        self.convolutions = nn.ModuleList(
            [
                StandardizedConvolution(source, middle, 1),
                StandardizedConvolution(middle, middle, 3, stride=stride),
                StandardizedConvolution(middle, target, 1),
            ]
        )
        self.norms = nn.ModuleList([nn.GroupNorm(32, dim) for dim in (middle, middle, target)])
        self.shortcut = nn.Identity()
        if source != target or stride != 1:
            self.shortcut = nn.Sequential(
                StandardizedConvolution(source, target, 1, stride=stride), nn.GroupNorm(32, target)
            )

    def forward(self, x: Float[Tensor, "batch source height width"]) -> Float[Tensor, "batch target rows columns"]:
        """Add what the convolutions find to what came in, or to its projection."""
        hidden = x
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            hidden = norm(convolution(hidden))
            hidden = F.relu(hidden) if index < 2 else hidden
        return F.relu(hidden + self.shortcut(x))


class StandardizedConvolution(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 for each output channel (Qiao et al. 2019)."""

    def __init__(self, source: int, target: int, size: int, *, stride: int = 1) -> None:
        super().__init__(source, target, size, stride=stride, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch source height width"]) -> Float[Tensor, "batch target rows columns"]:
        """Convolve; the output has 1/stride of the height and width, rounded up."""
        flat = self.weight.flatten(1)
        weight = F.layer_norm(flat, flat.shape[1:], eps=1e-8).view_as(self.weight)
        return F.conv2d(pad_to_stride(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


def pad_to_stride(x: Tensor, size: int, stride: int, *, value: float = 0.0) -> Tensor:
    """Pad height and width so that the output has 1/stride of them, rounded up; the odd row goes to the far side.

    This is "SAME" of TensorFlow, in which the published weights were trained.
    """
    missing = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[-2:]]
    if not any(missing):
        return x
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in missing)
    return F.pad(x, (left, right, top, bottom), value=value)
