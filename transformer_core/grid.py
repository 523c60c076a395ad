"""Where a patch stands in a grid: positions with two axes, and their change to another grid."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from transformer_core.position import Rotary


def sinusoidal_grid(height: int, width: int, dim: int) -> Float[Tensor, "places dim"]:
    """Sines and cosines of the column in one half of the features, of the row in the other; places go row by row.

    Source: Beyer et al. (2022), "Better plain ViT baselines", whose code spaces the wavelengths from 2 pi to 20,000 pi,
    both ends included.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} is no multiple of 4: a sine and a cosine on each of two axes need one.")
    count = dim // 4
    rate = torch.exp(torch.arange(count, dtype=torch.float64) * (-math.log(10_000.0) / max(1, count - 1)))
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    down, right = row.flatten()[:, None] * rate, column.flatten()[:, None] * rate
    return torch.cat([right.sin(), right.cos(), down.sin(), down.cos()], 1)


class GridRotary(Rotary):
    """Rotary positions on a grid: half of the pairs turn with the row, half with the column.

    The first `prefix` tokens stand nowhere and are not turned. Source: Heo et al. (2024), "Rotary position embedding
    for vision Transformer", section 3.2, the axial form, with its base of 100.

    Raises:
        ValueError: the width is no multiple of 4.
    """

    def __init__(self, width: int, grid: tuple[int, int], *, prefix: int = 0, base: float = 100.0) -> None:
        if width % 4:
            raise ValueError(f"width={width} of a head is no multiple of 4: two axes turn pairs of features.")
        self.grid, self.prefix = grid, prefix
        super().__init__(width, base=base, length=prefix + grid[0] * grid[1])

    def reserve(self, length: int) -> None:
        """Refuse tokens that have no place on the grid.

        Raises:
            ValueError: there are more than it holds.
        """
        if length > self.prefix + self.grid[0] * self.grid[1]:
            raise ValueError(f"{length} tokens are more than the grid {self.grid} and {self.prefix} tokens before it.")

    def _compute(self, length: int) -> Float[Tensor, "length pairs 2"]:
        rate = self.base ** (-torch.arange(0, self.width, 4, dtype=torch.float64) / self.width)
        row, column = torch.meshgrid(*(torch.arange(side).double() for side in self.grid), indexing="ij")
        angle = torch.cat([row.flatten()[:, None] * rate, column.flatten()[:, None] * rate], 1)
        angle = torch.cat([angle.new_zeros(self.prefix, angle.size(1)), angle])
        return torch.stack([angle.cos(), angle.sin()], -1)


def resize_grid(
    table: Float[Tensor, "places dim"], grid: tuple[int, int], new: tuple[int, int], *, prefix: int = 0
) -> Float[Tensor, "new_places dim"]:
    """Stretch a learned table of positions to another grid, bicubically with antialiasing; `prefix` rows stay.

    Source: Dosovitskiy et al. (2021), section 3.2; bicubic with antialiasing as timm does it, other libraries differ.
    """
    if grid == new:
        return table
    places = table[prefix:].T.reshape(1, -1, *grid).float()
    places = F.interpolate(places, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:prefix], places.flatten(2)[0].T.to(table.dtype)])
