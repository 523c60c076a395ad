"""Attention itself: weights that sum to one, and the weighted mean of the values.

`attention()` is the only caller of PyTorch's fused kernels. A query with nothing to see gets zeros, forward and
backward, on every path.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transformer_core.dropout import drop_out
from transformer_core.masks import causal_mask, padding_mask
from transformer_core.score import Score

CHUNK_ELEMENTS = 2**24
"""Numbers, one per pair of query and key or more, that exist at once where no fused kernel avoids them; what is more is
taken in turns."""

FEW_QUERIES = 16
"""Queries up to which attention without gradients is computed by products on a CPU."""
FEW_KEYS = {torch.float32: 48, torch.bfloat16: 512}
"""Keys up to which attention with gradients is, by the type of its numbers."""


def attention(
    query: Float[Tensor, "#batch heads queries width"],
    key: Float[Tensor, "#batch kv_heads keys key_width"],
    value: Float[Tensor, "#batch kv_heads keys value_width"],
    *,
    score: Score,
    mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries value_width"]:
    """Return for each query the mean of the values, weighted by how well its key scores.

    Heads of keys and values may be fewer than those of queries (a divisor), each then serves a run of query heads
    (Ainslie et al. 2023). `mask` is True where a query may look; `bias` is added to the scores; `causal` lets a query
    see its own position and those before it, where the last query stands at the last key. `dropout` drops weights
    whenever it is not 0: the caller knows whether it trains. One example of queries, or of keys and values, serves all
    of the other.

    Raises:
        ValueError: the mask does not hold booleans, the heads of keys do not divide those of queries, or with `causal`
            there are more queries than keys.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"the mask holds {mask.dtype}: give booleans, True where a query may look, or a bias.")
    if query.size(1) % key.size(1):
        raise ValueError(f"{key.size(1)} heads of keys do not divide {query.size(1)} heads of queries.")
    query, key, value = _of_one_batch(query, key, value)
    factored = score.factor(query, key)
    if factored is None:
        weights = attention_weights(query, key, score=score, mask=mask, bias=bias, causal=causal)
        return drop_out(weights, dropout) @ _repeat_heads(value, query.size(1))
    q, k, scale = factored
    if _better_by_products(q, k, dropout):
        allowed = _with_causal(mask, q.size(-2), k.size(-2), causal, q.device)
        return _by_products(q, k, value, allowed, bias, dropout, scale)
    width = value.size(-1)
    wide = max(q.size(-1), width)  # fused kernels want one width for all three
    q, k, value = (x if x.size(-1) == wide else F.pad(x, (0, wide - x.size(-1))) for x in (q, k, value))
    # Branches, because under torch.compile a comparison of sizes is no bool, and the kernel wants one.
    aligned = True if causal and mask is None and bias is None and q.size(-2) == k.size(-2) else False
    grouped = True if q.size(1) != k.size(1) else False
    allowed = mask if aligned else _with_causal(mask, q.size(-2), k.size(-2), causal, q.device)
    blind = None
    if allowed is not None:
        # Kernels differ in what they make of a row without keys, so such a row sees all and is blanked afterwards.
        blind = ~allowed.any(-1, keepdim=True)
        allowed = allowed | blind
    if bias is not None:
        allowed = bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)
        allowed = allowed.to(q.dtype).contiguous()  # the kernels of GPUs refuse numbers that do not lie side by side
    out = F.scaled_dot_product_attention(
        q, k, value, allowed, dropout, is_causal=aligned, scale=scale, enable_gqa=grouped
    )
    out = out[..., :width]
    return out if blind is None else out.masked_fill(blind, 0.0)


