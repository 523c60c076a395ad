"""Where a token stands: added to the embedding, turned into the queries and keys, or a bias on the scores."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PositionName = Literal["sinusoidal", "learned", "rotary", "relative", "none"]


def sinusoidal_table(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """Sines in the even features and cosines in the odd ones, of wavelengths from 2 pi to 20,000 pi.

    Source: Vaswani et al. (2017), section 3.5. Computed in float64, because float32 angles are off by 1e-4 at
    position 2,000.

    Raises:
        ValueError: `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"dim={dim} is odd: sines and cosines need an even one, for example {dim + 1}.")
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class Sinusoidal(nn.Module):
    """Add fixed sines and cosines of the position; any length, the table grows when a longer one comes."""

    def __init__(self, dim: int, *, length: int = 512) -> None:
        super().__init__()
        self.register_buffer("table", sinusoidal_table(length, dim).float(), persistent=False)

    table: Tensor

    def forward(self, x: Float[Tensor, "batch length dim"], offset: int = 0) -> Float[Tensor, "batch length dim"]:
        """Add the positions `offset`, `offset + 1`, ..."""
        end = offset + x.size(1)
        if end > self.table.size(0):
            with torch.inference_mode(False):  # the table outlives a search and is trained with afterwards
                self.table = sinusoidal_table(max(end, 2 * self.table.size(0)), x.size(2)).to(self.table)
        return x + self.table[offset:end].to(x.dtype)


class Learned(nn.Module):
    """Add a learned vector per position; sequences longer than `max_length` are refused."""

    def __init__(self, dim: int, *, max_length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, x: Float[Tensor, "batch length dim"], offset: int = 0) -> Float[Tensor, "batch length dim"]:
        """Add the positions `offset`, `offset + 1`, ...

        Raises:
            ValueError: the sequence reaches past `max_length`.
        """
        end = offset + x.size(1)
        if end > self.weight.size(0):
            raise ValueError(
                f"position {end} is past max_length={self.weight.size(0)} of the learned positions: "
                "shorten the sequence, or train with a larger max_length."
            )
        return x + self.weight[offset:end]


class Rotary(nn.Module):
    """Turn pairs of features of queries and keys by an angle that grows with the position.

    The dot product of a turned query and key depends on their distance alone. Source: Su et al. (2021), section 3.4.2;
    pairs are neighbours (2i, 2i+1) as in the paper. Any length: angles are computed when asked for and kept.
    """

    def __init__(self, width: int, *, base: float = 10_000.0, length: int = 512) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width={width} of a head is odd: rotary positions turn pairs of features.")
        self.width, self.base = width, base
        self.register_buffer("table", self._angles(length), persistent=False)

    table: Tensor

    def _angles(self, length: int) -> Float[Tensor, "length pairs 2"]:
        rate = self.base ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        return torch.stack([angle.cos(), angle.sin()], -1).float()

    def forward(
        self, x: Float[Tensor, "batch heads length width"], offset: int = 0
    ) -> Float[Tensor, "batch heads length width"]:
        """Turn positions `offset`, `offset + 1`, ... of queries or keys."""
        end = offset + x.size(-2)
        if end > self.table.size(0):
            with torch.inference_mode(False):  # the table outlives a search and is trained with afterwards
                self.table = self._angles(max(end, 2 * self.table.size(0))).to(self.table)
        cos, sin = self.table[offset:end].to(torch.promote_types(x.dtype, torch.float32)).unbind(-1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class PositionBias(nn.Module, ABC):
    """Numbers that are added to the scores, by where query and key stand."""

    @abstractmethod
    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """Return the bias of the last `queries` positions towards all `keys` positions."""


class RelativeBias(PositionBias):
    """A learned number per head and distance, added to the scores; far distances share one in log-sized buckets.

    Source: Raffel et al. (2020), section 2.1, in the form of its published code: half of the buckets are exact
    distances, the other half grow logarithmically up to `max_distance`, beyond which all share the last; any length.
    """

    def __init__(self, num_heads: int, *, causal: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.causal, self.buckets, self.max_distance = causal, buckets, max_distance
        self.weight = nn.Parameter(torch.empty(buckets, num_heads))
        nn.init.normal_(self.weight, std=0.02)

    def bucket(self, distance: Int[Tensor, "queries keys"]) -> Int[Tensor, "queries keys"]:
        """Map key position minus query position to a row of the table."""
        buckets = self.buckets
        start = torch.zeros_like(distance)
        if not self.causal:
            buckets //= 2
            start = torch.where(distance > 0, buckets, 0)
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        far = torch.log(distance.clamp(min=1).double() / exact) / math.log(self.max_distance / exact)
        far = (exact + (far * (buckets - exact)).long()).clamp(max=buckets - 1)
        return start + torch.where(distance < exact, distance, far)

    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """Return the bias of the last `queries` positions towards all `keys` positions.

        Raises:
            ValueError: there are more queries than keys.
        """
        if queries > keys:
            raise ValueError(f"{queries} queries cannot be the last of {keys} keys: pass the keys of all of them.")
        at = torch.arange(keys, device=self.weight.device)
        distance = at[None, :] - at[keys - queries :, None]
        return self.weight[self.bucket(distance)].permute(2, 0, 1)[None]
