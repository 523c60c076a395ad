"""Vision Transformer: an image as a sequence of patches, read by the encoder that also reads sentences."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tasks.image_classification.stem import ResNetStem
from transformer_core import (
    BlockConfig,
    Derived,
    Dropout,
    Encoder,
    GridRotary,
    PatchEmbedding,
    make_attention,
    make_feed_forward,
    make_norm,
    resize_grid,
    sinusoidal_grid,
)


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """What a ViT has beside its blocks."""

    depth: int = 12
    """Encoder blocks."""
    patch_size: tuple[int, int] = (16, 16)
    """Height and width of a patch, in pixels or in places of the stem; halving both costs four times as much."""
    stem: Literal["none", "resnet"] = "none"
    """What patches are cut from: the image, or the features of a ResNet at 1/16 of its size (R50+ViT)."""
    class_token: bool = True
    """Put a learned token before the patches, from which `pool: cls` reads the class."""
    distillation_token: bool = False
    """Put a second one there with a head of its own, which learns from a teacher (Touvron et al. 2021, DeiT)."""
    registers: int = 0
    """Further learned tokens before the patches, which nothing is read from (Darcet et al. 2024)."""
    position_of_prefix: bool = True
    """Give these tokens positions as well, where positions are learned."""
    pool: Literal["cls", "mean", "attention"] = "cls"
    """How one vector is made: the class token, the mean of the patches, or attention to them from a learned query."""
    patch_dropout: float = 0.0
    """Share of the patches that each image loses in training, and of the computation (Li et al. 2023)."""
    representation_dim: int = 0
    """Features of a layer with tanh between the pooled vector and the head; 0: no such layer."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth} leaves no block: choose 1 or more.")
        if min(self.patch_size) < 1 or self.registers < 0 or self.representation_dim < 0:
            raise ValueError("patch_size wants positive sides, registers and representation_dim 0 or more.")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool=cls reads the class token and class_token is false: choose pool=mean or attention.")
        if self.distillation_token and self.pool != "cls":
            raise ValueError(f"distillation_token stands beside the class token: choose pool=cls, not {self.pool}.")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout={self.patch_dropout} is no share: choose 0 or more, and less than 1.")

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distillation_token + self.registers


