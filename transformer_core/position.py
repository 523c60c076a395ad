"""Where a token stands: added to the embedding, turned into the queries and keys, or a bias on the scores."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_core.derived import Derived

PositionName = Literal["sinusoidal", "learned", "rotary", "relative", "none"]
Offset = int | Int[Tensor, ""]
"""Where a sequence begins; a tensor where a recorded step is replayed, so that only the device knows."""


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


def rows_from(table: Float[Tensor, "length *row"], offset: Offset, count: int) -> Float[Tensor, "count *row"]:
    """Return `table[offset : offset + count]`, also where only the device knows the offset."""
    if isinstance(offset, int):
        return table[offset : offset + count]
    return table[offset + torch.arange(count, device=table.device)]


class PositionTable(Derived):
    """A table with a row for each position, which grows when a longer sequence comes.

    Where it must not grow, because `torch.export` or a DistributedDataParallel that broadcasts buffers looks at it,
    `reserve` the longest sequence first.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("table", self._compute(length).to(torch.get_default_dtype()), persistent=False)

    table: Tensor

    @abstractmethod
    def _compute(self, length: int) -> Float[Tensor, "length *row"]:
        """Return the rows of so many positions, in float64."""

    def derive(self) -> None:
        """Write the table."""
        self.table.copy_(self._compute(self.table.size(0)))

    def reserve(self, length: int) -> None:
        """Let the table have so many rows at least."""
        if length > self.table.size(0):
            with torch.inference_mode(False):  # the table outlives a search and is trained with afterwards
                self.table = self._compute(max(length, 2 * self.table.size(0))).to(self.table)

    def rows(self, offset: Offset, count: int) -> Float[Tensor, "count *row"]:
        """Return the rows from `offset` on; they must have been reserved where only the device knows it."""
        if isinstance(offset, int):
            self.reserve(offset + count)
        return rows_from(self.table, offset, count)


class Sinusoidal(PositionTable):
    """Add fixed sines and cosines of the position; any length."""

    def __init__(self, dim: int, *, length: int = 512) -> None:
        self.dim = dim
        super().__init__(length)

    def _compute(self, length: int) -> Float[Tensor, "length dim"]:
        return sinusoidal_table(length, self.dim)

    def forward(self, x: Float[Tensor, "batch length dim"], offset: Offset = 0) -> Float[Tensor, "batch length dim"]:
        """Add the positions `offset`, `offset + 1`, ..."""
        return x + self.rows(offset, x.size(1)).to(x.dtype)


class Learned(nn.Module):
    """Add a learned vector per position; sequences longer than `max_length` are refused."""

    def __init__(self, dim: int, *, max_length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, x: Float[Tensor, "batch length dim"], offset: Offset = 0) -> Float[Tensor, "batch length dim"]:
        """Add the positions `offset`, `offset + 1`, ...

        Raises:
            ValueError: the sequence reaches past `max_length`, and the offset is a number.
        """
        if isinstance(offset, int) and offset + x.size(1) > self.weight.size(0):
            raise ValueError(
                f"position {offset + x.size(1)} is past max_length={self.weight.size(0)} of the learned positions: "
                "shorten the sequence, or train with a larger max_length."
            )
        return x + rows_from(self.weight, offset, x.size(1))


class Rotary(PositionTable):
    """Turn pairs of features of queries and keys by an angle that grows with the position.

    The dot product of a turned query and key depends on their distance alone. Source: Su et al. (2021), section 3.4.2;
    pairs are neighbours (2i, 2i+1) as in the paper. Any length: angles are computed when asked for and kept.

    Raises:
        ValueError: the width is odd.
    """

    def __init__(self, width: int, *, base: float = 10_000.0, length: int = 512) -> None:
        if width % 2:
            raise ValueError(f"width={width} of a head is odd: rotary positions turn pairs of features.")
        self.width, self.base = width, base
        super().__init__(length)

    def _compute(self, length: int) -> Float[Tensor, "length pairs 2"]:
        rate = self.base ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
        return torch.stack([angle.cos(), angle.sin()], -1)

    def forward(
        self, x: Float[Tensor, "batch heads length width"], offset: Offset = 0
    ) -> Float[Tensor, "batch heads length width"]:
        """Turn positions `offset`, `offset + 1`, ... of queries or keys."""
        rows = self.rows(offset, x.size(-2))
        cos, sin = rows.to(torch.promote_types(x.dtype, torch.float32)).unbind(-1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class PositionBias(nn.Module, ABC):
    """Numbers that are added to the scores, by where query and key stand."""

    @abstractmethod
    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """Return the bias of the last `queries` positions towards all `keys` positions."""


class RelativeBias(PositionBias):
    """A learned number per head and distance, added to the scores; far distances share one in log-sized buckets.

    Source: Raffel et al. (2020), section 2.1, with the buckets of its published code: half of them are exact distances,
    the other half grow logarithmically up to `max_distance`, beyond which all share the last; any length. There all
    layers share one table, here each has its own.

    Raises:
        ValueError: there are too few buckets for both halves, or `max_distance` lies inside the exact ones.
    """

    def __init__(self, num_heads: int, *, causal: bool, buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        exact = (buckets if causal else buckets // 2) // 2
        if exact < 1 or max_distance <= exact:
            raise ValueError(
                f"buckets={buckets} give {exact} exact distances, and max_distance={max_distance} must be more than "
                "those, which must be 1 or more: 32 and 128 are usual."
            )
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
