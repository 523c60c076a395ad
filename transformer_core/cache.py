"""Keys and values that are kept: those of a memory, projected once, and those that grow while decoding.

The hypotheses of a sentence lie together. Each writes what it sees of its newest token once, and there it stays: when
hypotheses branch or fall away nothing is copied, a mask of ancestors says which entries each of them has come from.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeysValues(NamedTuple):
    """What is attended to, projected and split into heads; made once, used by whoever needs it."""

    key: Float[Tensor, "batch kv_heads keys width"]
    value: Float[Tensor, "batch kv_heads keys width"]


class LayerCache:
    """Keys and values of the positions so far in one layer, in memory set aside for `capacity` positions.

    Entries lie position by position, those of the `beams` hypotheses of a sentence side by side.
    """

    def __init__(self, like: KeysValues, capacity: int, *, beams: int = 1) -> None:
        sentences, heads, _, width = like.key.shape
        self.key = like.key.new_empty(sentences, heads, capacity * beams, width)
        self.value = like.value.new_empty(sentences, heads, capacity * beams, width)
        self.beams, self.capacity, self.length = beams, capacity, 0

    def append(self, key: Tensor, value: Tensor) -> KeysValues:
        """Write the newest positions, (sentences, heads, new * beams, width) each, and return all positions so far.

        Raises:
            ValueError: the capacity is used up.
        """
        begin, end = self.length * self.beams, self.length * self.beams + key.size(2)
        self.length = end // self.beams
        if self.length > self.capacity:
            self.length = begin // self.beams
            raise ValueError(
                f"position {end // self.beams} is past the capacity of the cache, {self.capacity}: ask for more."
            )
        self.key[:, :, begin:end] = key
        self.value[:, :, begin:end] = value
        return KeysValues(self.key[:, :, :end], self.value[:, :, :end])

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Drop all sentences but these, which ascend; what stays moves up within the same memory."""
        end, kept = self.length * self.beams, len(sentences)
        self.key[:kept, :, :end] = self.key[sentences, :, :end]
        self.value[:kept, :, :end] = self.value[sentences, :, :end]
        self.key, self.value = self.key[:kept], self.value[:kept]


class Cache(list[LayerCache]):
    """What grows while decoding: one `LayerCache` per block, and who descends from whom."""

    def __init__(self, memory: Iterable[KeysValues], capacity: int, *, beams: int = 1) -> None:
        super().__init__(LayerCache(like, capacity, beams=beams) for like in memory)
        sentences, device = len(self[0].key), self[0].key.device
        self.beams = beams
        self.ancestors = torch.zeros(sentences, beams, capacity * beams, dtype=torch.bool, device=device)
        """True at the entries that a hypothesis has come from; not used where each is alone in its sentence."""

    @property
    def length(self) -> int:
        """Positions held so far."""
        return self[0].length

    def grow(self, new: int) -> Bool[Tensor, "sentences 1 queries keys"] | None:
        """Tell `new` positions that follow, (new * beams) queries, which of the entries they may see.

        None where hypotheses are alone in their sentences: causality says it all.
        """
        if self.beams == 1 or self.length + new > self[0].capacity:  # too many are refused by the layers
            return None
        begin, end = self.length * self.beams, (self.length + new) * self.beams
        own = torch.eye(self.beams, dtype=torch.bool, device=self.ancestors.device)
        self.ancestors[:, :, begin:end] = own.repeat(1, new)
        seen = self.ancestors[:, :, :end]
        if new == 1:
            return seen[:, None]
        positions = torch.arange(end, device=seen.device) // self.beams
        past = positions <= positions[begin :: self.beams, None]
        return (seen[:, None] & past[:, None]).flatten(1, 2)[:, None]

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Let hypothesis i go on from hypothesis `parents[i]` of the same sentence, counted through the batch."""
        if self.beams > 1:
            self.ancestors = self.ancestors.flatten(0, 1)[parents].view_as(self.ancestors)

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Drop all sentences but these, which ascend."""
        self.ancestors = self.ancestors[sentences]
        for layer in self:
            layer.keep(sentences)
