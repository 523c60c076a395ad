"""The residual branch around a sublayer, and the norms that go with it."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transformer_core.choices import check_choice
from transformer_core.derived import Derived
from transformer_core.dropout import Dropout

NormName = Literal["layer", "rms"]
Order = Literal["post", "pre"]


def make_norm(name: NormName, dim: int, *, eps: float = 1e-5) -> nn.Module:
    """Build LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last `dim` features.

    Raises:
        ValueError: the name is another.
    """
    check_choice("norm", name, NormName)
    return nn.LayerNorm(dim, eps=eps) if name == "layer" else nn.RMSNorm(dim, eps=eps)


class DropPath(Derived):
    """Add a branch to what goes past it; in training leave it out for a share of the examples, which then cost nothing.

    Source: Huang et al. (2016), stochastic depth. Which examples is drawn anew at each call; the branch of the others
    is scaled up, so that the mean stays. How many is known to the host, so nothing waits for the device.

    Raises:
        ValueError: the rate is no share: below 0, or 1 and more.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path {rate} is no share of the examples: choose 0 or more, and less than 1.")
        self.rate, self.skips = rate, rate > 0
        self.register_buffer("kept_share", torch.tensor(1.0 - rate), persistent=False)

    kept_share: Tensor
    """1 - rate, as a tensor: from a number the compiler would compile each block of a stack for its own."""

    def derive(self) -> None:
        """Write the share."""
        self.kept_share.fill_(1.0 - self.rate)

    def forward(
        self,
        x: Float[Tensor, "batch *length dim"],
        branch: Callable[..., Tensor],
        *inputs: Tensor | None,
    ) -> Float[Tensor, "batch *length dim"]:
        """Return `x + branch(x, *inputs)`; `inputs` have one row for each example, or one for all.

        Raises:
            ValueError: inputs have another number of rows, and examples are to be left out.
        """
        if not self.training or not self.skips:
            return x + branch(x, *inputs)
        if torch.compiler.is_compiling():  # a compiled graph has one size
            drawn = torch.rand([x.size(0)] + [1] * (x.dim() - 1), device=x.device) < self.kept_share
            return x + branch(x, *inputs) * (drawn / self.kept_share).to(x.dtype)
        keep = 1 - self.rate
        count = int(x.size(0) * keep + torch.rand(()).item())
        rows = torch.randperm(x.size(0), device=x.device)[: max(1, count)]
        if any(each is not None and each.size(0) not in (1, x.size(0)) for each in inputs):
            raise ValueError(f"{x.size(0)} examples share inputs: drop_path wants a row of them for each example.")
        own = (each if each is None or each.size(0) == 1 else each[rows] for each in inputs)
        out = branch(x[rows], *own)
        x = x.to(torch.promote_types(x.dtype, out.dtype))
        # With nobody left one example goes through and counts for nothing: processes wait for gradients of all weights.
        return x.index_add(0, rows, out.to(x.dtype), alpha=1 / keep if count else 0)

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
    """A sublayer with its residual connection, dropout and norm, in their order.

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
        check_choice("order", order, Order)
        self.order = order
        self.norm = make_norm(norm, dim, eps=eps)
        self.dropout = Dropout(dropout)
        self.layer_scale = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "batch *length dim"], sublayer: Callable[..., Tensor], *inputs: Tensor | None
    ) -> Float[Tensor, "batch *length dim"]:
        """Run `sublayer`, a map from (batch, ..., dim) and `inputs` to (batch, ..., dim), on its branch.

        `inputs` have one row for each example, or one for all. What differs from example to example must be among them,
        a mask above all: with `drop_path` the sublayer sees some of the examples alone.
        """

        def branch(x: Tensor, *inputs: Tensor | None) -> Tensor:
            out = sublayer(self.norm(x) if self.order == "pre" else x, *inputs)
            return self.layer_scale(self.dropout(out))

        x = self.drop_path(x, branch, *inputs)
        return x if self.order == "pre" else self.norm(x)