class VisionTransformer(Derived):
    """Images in, logits of the classes out (Dosovitskiy et al. 2021).

    The sequence is the class token, the distillation token and the registers, as far as there are any, then the
    patches, row by row. Heads start at zero, so that all classes begin equal.

    Raises:
        ValueError: the image cannot be cut into patches, or the positions do not fit a grid.
    """

    def __init__(
        self, config: VitConfig, block: BlockConfig, num_classes: int, *, channels: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config, hybrid = config, config.stem == "resnet"
        self.grid = patch_grid(config, image_size)
        self.stem = ResNetStem(channels) if hybrid else nn.Identity()
        self.patches = PatchEmbedding(ResNetStem.dim if hybrid else channels, block.dim, config.patch_size)
        self.prefix = nn.Parameter(torch.randn(config.prefix, block.dim) * 0.02) if config.prefix else None
        self._make_position(block)
        self.dropout = Dropout(block.dropout)
        self.encoder = Encoder(block, config.depth, attention=self._make_attention)
        self.pool = AttentionPool(block) if config.pool == "attention" else nn.Identity()
        width = config.representation_dim or block.dim
        hidden = nn.Sequential(nn.Linear(block.dim, width), nn.Tanh())
        self.representation = hidden if config.representation_dim else nn.Identity()
        self.head = make_head(width, num_classes)
        if config.distillation_token:
            self.distillation_head = make_head(width, num_classes)

    def _make_position(self, block: BlockConfig) -> None:
        rows, columns = self.grid
        self.any_grid = block.position in ("learned", "none")
        match block.position:
            case "learned":
                places = rows * columns + self.config.prefix * self.config.position_of_prefix
                self.position = nn.Parameter(torch.empty(places, block.dim))
                nn.init.trunc_normal_(self.position, std=0.02)
            case "sinusoidal":
                self.register_buffer("position", torch.empty(rows * columns, block.dim), persistent=False)
                self.derive()
            case "rotary" if self.config.patch_dropout:
                raise ValueError("position=rotary turns patches by their place in a whole grid: set patch_dropout=0.")
            case "relative":
                raise ValueError(
                    "position=relative counts along a sequence: a ViT takes learned, sinusoidal or rotary."
                )
            case _:
                self.position = None

    position: Tensor | None

    def derive(self) -> None:
        """Write the positions that are not learned."""
        if "position" in self._buffers and isinstance(self.position, Tensor):
            self.position.copy_(sinusoidal_grid(*self.grid, self.position.size(1)))

    def _make_attention(self, block: BlockConfig) -> nn.Module:
        width = block.dim // block.num_heads
        rotary = GridRotary(width, self.grid, prefix=self.config.prefix) if block.position == "rotary" else None
        return make_attention(block, position=rotary)

    def tokens(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Return what the encoder reads: learned tokens and patches, with their positions.

        Raises:
            ValueError: the images have another size than the model, whose positions are neither learned nor none.
        """
        patches, prefix, position = self.patches(self.stem(images)), self.prefix, self.position
        rows, columns = patches.shape[1:3]
        patches = patches.flatten(1, 2)
        if (rows, columns) != self.grid:
            if not self.any_grid:
                raise ValueError(
                    f"images make a grid of {(rows, columns)} patches, and the model has {self.grid}: only learned "
                    "positions can be stretched, or none."
                )
            if position is not None:
                before = len(position) - self.grid[0] * self.grid[1]
                position = resize_grid(position, self.grid, (rows, columns), prefix=before)
        if position is not None:
            count = patches.size(1)
            patches = patches + position[-count:]
            if prefix is not None and len(position) > count:
                prefix = prefix + position[:-count]
        if self.training and self.config.patch_dropout:
            patches = drop_patches(patches, self.config.patch_dropout)
        if prefix is not None:
            patches = torch.cat([prefix.to(patches.dtype).expand(len(patches), -1, -1), patches], 1)
        return self.dropout(patches)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | Float[Tensor, "batch 2 classes"]:
        """Return the logits; with a distillation token in training those of both heads, else their mean."""
        read = 1 + self.config.distillation_token if self.config.pool == "cls" else None
        states = self.encoder(self.tokens(images), first=read)
        if self.config.distillation_token:
            own, taught = self.representation(states[:, :2]).unbind(1)
            both = torch.stack([self.head(own), self.distillation_head(taught)], 1)
            return both if self.training else both.mean(1)
        match self.config.pool:
            case "cls":
                pooled = states[:, 0]
            case "mean":
                pooled = states[:, self.config.prefix :].mean(1)
            case "attention":
                pooled = self.pool(states[:, self.config.prefix :])
        return self.head(self.representation(pooled))


class AttentionPool(nn.Module):
    """Make one vector of many by attention from a learned query, and a feed-forward network (Zhai et al. 2022)."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, block.dim))
        nn.init.trunc_normal_(self.query, std=block.dim**-0.5)
        self.attention = make_attention(block, cross=True)
        self.norm = make_norm(block.norm, block.dim, eps=block.norm_eps)
        self.feed_forward = make_feed_forward(block)

    def forward(self, states: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """Pool all `states`."""
        query = self.query.to(states.dtype).expand(len(states), -1, -1)
        pooled = self.attention(query, self.attention.keys_values(states))[:, 0]
        return pooled + self.feed_forward(self.norm(pooled))


def patch_grid(config: VitConfig, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of patches.

    Raises:
        ValueError: the image cannot be cut into whole patches.
    """
    stride = ResNetStem.stride if config.stem == "resnet" else 1
    patch = config.patch_size[0] * stride, config.patch_size[1] * stride
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ValueError(
            f"image_size={list(image_size)} cannot be cut into patches of {list(patch)} pixels: choose multiples, or "
            "another vit.patch_size."
        )
    return image_size[0] // patch[0], image_size[1] // patch[1]


def drop_patches(patches: Float[Tensor, "batch patches dim"], rate: float) -> Float[Tensor, "batch kept dim"]:
    """Keep a share 1 - `rate` of each image's patches, drawn anew for each; at least one."""
    kept = max(1, round(patches.size(1) * (1 - rate)))
    index = torch.rand(patches.shape[:2], device=patches.device).topk(kept, 1).indices
    return patches.gather(1, index[:, :, None].expand(-1, -1, patches.size(2)))


def make_head(dim: int, num_classes: int) -> nn.Linear:
    """Build the last layer, at zero."""
    head = nn.Linear(dim, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
