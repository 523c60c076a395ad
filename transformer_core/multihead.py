"""Multi-head attention: projections around `attention()`, for self-attention, cross-attention and cached steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transformer_core.attention import attention, attention_weights
from transformer_core.cache import KeysValues, LayerCache
from transformer_core.linear import Linear
from transformer_core.position import PositionBias, Rotary
from transformer_core.residual import NormName, make_norm
from transformer_core.score import ScaledDotProduct, Score


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of the input.

    Source: Vaswani et al. (2017), section 3.2.2; fewer key and value heads, Ainslie et al. (2023). The weights of the
    projection lie as in `torch.nn.MultiheadAttention`: rows of queries, then keys, then values.

        self_attention(x, mask=mask)                      # one product projects queries, keys and values
        cross_attention(x, cross_attention.keys_values(source), mask=mask)
        self_attention(x, cache=layer_cache)              # x are the newest positions, the cache holds the others

    Raises:
        ValueError: the heads cannot share `dim`, score or position is no module, or dropout no share.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        score: Score | None = None,
        position: Rotary | PositionBias | None = None,
        qk_norm: NormName | None = None,
        norm_eps: float = 1e-5,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(dim, num_heads, kv_heads)
        if not isinstance(score, Score | None) or not isinstance(position, Rotary | PositionBias | None):
            raise ValueError("score and position are modules, or None: make them first, as `make_attention` does.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is no share of the weights: choose 0 or more, and less than 1.")
        self.width = dim // num_heads
        self.causal, self.dropout = causal, dropout
        self.score = score or ScaledDotProduct()
        self.position = position
        self.rows = [dim, kv_heads * self.width, kv_heads * self.width]
        self.input = Linear(dim, sum(self.rows))
        self.output = Linear(dim, dim)
        self.query_norm = make_norm(qk_norm, self.width, eps=norm_eps) if qk_norm else nn.Identity()
        self.key_norm = make_norm(qk_norm, self.width, eps=norm_eps) if qk_norm else nn.Identity()
        for weight in (*self.input.weight.split(self.rows), self.output.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.output.bias)
        self.record: Callable[[Tensor], None] | None = None

    def keys_values(self, source: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Project what will be attended to, without position."""
        key, value = self.input(source, slice(self.rows[0], None)).chunk(2, -1)
        return KeysValues(self.key_norm(self._split(key)), self._split(value))

    def forward(
        self,
        x: Float[Tensor, "#batch queries dim"],
        memory: KeysValues | None = None,
        *,
        mask: Bool[Tensor, "*#leading #queries_of_beams keys"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from `x` to `memory`, or to `x` itself and what the cache holds before it.

        One example of `x`, learned queries say, may look at all memories, and all at one.

        With a cache, `mask` is what `Cache.grow` says of it; without one the cache holds one hypothesis a sentence,
        and causality says it all. Several lie side by side in the batch, and are queries of what all have written.

        Raises:
            ValueError: a memory is given together with a cache, or to a layer with positions: a memory never grows, and
                its positions are not those of the queries. A cache of several hypotheses comes without a mask. A mask
                has three axes, of which the first could be examples or heads.
        """
        if mask is not None and mask.dim() == 3:
            raise ValueError(
                f"a mask of {tuple(mask.shape)} can mean examples or heads: give (batch, 1, queries, keys), or "
                "(1, heads, queries, keys)."
            )
        beams = cache.beams if cache is not None else 1
        if memory is not None and cache is not None:
            raise ValueError("pass memory (cross-attention) or cache (self-attention), not both: a memory never grows.")
        if memory is not None and self.position is not None:
            raise ValueError(
                "a layer with a position compares places of one sequence: build it without to read a memory."
            )
        if beams > 1 and mask is None:
            raise ValueError("a cache of several hypotheses needs the mask of Cache.grow: else they see each other.")
        if memory is not None:
            query = self.query_norm(self._split(self.input(x, slice(self.rows[0]))))
            key, value = memory
        else:
            query, key, value = (self._split(part) for part in self.input(x).split(self.rows, -1))
            query, key = self.query_norm(query), self.key_norm(key)
            if isinstance(self.position, Rotary):
                offset = cache.length if cache is not None else 0
                query, key = self.position(query, offset), self.position(key, offset)
            if beams > 1:
                query, key, value = (_beams_as_queries(part, beams) for part in (query, key, value))
            if cache is not None:
                key, value = cache.append(key, value, read=None if mask is None else mask.size(-1))
        causal = self.causal and (cache is None or mask is None)
        bias = None
        if isinstance(self.position, PositionBias):
            bias = self.position(query.size(2) // beams, key.size(2) // beams if cache is None else cache.length)
            if cache is not None:
                bias = bias.repeat_interleave(beams, 2).repeat_interleave(beams, 3)
                bias = F.pad(bias, (0, key.size(2) - bias.size(3)))
        if self.record is not None:
            weights = attention_weights(query, key, score=self.score, mask=mask, bias=bias, causal=causal)
            written = key.size(2) if cache is None else cache.length * beams
            self.record(weights[..., :written].detach())
        dropout = self.dropout if self.training else 0.0
        out = attention(query, key, value, score=self.score, mask=mask, bias=bias, causal=causal, dropout=dropout)
        out = out.transpose(1, 2)
        if beams > 1:
            out = out.unflatten(1, (-1, beams)).transpose(1, 2).flatten(0, 1)
        return self.output(out.flatten(2))

    def _split(self, x: Float[Tensor, "batch length features"]) -> Float[Tensor, "batch heads length width"]:
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)


def _beams_as_queries(
    x: Float[Tensor, "rows heads new width"], beams: int
) -> Float[Tensor, "sentences heads new_beams width"]:
    """Put the hypotheses of a sentence side by side at each position; a view where there is one position."""
    return x.unflatten(0, (x.size(0) // beams, beams)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def check_heads(dim: int, num_heads: int, num_kv_heads: int) -> None:
    """Refuse a width that the heads cannot share.

    Raises:
        ValueError: there are no heads, `dim` is no multiple of `num_heads`, or `num_heads` none of `num_kv_heads`.
    """
    if num_heads < 1 or num_kv_heads < 1:
        raise ValueError(f"num_heads={num_heads} and num_kv_heads={num_kv_heads} must both be 1 or more.")
    if dim % num_heads:
        near = min((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: abs(n - num_heads))
        raise ValueError(
            f"dim={dim} cannot be split over num_heads={num_heads}: "
            f"choose num_heads among the divisors of {dim}, for example {near}."
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads={num_heads} cannot share num_kv_heads={num_kv_heads}: "
            f"choose num_kv_heads among the divisors of {num_heads}."
        )


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the attention weights of every layer while the block runs, by the layer's name in `model`.

        with record_attention(model) as maps:
            model(x)
        maps["blocks.0.attention"][0]   # (batch, heads, queries, keys) of the first call

    The weights are computed beside the fused path, so the outputs are the same bits with and without it.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MultiHeadAttention)}
    maps: dict[str, list[Tensor]] = {name: [] for name in layers}
    before = {name: layer.record for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.record = maps[name].append
    try:
        yield maps
    finally:
        for name, layer in layers.items():
            layer.record = before[name]
