"""Dropout whose random numbers do not cost more than the arithmetic around them."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share of the features in training and scale the rest up, so that the mean stays (Srivastava et al. 2014).

    On a CPU PyTorch draws one Bernoulli number per element, one after the other, which takes longer than the matrix
    products of a small model. Here one 64-bit draw decides four elements, so `rate` is rounded to 1/65536, and the same
    seed drops others than `torch.nn.Dropout` does.

    Raises:
        ValueError: the rate is no share: below 0, or 1 and more.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout {rate} is no share of the features: choose 0 or more, and less than 1.")
        self.rate = rate

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop out in training, do nothing in evaluation."""
        return drop_out(x, self.rate) if self.training else x

    def extra_repr(self) -> str:
        """Show the rate where the module is printed."""
        return f"rate={self.rate}"


def drop_out(x: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """Zero a share `rate` of the elements and scale the others up."""
    if rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return _Dropout.apply(x, rate)


def keep_mask(count: int, rate: float) -> Bool[Tensor, "count"]:
    """Draw `count` booleans on the CPU, True with probability 1 - rate, from torch's global generator."""
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count] >= min(round(rate * 65536), 65535) - 32768


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        mask = keep_mask(x.numel(), rate).view(x.shape)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - rate)
        return torch.mul(x, mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.mul(grad, mask).mul_(ctx.scale), None
