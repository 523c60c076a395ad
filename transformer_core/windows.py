"""Attention inside windows of a grid: a fold of the batch around the one multi-head attention."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transformer_core.cache import round_up
from transformer_core.derived import Derived
from transformer_core.multihead import MultiHeadAttention
from transformer_core.position import PositionBias

Size = tuple[int, int]
"""Height and width, in tokens."""


def split_windows(x: Float[Tensor, "batch height width dim"], window: Size) -> Float[Tensor, "rows length dim"]:
    """Cut grids into windows, row by row: `rows` is batch x windows, `length` the tokens of a window.

    Height and width are multiples of those of the window.
    """
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window[0], window[0], width // window[1], window[1], dim)
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], dim)


def join_windows(
    x: Float[Tensor, "rows length dim"], window: Size, grid: Size
) -> Float[Tensor, "batch height width dim"]:
    """Undo `split_windows` for grids of the size `grid`."""
    x = x.view(-1, grid[0] // window[0], grid[1] // window[1], window[0], window[1], x.size(-1))
    return x.transpose(2, 3).reshape(-1, grid[0], grid[1], x.size(-1))


@lru_cache(maxsize=64)
def region_mask(
    grid: Size, window: Size, shift: Size, device: torch.device
) -> Bool[Tensor, "windows 1 length length"] | None:
    """True between tokens of a window that were neighbours before the grid was padded and rolled by `shift`.

    Rolling brings the far edges of the grid into one window; tokens of different regions do not see each other. Padding
    is seen as the zeros that it is, but not along an axis on which the grid is smaller than
    a window. None where every token may see its whole window.
    Source: Liu et al. (2021), section 3.2, "cyclic shift". Kept for the next call with the same sizes.
    """
    padded = padded_size(grid, window)
    seen = grid[0] if grid[0] < window[0] else padded[0], grid[1] if grid[1] < window[1] else padded[1]
    if seen == padded and shift == (0, 0):
        return None
    with torch.inference_mode(False):  # the mask outlives an evaluation and is trained with afterwards
        row, column = (torch.arange(side, device=device) for side in padded)
        region = 2 * (row < shift[0])[:, None] + (column < shift[1])
        real = (row < seen[0])[:, None] & (column < seen[1])
        places = torch.stack([region, real], -1).roll((-shift[0], -shift[1]), (0, 1))
        region, real = split_windows(places[None].float(), window).unbind(-1)
        return ((region[:, :, None] == region[:, None]) & real[:, None].bool())[:, None]


def padded_size(grid: Size, window: Size) -> Size:
    """Return the smallest multiple of the window that holds the grid."""
    return round_up(grid[0], window[0]), round_up(grid[1], window[1])


class WindowBias(PositionBias, Derived):
    """A learned number per head and offset between two places of a window, added to the scores.

    Source: Liu et al. (2021), section 3.2, "relative position bias". The table lies as in the published code: row
    (dy + height - 1) * (2 width - 1) + (dx + width - 1) for a query dy below and dx right of its key.
    """

    def __init__(self, num_heads: int, window: Size) -> None:
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.empty((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.register_buffer("index", self._index(), persistent=False)

    index: Tensor

    def derive(self) -> None:
        """Write the rows of the table, pair by pair."""
        self.index.copy_(self._index())

    def _index(self) -> Int[Tensor, "length length"]:
        height, width = self.window
        row, column = (part.flatten() for part in torch.meshgrid(*map(torch.arange, self.window), indexing="ij"))
        down, right = row[:, None] - row[None, :], column[:, None] - column[None, :]
        return (down + height - 1) * (2 * width - 1) + right + width - 1

    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """Return the bias between all places of a window.

        Raises:
            ValueError: there are not as many queries and keys as places in the window.
        """
        places = self.index.size(0)
        if queries != places or keys != places:
            raise ValueError(f"{queries} queries and {keys} keys are not the {places} places of window {self.window}.")
        return self.weight[self.index.flatten()].view(places, places, -1).permute(2, 0, 1)[None]


class WindowAttention(nn.Module):
    """Let the tokens of a grid see those in their own window; every second layer moves the windows by half of one.

    Source: Liu et al. (2021), section 3.2. A grid that is no multiple of the window is padded with zeros at the bottom
    and right before it is moved, and they are seen, as in torchvision and transformers; timm moves before it pads. A
    grid smaller than the window is seen alone. Along an axis on which it fits into one window, nothing is moved.
    """

    def __init__(self, attention: MultiHeadAttention, window: Size, *, shifted: bool) -> None:
        super().__init__()
        self.attention = attention
        self.window, self.shifted = window, shifted

    def forward(
        self, x: Float[Tensor, "batch height width dim"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch height width dim"]:
        """Attend inside the windows.

        Raises:
            ValueError: there is a mask: who sees whom follows from the grid.
        """
        if mask is not None:
            raise ValueError("who sees whom in windows follows from the grid: there is no mask to give.")
        grid = x.size(1), x.size(2)
        # A mask that a tracer makes has no numbers, and would be kept for calls that need them.
        make_mask = region_mask.__wrapped__ if torch.compiler.is_compiling() else region_mask
        allowed = make_mask(grid, self.window, self.shift(grid), x.device)
        if allowed is not None:
            allowed = allowed.expand(x.size(0), *allowed.shape).flatten(0, 1)
        return self.unfold(self.attention(self.fold(x), mask=allowed), grid)

    def fold(self, x: Float[Tensor, "batch height width features"]) -> Float[Tensor, "rows length features"]:
        """Pad, roll and cut grids into windows: `rows` is batch x windows, `length` the tokens of a window."""
        grid = x.size(1), x.size(2)
        padded, shift = padded_size(grid, self.window), self.shift(grid)
        x = F.pad(x, (0, 0, 0, padded[1] - grid[1], 0, padded[0] - grid[0])) if padded != grid else x
        x = x.roll((-shift[0], -shift[1]), (1, 2)) if any(shift) else x
        return split_windows(x, self.window)

    def unfold(
        self, x: Float[Tensor, "rows length features"], grid: Size
    ) -> Float[Tensor, "batch height width features"]:
        """Undo `fold` for grids of the size `grid`."""
        shift = self.shift(grid)
        x = join_windows(x, self.window, padded_size(grid, self.window))
        x = x.roll(shift, (1, 2)) if any(shift) else x
        return x[:, : grid[0], : grid[1]]

    def shift(self, grid: Size) -> Size:
        """Return by how many rows and columns the windows are moved."""
        height, width = (
            side // 2 if self.shifted and length > side else 0 for length, side in zip(grid, self.window, strict=True)
        )
        return height, width
