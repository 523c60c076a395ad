"""Attention over the places of an image: among themselves, and to the words of a caption."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transformer_core.attention import attention, attention_weights
from transformer_core.linear import Linear
from transformer_core.score import DotProduct, Score


class FeatureMapAttention(nn.Module):
    """Let each place of a feature map look at all others, and add what it sees; a fresh layer changes nothing.

    What is added is multiplied by a learned `gain` that starts at 0. Source: Zhang et al. (2018), "Self-attention
    generative adversarial networks", section 3. Queries and keys have an eighth of the channels; values have half of
    them, as in the published code, where the paper has an eighth. That code also lets keys and values be the maximum of
    squares of 2 x 2 places (`pool=2`) and wraps the four convolutions in spectral normalisation, which
    `torch.nn.utils.parametrizations.spectral_norm` does from outside.

    Raises:
        ValueError: fewer than 8 channels and no `key_dim`, or a size that is less than 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        pool: int = 1,
        score: Score | None = None,
    ) -> None:
        super().__init__()
        key_dim = channels // 8 if key_dim is None else key_dim
        value_dim = channels // 2 if value_dim is None else value_dim
        for name, size in (("key_dim", key_dim), ("value_dim", value_dim), ("pool", pool)):
            if size < 1:
                raise ValueError(f"{name}={size} of {channels} channels leaves nothing: choose 1 or more.")
        self.pool = pool
        self.score = score or DotProduct()
        self.query = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.key = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.value = nn.Conv2d(channels, value_dim, 1, bias=False)
        self.output = nn.Conv2d(value_dim, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Return `x` and, times the gain, what each place sees; any height and width will do."""
        value = _places(self._pooled(self.value(x)))
        seen = attention(_places(self.query(x)), self._keys(x), value, score=self.score)
        return x + self.gain * self.output(_as_map(seen, x))

    def weights(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places key_places"]:
        """Return how much each place looks at each, row by row, which `forward` never holds: to be looked at."""
        return attention_weights(_places(self.query(x)), self._keys(x), score=self.score)[:, 0]

    def _keys(self, x: Tensor) -> Tensor:
        return _places(self._pooled(self.key(x)))

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.pool, ceil_mode=True) if self.pool > 1 else x


class WordRegionAttention(nn.Module):
    """Tell each region of an image what the words of its caption mean for it.

    Words are projected to the features of the regions and are keys and values alike. Source: Xu et al. (2018),
    "AttnGAN", section 3.1, the attention model F_attn.
    """

    def __init__(self, channels: int, word_dim: int, *, score: Score | None = None) -> None:
        super().__init__()
        self.score = score or DotProduct()
        self.word = Linear(word_dim, channels, bias=False)
        nn.init.xavier_uniform_(self.word.weight)

    def forward(
        self,
        regions: Float[Tensor, "batch channels height width"],
        words: Float[Tensor, "batch words word_dim"],
        *,
        mask: Bool[Tensor, "#batch 1 #regions words"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the word-context of each region: zeros for a caption without words.

        `mask` is True for the words of the caption and False for padding, as `padding_mask(lengths, words)` says it.
        """
        word = self.word(words)[:, None]
        return _as_map(attention(_places(regions), word, word, score=self.score, mask=mask), regions)

    def weights(
        self,
        regions: Float[Tensor, "batch channels height width"],
        words: Float[Tensor, "batch words word_dim"],
        *,
        mask: Bool[Tensor, "#batch 1 #regions words"] | None = None,
    ) -> Float[Tensor, "batch words height width"]:
        """Return for each word the picture of where it counts, which `forward` never holds: to be looked at."""
        weights = attention_weights(_places(regions), self.word(words)[:, None], score=self.score, mask=mask)
        return _as_map(weights, regions)


def _places(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1 places channels"]:
    return x.flatten(2).mT[:, None]


def _as_map(
    x: Float[Tensor, "batch 1 places features"], like: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch features height width"]:
    return x[:, 0].mT.unflatten(2, like.shape[2:])
