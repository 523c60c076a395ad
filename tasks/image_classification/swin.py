"""Swin Transformer: the same encoder blocks on windows of a grid that shrinks from stage to stage."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tasks.image_classification.vit import make_head
from transformer_core import (
    BlockConfig,
    Dropout,
    EncoderBlock,
    PatchEmbedding,
    WindowAttention,
    WindowBias,
    block_configs,
    make_attention,
    make_norm,
    run_block,
)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """What a Swin Transformer has beside its blocks; their sizes are those of the first stage, each next doubles."""

    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Encoder blocks of each stage."""
    patch_size: tuple[int, int] = (4, 4)
    """Height and width of a patch in pixels."""
    window: tuple[int, int] = (7, 7)
    """Height and width of a window in tokens; attention costs in proportion to its area."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths={list(self.depths)}: give each stage 1 block or more.")
        if min(*self.patch_size, *self.window) < 1:
            raise ValueError("patch_size and window want positive sides.")


class SwinTransformer(nn.Module):
    """Images in, logits of the classes out (Liu et al. 2021).

    Every second block moves its windows by half of one. Between stages, 2 x 2 tokens become one of twice the features.
    Images may have any size: what is missing to a multiple is padded with zeros.

    Raises:
        ValueError: the block asks for positions other than "relative", which are those of the windows.
    """

    def __init__(self, config: SwinConfig, block: BlockConfig, num_classes: int, *, channels: int) -> None:
        super().__init__()
        if block.position != "relative":
            raise ValueError(f"position={block.position}: a Swin Transformer has relative positions in its windows.")
        self.patch_size, self.recompute = config.patch_size, block.recompute
        self.patches = PatchEmbedding(channels, block.dim, config.patch_size)
        self.patch_norm = make_norm(block.norm, block.dim, eps=block.norm_eps)
        self.dropout = Dropout(block.dropout)
        blocks = iter(block_configs(block, sum(config.depths)))
        self.stages, self.mergings = nn.ModuleList(), nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            own = [widened(next(blocks), 2**stage) for _ in range(depth)]
            layers = [window_block(each, config.window, shifted=bool(i % 2)) for i, each in enumerate(own)]
            self.stages.append(nn.ModuleList(layers))
            last = stage == len(config.depths) - 1
            self.mergings.append(nn.Identity() if last else PatchMerging(own[0]))
        dim = block.dim * 2 ** (len(config.depths) - 1)
        self.norm = make_norm(block.norm, dim, eps=block.norm_eps)
        self.head = make_head(dim, num_classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        x = self.dropout(self.patch_norm(self.patches(pad_to_multiple(images, self.patch_size))))
        for stage, merging in zip(self.stages, self.mergings, strict=True):
            for block in stage.children():
                x = run_block(block, x, recompute=self.recompute and self.training)
            x = merging(x)
        return self.head(self.norm(x).mean((1, 2)))


class PatchMerging(nn.Module):
    """Make one token of each 2 x 2 and double its features (Liu et al. 2021, section 3.1)."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.norm = make_norm(block.norm, 4 * block.dim, eps=block.norm_eps)
        self.reduction = nn.Linear(4 * block.dim, 2 * block.dim, bias=False)
        nn.init.xavier_uniform_(self.reduction.weight)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch rows columns doubled"]:
        """Merge; an odd row or column is padded."""
        x = F.pad(x, (0, 0, 0, x.size(2) % 2, 0, x.size(1) % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def widened(block: BlockConfig, factor: int) -> BlockConfig:
    """Return the block of a later stage: heads stay as wide as they are, and there are more of them."""
    return replace(
        block, dim=block.dim * factor, num_heads=block.num_heads * factor, hidden_dim=block.hidden_dim * factor
    )


def window_block(block: BlockConfig, window: tuple[int, int], *, shifted: bool) -> EncoderBlock:
    """Build an encoder block on a grid whose tokens see those in their own window."""
    attention = make_attention(block, position=WindowBias(block.num_heads, window))
    return EncoderBlock(block, attention=WindowAttention(attention, window, shifted=shifted))


def pad_to_multiple(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Pad images with zeros at the bottom and right, so that they can be cut into patches."""
    height, width = (-side % patch for side, patch in zip(images.shape[-2:], patch_size, strict=True))
    return F.pad(images, (0, width, 0, height)) if height or width else images
