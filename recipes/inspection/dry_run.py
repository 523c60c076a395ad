"""Run a model for its shapes alone: nothing is computed, no device is needed, and memory is counted as if it were used.

Autograd saves, frees and accumulates as ever, so the ledger of a run is that of a real one.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recipes.inspection.shapes import ShapeMode, storage_id, storage_of
from transformer_core import loss
from transformer_core.cache import round_up
from transformer_core.windows import region_mask

Device = Literal["cpu", "cuda"]
ALIGNMENT = 16
"""Keys of a bias, in numbers, that the memory-efficient kernel wants a multiple of (torch.nn.functional)."""
HIDDEN = {torch.ops.aten.logsumexp.default}
"""Operations whose kernel makes another tensor as large as its input, which is gone when it returns."""
EFFICIENT_BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default
TILE = 64
"""Queries and features of a tile, of which the backward pass of the memory-efficient kernel sums gradients of queries
in float32 where they are narrower; seen with PyTorch 2.11 on an H200."""


@contextmanager
def dry_run(device: Device) -> Iterator[None]:
    """Let nothing be computed inside, with the kernels that the core would choose on `device`."""
    region_mask.cache_clear()  # masks are kept from call to call, and those of a dry run hold no values
    try:
        with ExitStack() as stack:
            for each in (ShapeMode(), *(_kernels_of_gpus() if device == "cuda" else ())):
                stack.enter_context(each)
            yield
    finally:
        region_mask.cache_clear()


class Ledger(TorchDispatchMode):
    """Bytes of all that operations make inside, as long as something holds it; weights are not counted."""

    def __init__(self, model: nn.Module, device: Device) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._block = 512 if device == "cuda" else 1  # what PyTorch's allocator rounds up to
        held = (*model.parameters(), *model.buffers())
        self._weights = {storage_id(tensor) for tensor in held}
        self._known = set(self._weights)
        self._copies: dict[int, int] = {}

    @property
    def weight_copies(self) -> int:
        """Bytes of copies of weights in another type that are alive."""
        return sum(self._copies.values())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in HIDDEN:
            self.peak = max(self.peak, self.live + args[0].nbytes)
        out = func(*args, **(kwargs or {}))
        if func is EFFICIENT_BACKWARD and args[1].element_size() == 2:
            batch, heads, queries, width = args[1].shape
            sums = batch * heads * round_up(queries, TILE) * round_up(width, TILE) * 4
            self.peak = max(self.peak, self.live + sum(leaf.nbytes for leaf in out if leaf is not None) + sums)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and storage_id(leaf) not in self._known:
                self._add(leaf)
                if func is torch.ops.aten._to_copy.default and storage_id(args[0]) in self._weights:
                    self._copies[storage_id(leaf)] = storage_of(leaf).nbytes()
        return out

    def _add(self, tensor: Tensor) -> None:
        key, storage = storage_id(tensor), storage_of(tensor)
        size = -(-storage.nbytes() // self._block) * self._block
        self._known.add(key)
        weakref.finalize(storage, self._free, key, size).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._copies.pop(key, None)
        self.live -= size


def _kernels_of_gpus() -> Iterator[Any]:
    """Yield what makes the core, on tensors that call themselves those of a CPU, do what it does on a GPU."""
    yield patch("transformer_core.attention._better_by_products", _never)
    for name in ("transformer_core.attention", "transformer_core.dropout"):
        yield patch(f"{name}.drop_out", _drop_out)
    yield patch.object(F, "scaled_dot_product_attention", _fused_attention)
    yield patch.dict(loss.CHUNK_ELEMENTS, {"cpu": loss.CHUNK_ELEMENTS["cuda"]})


def _never(*_: object) -> bool:
    """Choose no products; a mock would keep the tensors that it is called with."""
    return False


def _drop_out(x: Tensor, rate: float) -> Tensor:
    return torch.native_dropout(x, rate, True)[0] if rate else x


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend by the kernel that a GPU takes: flash attention without a mask in 16 bits, else the memory-efficient one.

    The mask has one row for each example and head, or one for all, as in `torch.nn.functional`.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    if enable_gqa:
        key, value = (each.repeat_interleave(query.size(1) // each.size(1), 1) for each in (key, value))
    if attn_mask is None and query.element_size() == 2:
        aten = torch.ops.aten._scaled_dot_product_flash_attention
        return aten(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
        keys = key.size(2)
        if missing := -keys % ALIGNMENT:
            attn_mask = F.pad(attn_mask, (0, missing))[..., :keys]
        attn_mask = attn_mask.to(query.dtype).expand(query.size(0), query.size(1), query.size(2), keys)
    aten = torch.ops.aten._scaled_dot_product_efficient_attention
    return aten(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]
