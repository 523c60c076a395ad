"""The linear layer of every block."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """`torch.nn.Linear` that can compute some of its output features alone."""

    def forward(self, x: Float[Tensor, "*shape dim"], rows: slice | None = None) -> Float[Tensor, "*shape features"]:
        """Return `x @ weight.T + bias`, or those of its features that `rows` names."""
        weight, bias = self.weight, self.bias
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        return F.linear(x, weight, bias)
