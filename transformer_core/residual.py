"""The residual branch around a sublayer, and the norms that go with it."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transformer_core.dropout import Dropout

NormName = Literal["layer", "rms"]
Order = Literal["post", "pre"]


def make_norm(name: NormName, dim: int, *, eps: float = 1e-5) -> nn.Module:
    """Build LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last `dim` features."""
    return nn.LayerNorm(dim, eps=eps) if name == "layer" else nn.RMSNorm(dim, eps=eps)


class DropPath(nn.Module):
    """Leave out a branch for a share of the examples in training and scale the others up, so that the mean stays.

    Source: Huang et al. (2016), stochastic depth, each example drawn by itself.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path {rate} is no share of the examples: choose 0 or more, and less than 1.")
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch *length dim"]) -> Float[Tensor, "batch *length dim"]:
        """Zero whole examples in training, do nothing in evaluation."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1 - self.rate
        drawn = torch.empty([x.size(0)] + [1] * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * drawn.div_(keep)

    def extra_repr(self) -> str:
        """Show the rate where the module is printed."""
        return f"rate={self.rate}"


class LayerScale(nn.Module):
    """Multiply each feature of a branch by a learned number that starts small (Touvron et al. 2021, section 2)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """Scale the features."""
        return x * self.weight


class AddNorm(nn.Module):
    """A sublayer with its residual connection, dropout and norm; the only place that knows their order.

    "post" is `norm(x + f(x))` (Vaswani et al. 2017, section 3.1); "pre" is `x + f(norm(x))` (Xiong et al. 2020), which
    trains without warm-up but needs one more norm after the last block. What the sublayer returns is multiplied by
    `layer_scale` features (0: none) and left out for a share `drop_path` of the examples.
    """

    def __init__(
        self,
        dim: int,
        *,
        order: Order = "post",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
        norm: NormName = "layer",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.order = order
        self.norm = make_norm(norm, dim, eps=eps)
        self.dropout = Dropout(dropout)
        self.layer_scale = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch *length dim"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch *length dim"]:
        """Run `sublayer`, a map from (batch, ..., dim) to itself, on its branch."""
        if self.order == "pre":
            return x + self._branch(sublayer(self.norm(x)))
        return self.norm(x + self._branch(sublayer(x)))

    def _branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.layer_scale(self.dropout(x)))
