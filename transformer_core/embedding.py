"""Tokens to vectors."""

import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_core.config import BlockConfig
from transformer_core.dropout import Dropout
from transformer_core.position import Learned, Sinusoidal


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

    def forward(self, ids: Int[Tensor, "batch length"], offset: int = 0) -> Float[Tensor, "batch length dim"]:
        """Embed tokens that stand at the positions `offset`, `offset + 1`, ..."""
        x = self.tokens(ids) * self.scale
        if self.position is not None:
            x = self.position(x, offset)
        return self.dropout(x)
