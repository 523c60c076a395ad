"""The linear layer of every block."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Linear(nn.Linear):
    """`torch.nn.Linear` that can compute some of its output features alone."""

    def forward(self, x: Float[Tensor, "*shape dim"], rows: slice | None = None) -> Float[Tensor, "*shape features"]:
        """Return `x @ weight.T + bias`, or those of its features that `rows` names."""
        weight, bias = self.weight, self.bias
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        return F.linear(x, weight, bias)

    def take(self, features: Int[Tensor, "taken"]) -> "Linear":
        """Return a layer of its own that computes these output features, for use and not for training."""
        return taken(self.weight, self.bias, features)


def taken(weight: Tensor, bias: Tensor | None, features: Int[Tensor, "taken"]) -> Linear:
    """Build a layer of some rows of a weight and of a bias."""
    layer = Linear(weight.size(1), len(features), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach()[features], requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach()[features], requires_grad=False)
    return layer
