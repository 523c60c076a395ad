"""The residual branch around a sublayer, and the norms that go with it."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from transformer_core.dropout import Dropout

NormName = Literal["layer", "rms"]
Order = Literal["post", "pre"]


def make_norm(name: NormName, dim: int, *, eps: float = 1e-5) -> nn.Module:
    """Build LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last `dim` features."""
    return nn.LayerNorm(dim, eps=eps) if name == "layer" else nn.RMSNorm(dim, eps=eps)


class AddNorm(nn.Module):
    """A sublayer with its residual connection, dropout and norm; the only place that knows their order.

    "post" is `norm(x + f(x))` (Vaswani et al. 2017, section 3.1); "pre" is `x + f(norm(x))` (Xiong et al. 2020), which
    trains without warm-up but needs one more norm after the last block.
    """

    def __init__(
        self, dim: int, *, order: Order = "post", dropout: float = 0.0, norm: NormName = "layer", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.order = order
        self.norm = make_norm(norm, dim, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length dim"], sublayer: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "batch length dim"]:
        """Run `sublayer`, a map from (batch, length, dim) to itself, on its branch."""
        if self.order == "pre":
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))
