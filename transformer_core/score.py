"""How a query is compared with a key.

A score is a definition, `forward`, and where mathematics allows a factorisation, `factor`: queries and keys whose dot
product equals the score up to a constant per query, which softmax cancels. What factors runs on PyTorch's fused
kernels; the rest takes the plain path of `attention()`. To add a score, write `forward`.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transformer_core.choices import check_choice

ScoreName = Literal["scaled_dot", "dot", "additive", "bilinear", "cosine", "gaussian"]


class Factored(NamedTuple):
    """A score rewritten as `scale * query @ key.mT`, up to a constant per query."""

    query: Float[Tensor, "batch heads queries features"]
    key: Float[Tensor, "batch kv_heads keys features"]
    scale: float = 1.0


class Score(nn.Module):
    """Base of all scores; a subclass writes `forward` and, if it can, `factor`."""

    pair_width: int = 1
    """Numbers that `forward` holds per pair of query and key: the plain path sizes its chunks by it."""

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys key_width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Compare every query with every key; larger means more attention."""
        raise NotImplementedError

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys key_width"]
    ) -> Factored | None:
        """Return the factorisation, or None where the score has none."""
        return None


class DotProduct(Score):
    """Compare by direction and length: the plain dot product (Luong et al. 2015, section 3.1, "dot")."""

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return `query @ key.mT`."""
        return query @ key.mT

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys width"]
    ) -> Factored:
        """It is its own factorisation."""
        return Factored(query, key)


class ScaledDotProduct(Score):
    """Dot product over the root of the width, so that its variance is that of one feature.

    Source: Vaswani et al. (2017), section 3.2.1.
    """

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return `query @ key.mT / sqrt(width)`."""
        return query @ key.mT / math.sqrt(query.size(-1))

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys width"]
    ) -> Factored:
        """The kernel applies the scale."""
        return Factored(query, key, 1 / math.sqrt(query.size(-1)))


class Additive(Score):
    """A small network compares: `w . tanh(W_q query + W_k key)`; widths of queries and keys may differ.

    Source: Bahdanau et al. (2015), appendix A.1.2. It does not factor, because tanh stands between query and key.
    """

    def __init__(self, query_width: int, key_width: int | None = None, *, hidden_dim: int | None = None) -> None:
        super().__init__()
        self.pair_width = hidden_dim = hidden_dim or query_width
        self.query = nn.Linear(query_width, hidden_dim, bias=False)
        self.key = nn.Linear(key_width or query_width, hidden_dim, bias=False)
        self.weight = nn.Linear(hidden_dim, 1, bias=False)

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys key_width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return one number per pair; holds (batch, heads, queries, keys, hidden_dim) while it works."""
        hidden = torch.tanh(self.query(query)[..., :, None, :] + self.key(key)[..., None, :, :])
        return self.weight(hidden).squeeze(-1)


class Bilinear(Score):
    """A learned matrix between query and key, `query W key`; their widths may differ.

    Source: Luong et al. (2015), section 3.1, "general". W starts orthogonal and scaled by one over the root
    of the smaller width, so that the scores of a fresh model have the variance of the scaled dot product.
    """

    def __init__(self, query_width: int, key_width: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(query_width, key_width or query_width))
        nn.init.orthogonal_(self.weight, gain=1 / math.sqrt(min(self.weight.shape)))

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys key_width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return `query @ W @ key.mT`."""
        return query @ self.weight @ key.mT

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys key_width"]
    ) -> Factored:
        """W belongs to the queries."""
        return Factored(query @ self.weight, key)


class Cosine(Score):
    """Compare by direction alone: the cosine times a learned inverse temperature.

    Source: Graves et al. (2014), section 3.3.1; with a learned temperature Liu et al. (2022, Swin V2), section 3.2,
    where each head has its own and it is bounded; here all heads of a layer share one.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.log_sharpness = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return the cosine over the temperature."""
        return _unit(query) @ _unit(key).mT * self.log_sharpness.exp()

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys width"]
    ) -> Factored:
        """Normalise both sides; the temperature belongs to the queries."""
        sharp = _unit(query) * self.log_sharpness.exp()
        return Factored(sharp.to(query.dtype), _unit(key))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny))  # 1e-12 is 0 in float16


class GaussianKernel(Score):
    """Attend by distance: -|query - key|^2 / (2 sigma^2), with a learned width sigma.

    Source: Nadaraya (1964); Watson (1964): softmax over this score is Nadaraya-Watson regression with a Gaussian
    kernel. Expanding the square leaves a dot product, a price per key, and a term softmax cancels, which is why
    `factor` is exact, but for rounding: where queries and keys lie far from 0 and close together, as coordinates may,
    take off their mean first.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def forward(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch heads keys width"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """Return the log of the kernel, in float32 or wider: squares of 16-bit differences would be too coarse."""
        wide = torch.promote_types(query.dtype, torch.float32)
        distance = torch.cdist(query.to(wide), key.to(wide), compute_mode="donot_use_mm_for_euclid_dist")
        return -distance.square() / (2 * (2 * self.log_sigma).exp())

    def factor(
        self, query: Float[Tensor, "batch heads queries width"], key: Float[Tensor, "batch kv_heads keys width"]
    ) -> Factored:
        """Let the price -|key|^2 / (2 sigma^2) ride in spare features of the keys, against ones in the queries.

        The price is carried in two parts, of which the second is what the first lost to a 16-bit type; the width is
        filled up to a multiple of 8, which fused kernels want.
        """
        wide = torch.promote_types(key.dtype, torch.float32)
        precision = (-2 * self.log_sigma).exp()
        price = -0.5 * precision * key.to(wide).square().sum(-1, keepdim=True)
        high = price.to(key.dtype)
        low = (price - high).to(key.dtype)
        spare = -(query.size(-1) + 2) % 8
        ones = F.pad(query.new_ones(*query.shape[:-1], 2), (0, spare))
        return Factored(
            torch.cat([(query * precision).to(query.dtype), ones], -1),
            F.pad(torch.cat([key, high, low], -1), (0, spare)),
        )


def make_score(name: ScoreName, width: int) -> Score:
    """Build the score of that name for heads of `width` features, with the defaults of a Transformer block.

    Raises:
        ValueError: the name is another.
    """
    check_choice("score", name, ScoreName)
    match name:
        case "scaled_dot":
            return ScaledDotProduct()
        case "dot":
            return DotProduct()
        case "additive":
            return Additive(width)
        case "bilinear":
            return Bilinear(width)
        case "cosine":
            return Cosine()
        case "gaussian":
            return GaussianKernel(sigma=width**0.25)
