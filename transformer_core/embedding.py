"""Tokens and patches to vectors."""

import math

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_core.config import BlockConfig
from transformer_core.dropout import Dropout
from transformer_core.position import Learned, Offset, Sinusoidal


class TokenEmbedding(nn.Module):
    """Look up each token, scale by the root of dim, add its position, drop out.

    Source: Vaswani et al. (2017), section 3.4. The weight is drawn with deviation dim^-0.5, so that scaled embeddings
    have unit variance and the same matrix, tied to the output layer, gives logits of unit variance.
    """

    def __init__(self, vocabulary_size: int, config: BlockConfig, *, pad_id: int | None = None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, config.dim, padding_idx=pad_id)
        nn.init.normal_(self.tokens.weight, std=config.dim**-0.5)
        if pad_id is not None:
            nn.init.zeros_(self.tokens.weight[pad_id])
        self.scale = math.sqrt(config.dim)
        match config.position:
            case "sinusoidal":
                self.position = Sinusoidal(config.dim)
            case "learned":
                self.position = Learned(config.dim, max_length=config.max_length)
            case _:
                self.position = None
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Int[Tensor, "batch length"], offset: Offset = 0) -> Float[Tensor, "batch length dim"]:
        """Embed tokens that stand at the positions `offset`, `offset + 1`, ...

        Raises:
            ValueError: positions are learned, and there are fewer.
        """
        x = self.tokens(ids) * self.scale
        if self.position is not None:
            x = self.position(x, offset)
        return self.dropout(x)


class PatchEmbedding(nn.Module):
    """Cut an image into patches and map each to a vector (Dosovitskiy et al. 2021, section 3.1).

    A convolution whose stride is its size; any number of channels, patches may be rectangular.
    """

    def __init__(self, channels: int, dim: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        # As a linear map from the numbers of a patch, which is what it is (LeCun et al. 1998).
        nn.init.trunc_normal_(self.projection.weight, std=(channels * patch_size[0] * patch_size[1]) ** -0.5)
        nn.init.zeros_(self.projection.get_parameter("bias"))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch rows columns dim"]:
        """Return a vector for each patch of the grid.

        Raises:
            ValueError: height or width is no multiple of the patch's.
        """
        size = images.shape[-2:]
        if size[0] % self.patch_size[0] or size[1] % self.patch_size[1]:
            raise ValueError(f"images of {tuple(size)} cannot be cut into patches of {self.patch_size}: resize them.")
        height, width = self.patch_size
        patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        # The same product as the convolution, whose backward pass takes three times as long on a CPU in bfloat16.
        return F.linear(patches, self.projection.weight.flatten(1), self.projection.bias)
