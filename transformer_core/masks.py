"""Who may look at whom: one bool tensor, True = may look, broadcastable to (batch, heads, queries, keys).

Masks are combined with `&`. An additive bias is another thing and never passes for a mask.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def padding_mask(
    valid_lens: Int[Tensor, "batch"] | Int[Tensor, "batch queries"], keys: int
) -> Bool[Tensor, "batch 1 queries keys"]:
    """Turn valid lengths into a mask: True for the first `valid_lens` of the `keys` positions.

    One length per example, (batch,), holds for all its queries and gives (batch, 1, 1, keys); one per query,
    (batch, queries), gives (batch, 1, queries, keys). Padding is on the right; left padding has no valid length.
    """
    real = torch.arange(keys, device=valid_lens.device) < valid_lens[..., None]
    return real[:, None, None] if valid_lens.dim() == 1 else real[:, None]


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "queries keys"]:
    """True where a query may look: at itself and at everything before it.

    Aligned to the last key, so that one new query sees a whole cache. `is_causal` of PyTorch is aligned to the first.

    Raises:
        ValueError: there are more queries than keys, so the first ones would have nothing to see.
    """
    if queries > keys:
        raise ValueError(f"{queries} queries cannot be the last of {keys} keys: pass the keys of all of them.")
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
