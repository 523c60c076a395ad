"""Attention alone: with projections as modules of several libraries, and without as functions."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.steps import ForwardBackwardStep
from benchmarks.worker import Setting, Step
from transformer_core import GaussianKernel, MultiHeadAttention, ScaledDotProduct, attention


@dataclass(frozen=True)
class AttentionWork:
    """Self-attention among all tokens of some sequences."""

    batch: int
    heads: int
    length: int
    width: int
    """Features of a head."""

    def tokens(self) -> Tensor:
        """Return (batch, length, heads x width) noise."""
        return torch.randn(self.batch, self.length, self.heads * self.width)

    def heads_of(self, parts: int) -> list[Tensor]:
        """Return (batch, heads, length, width) noise, several times."""
        return [torch.randn(self.batch, self.heads, self.length, self.width) for _ in range(parts)]


def module(setting: Setting, name: str, work: AttentionWork) -> Step:
    """Compute a module of attention with its projections, and the gradients of its input and weights."""
    layer = MODULES[name](work.heads * work.width, work.heads)
    return ForwardBackwardStep(setting, layer, work.tokens(), weights=layer.parameters())


def function(setting: Setting, name: str, work: AttentionWork) -> Step:
    """Compute attention from queries, keys and values, and their gradients."""
    return ForwardBackwardStep(setting, FUNCTIONS[name], *work.heads_of(3))


class TorchAttention(nn.Module):
    """torch.nn.MultiheadAttention, without weights for its output."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from `x` to itself."""
        return self.attention(x, x, x, need_weights=False)[0]


MODULES: dict[str, Callable[[int, int], nn.Module]] = {
    "transformer_core": MultiHeadAttention,
    "timm": lambda dim, heads: import_module("timm.layers").Attention(dim, heads, qkv_bias=True),
    "torch.nn": TorchAttention,
}
FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "transformer_core, scaled dot product": lambda q, k, v: attention(q, k, v, score=ScaledDotProduct()),
    "transformer_core, Gaussian kernel": lambda q, k, v: attention(q, k, v, score=GaussianKernel()),
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
}