def attention_weights(
    query: Float[Tensor, "#batch heads queries width"],
    key: Float[Tensor, "#batch kv_heads keys key_width"],
    *,
    score: Score,
    mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
    bias: Float[Tensor, "#batch #heads #queries keys"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch heads queries keys"]:
    """Return the weights that `attention()` uses without ever holding them: the definition, and what one looks at.

    Raises:
        ValueError: with `causal` there are more queries than keys.
    """
    query, key = _of_one_batch(query, key)
    logits = _scores(score, query, _repeat_heads(key, query.size(1)))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    allowed = _with_causal(mask, query.size(-2), key.size(-2), causal, query.device)
    return masked_softmax(logits, allowed).to(query.dtype)


def masked_softmax(
    logits: Float[Tensor, "*shape keys"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    valid_lens: Int[Tensor, "batch"] | Int[Tensor, "batch queries"] | None = None,
) -> Float[Tensor, "*shape keys"]:
    """Softmax over the keys that may be seen; a row with none gives zeros, forward and backward.

    `mask` broadcasts to `logits`. `valid_lens` needs logits of (batch, queries, keys) or (batch, heads, queries,
    keys) and hides the keys from there on, per example (batch,) or per query (batch, queries). Both may be given.

    Raises:
        ValueError: there are valid lengths, and logits of other axes.
    """
    if valid_lens is not None:
        if logits.dim() not in (3, 4):
            raise ValueError(
                f"valid_lens hides keys of each example: give logits of (batch, queries, keys) or (batch, heads, "
                f"queries, keys), not of {tuple(logits.shape)}."
            )
        real = padding_mask(valid_lens, logits.size(-1))
        real = real.squeeze(1) if logits.dim() == 3 else real
        mask = real if mask is None else mask & real
    if mask is None:
        return logits.softmax(-1)
    blind = ~mask.any(-1, keepdim=True)
    return logits.masked_fill(~(mask | blind), -torch.inf).softmax(-1).masked_fill(blind, 0.0)


def _better_by_products(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Say whether matrix products are quicker than the fused kernel, which only happens on CPUs.

    That kernel is made for long sequences: in bfloat16 with its backward pass it takes 15 times as long for 16 tokens,
    2.6 times for 197 and 1.7 times for 512 (torch 2.15, Xeon with AMX); in float32 1.75 times for 15, as long for 64
    (torch 2.14, EPYC with AVX2). With dropout PyTorch does not use it at all.
    """
    if query.device.type != "cpu" or torch.compiler.is_exporting():  # an exported program is for any length
        return False
    if torch.is_grad_enabled() and query.requires_grad:
        return dropout > 0 or key.size(-2) <= FEW_KEYS.get(query.dtype, 0)
    return dropout > 0 or query.size(-2) <= FEW_QUERIES


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attend in turns of so many examples that the weights of one turn are few; only few are kept for the backward."""
    per_example = query.size(1) * query.size(2) * key.size(2)
    turn = max(1, CHUNK_ELEMENTS // max(1, per_example))
    if turn >= query.size(0):
        return _products(query, key, value, allowed, bias, dropout, scale)
    parts = []
    for begin in range(0, query.size(0), turn):
        rows = slice(begin, begin + turn)
        own, added = (x[rows] if x is not None and x.dim() == 4 and x.size(0) > 1 else x for x in (allowed, bias))
        inputs = query[rows], key[rows], value[rows], own, added, dropout, scale
        parts.append(
            checkpoint(_products, *inputs, use_reentrant=False) if torch.is_grad_enabled() else _products(*inputs)
        )
    return torch.cat(parts)


def _products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Weigh the values by the softmax of the scaled products; query heads that share a key head become its queries."""
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.size(1), key.size(2)
    shared = heads // kv_heads * queries
    query = query.reshape(batch * kv_heads, shared, width)
    added = query.new_empty(()) if bias is None else bias.to(query.dtype).expand(batch, heads, queries, keys)
    added = added if bias is None else added.reshape(batch * kv_heads, shared, keys)
    logits = torch.baddbmm(added, query, key.flatten(0, 1).mT, beta=0 if bias is None else 1, alpha=scale)
    logits = logits.view(batch, heads, queries, keys)
    blind = None
    if allowed is not None:
        blind = ~allowed.any(-1, keepdim=True)
        logits = logits.masked_fill_(~(allowed | blind), -torch.inf)
    weights = drop_out(_softmax(logits), dropout)
    out = (weights.view(batch, kv_heads, shared, keys) @ value).view(batch, heads, queries, value.size(3))
    if blind is None or not (torch.compiler.is_compiling() or blind.any()):  # asked on a CPU, where nothing has to wait
        return out
    return out.masked_fill(blind, 0.0)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the keys; the kernel of CPUs takes ten times as long for rows that are shorter than a vector."""
    missing = 64 // logits.element_size() - logits.size(-1)
    # A compiled kernel has rows of any length, and a question about sizes would make a graph for each answer.
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or missing <= 0:
        return logits.softmax(-1)
    return F.pad(logits, (0, missing), value=-torch.inf).softmax(-1)[..., :-missing]


def _scores(score: Score, query: Tensor, key: Tensor) -> Tensor:
    """Compute the scores in chunks of queries, so that the memory of `pair_width` per pair stays bounded."""
    batch, heads, queries, _ = query.shape
    per_query = batch * heads * key.size(-2) * score.pair_width
    rows = max(1, CHUNK_ELEMENTS // max(1, per_query))
    if rows >= queries:
        return score(query, key)
    chunks = query.split(rows, 2)
    if not torch.is_grad_enabled():  # a checkpoint reads the state of the generator, which a recorded step must not
        return torch.cat([score(chunk, key) for chunk in chunks], -2)
    # Without checkpoints autograd would keep every chunk for the backward pass.
    return torch.cat([checkpoint(score, chunk, key, use_reentrant=False) for chunk in chunks], -2)


def _with_causal(mask: Tensor | None, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor | None:
    if not causal or queries == 1:  # a single query is the last one and sees all
        return mask
    ahead = causal_mask(queries, keys, device)
    return ahead if mask is None else mask & ahead


def _of_one_batch(*parts: Tensor) -> tuple[Tensor, ...]:
    """Let one example serve all of the others."""
    if all(part.size(0) == parts[0].size(0) for part in parts):
        return parts
    batch = max(part.size(0) for part in parts)
    return tuple(part.expand(batch, -1, -1, -1) for part in parts)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.size(1) == heads else x.repeat_interleave(heads // x.size(1), 1)
