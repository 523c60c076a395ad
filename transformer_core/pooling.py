"""Attention as regression: what was measured nearby says what to expect where nobody measured."""

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from transformer_core.attention import attention, attention_weights
from transformer_core.score import GaussianKernel


class KernelPooling(nn.Module):
    """Predict the value at a place as the mean of known values, weighted by a Gaussian kernel of their distance.

    The places asked for are the queries, the places known the keys. `width` is the standard deviation of the kernel, in
    the unit of the places: `math.inf` weighs all alike and is average pooling; with `learned` it is where training
    starts. Source: Nadaraya (1964); Watson (1964).

    Raises:
        ValueError: the width is not positive, or is infinite and to be learned.
    """

    def __init__(self, width: float = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"width={width} is no standard deviation: choose more than 0, or math.inf for the mean.")
        if learned and math.isinf(width):
            raise ValueError("width=inf has no gradient to learn from: begin with a finite width, or learned=False.")
        self.kernel = GaussianKernel(width)
        self.kernel.requires_grad_(learned)

    @property
    def width(self) -> float:
        """The standard deviation of the kernel as it is now."""
        return self.kernel.log_sigma.exp().item()

    def forward(
        self,
        query: Float[Tensor, "batch queries features"],
        key: Float[Tensor, "batch keys features"],
        value: Float[Tensor, "batch keys value_features"],
        *,
        mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries value_features"]:
        """Return the expected value at each query; zeros where `mask`, True = may look, leaves it nothing.

        To learn the width from the values themselves, each place has to be hidden from itself by
        `mask=~torch.eye(n).bool()`: else the narrowest kernel fits best, by giving each place its own value back.
        """
        # Only differences count, and float32 has few digits left for them where the places are far from 0.
        centre = key.detach().mean(-2, keepdim=True)
        query, key = query - centre, key - centre
        return attention(query[:, None], key[:, None], value[:, None], score=self.kernel, mask=mask)[:, 0]

    def weights(
        self,
        query: Float[Tensor, "batch queries features"],
        key: Float[Tensor, "batch keys features"],
        *,
        mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries keys"]:
        """Return how much each known place counts, which `forward` never holds: to be looked at."""
        return attention_weights(query[:, None], key[:, None], score=self.kernel, mask=mask)[:, 0]
