"""Multi-head attention: projections around `attention()`, for self-attention, cross-attention and cached steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from transformer_core.attention import attention, attention_weights
from transformer_core.position import PositionBias, Rotary
from transformer_core.residual import NormName, make_norm
from transformer_core.score import ScaledDotProduct, Score


class KeysValues(NamedTuple):
    """What is attended to, projected and split into heads; made once, used by whoever needs it."""

    key: Float[Tensor, "batch kv_heads keys width"]
    value: Float[Tensor, "batch kv_heads keys width"]


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own projection of the input.

    Source: Vaswani et al. (2017), section 3.2.2; fewer key and value heads, Ainslie et al. (2023). The weights of the
    projection lie as in `torch.nn.MultiheadAttention`: rows of queries, then keys, then values.

        self_attention(x, mask=mask)                      # one product projects queries, keys and values
        cross_attention(x, cross_attention.keys_values(source), mask=mask)
        self_attention(x, cache=layer_cache)              # x are the newest positions, the cache holds the others
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
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(dim, num_heads, self.num_kv_heads)
        self.width = dim // num_heads
        self.causal, self.dropout = causal, dropout
        self.score = score or ScaledDotProduct()
        self.position = position
        self.rows = [num_heads * self.width, self.num_kv_heads * self.width, self.num_kv_heads * self.width]
        self.input = nn.Linear(dim, sum(self.rows))
        self.output = nn.Linear(dim, dim)
        self.query_norm = make_norm(qk_norm, self.width, eps=norm_eps) if qk_norm else nn.Identity()
        self.key_norm = make_norm(qk_norm, self.width, eps=norm_eps) if qk_norm else nn.Identity()
        for weight in (*self.input.weight.split(self.rows), self.output.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.output.bias)
        self.record: Callable[[Tensor], None] | None = None

    def keys_values(self, source: Float[Tensor, "batch keys dim"]) -> KeysValues:
        """Project what will be attended to, without position."""
        rows = slice(self.rows[0], None)
        key, value = F.linear(source, self.input.weight[rows], self.input.bias[rows]).chunk(2, -1)
        return KeysValues(self.key_norm(self._split(key)), self._split(value))

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        memory: KeysValues | None = None,
        *,
        mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
        cache: "LayerCache | None" = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from `x` to `memory`, or to `x` itself and what the cache holds before it.

        Raises:
            ValueError: a memory is given together with a cache, or to a layer with positions: a memory never grows, and
                its positions are not those of the queries.
        """
        if memory is not None and cache is not None:
            raise ValueError("pass memory (cross-attention) or cache (self-attention), not both: a memory never grows.")
        if memory is not None and self.position is not None:
            raise ValueError(
                "a layer with a position compares places of one sequence: build it without to read a memory."
            )
        if memory is not None:
            rows = self.rows[0]
            query = self.query_norm(self._split(F.linear(x, self.input.weight[:rows], self.input.bias[:rows])))
            key, value = memory
        else:
            query, key, value = (self._split(part) for part in self.input(x).split(self.rows, -1))
            query, key = self.query_norm(query), self.key_norm(key)
            if isinstance(self.position, Rotary):
                offset = cache.length if cache is not None else 0
                query, key = self.position(query, offset), self.position(key, offset)
            if cache is not None:
                key, value = cache.append(key, value)
        bias = self.position(query.size(2), key.size(2)) if isinstance(self.position, PositionBias) else None
        if self.record is not None:
            weights = attention_weights(query, key, score=self.score, mask=mask, bias=bias, causal=self.causal)
            self.record(weights.detach())
        dropout = self.dropout if self.training else 0.0
        out = attention(query, key, value, score=self.score, mask=mask, bias=bias, causal=self.causal, dropout=dropout)
        return self.output(out.transpose(1, 2).flatten(2))

    def _split(self, x: Float[Tensor, "batch length features"]) -> Float[Tensor, "batch heads length width"]:
        return x.unflatten(-1, (-1, self.width)).transpose(1, 2)


class LayerCache:
    """Keys and values of the positions so far in one layer, in memory set aside for `capacity` positions."""

    def __init__(self, like: KeysValues, rows: int, capacity: int) -> None:
        _, heads, _, width = like.key.shape
        self.key = like.key.new_empty(rows, heads, capacity, width)
        self.value = like.value.new_empty(rows, heads, capacity, width)
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> KeysValues:
        """Write the newest positions, (rows, heads, new, width) each, and return all positions so far.

        Raises:
            ValueError: the capacity is used up.
        """
        end = self.length + key.size(2)
        if end > self.key.size(2):
            raise ValueError(f"position {end} is past the capacity of the cache, {self.key.size(2)}: ask for more.")
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return KeysValues(self.key[:, :, :end], self.value[:, :, :end])

    def select(self, rows: Tensor) -> None:
        """Let row i go on from row `rows[i]`; rows may repeat, fall away and change order."""
        end = self.length
        if len(rows) == len(self.key):
            self.key[:, :, :end] = self.key[rows, :, :end]
            self.value[:, :, :end] = self.value[rows, :, :end]
        else:
            self.key, self.value = self.key[rows], self.value[rows]


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
    for name, layer in layers.items():
        layer.record = maps[name].append
    try:
        yield maps
    finally:
        for layer in layers.values():
            layer.record = None
