"""Keys and values that are kept: those of a memory, projected once, and those that grow while decoding.

The hypotheses of a sentence lie together. Each writes what it sees of its newest token once, and there it stays: when
hypotheses branch or fall away nothing is copied, a mask of ancestors says which entries each of them has come from.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transformer_core.position import Offset

TOGETHER = 16
"""Entries that a vector of float32 holds, on the widest of CPUs; what is read in vectors counts so many at a time."""
REPLAYED = 64
"""Positions that a recorded step reads at least; after as many more it is recorded anew."""


class KeysValues(NamedTuple):
    """What is attended to, projected and split into heads; made once, used by whoever needs it."""

    key: Float[Tensor, "batch kv_heads keys width"]
    value: Float[Tensor, "batch kv_heads keys width"]


class LayerCache:
    """Keys and values of the positions so far in one layer, in memory set aside for `capacity` positions.

    Entries lie position by position, those of the `beams` hypotheses of a sentence side by side. Memory is taken as
    positions come on a CPU, which reads it quicker if it lies close together, and at once elsewhere.

    With `replayed` the same operations append any position, so that they can be recorded once: how many there are is a
    number on the device, all entries are read, and memory is taken by `reserve`.
    """

    def __init__(self, like: KeysValues, capacity: int, *, beams: int = 1, replayed: bool = False) -> None:
        sentences, heads, _, width = like.key.shape
        self.beams, self.capacity = beams, capacity
        self.length: Offset = like.key.new_zeros((), dtype=torch.long) if replayed else 0
        """Positions held so far."""
        self.key = like.key.new_zeros(sentences, heads, 0, width)
        """(sentences, heads, entries, width), zero where nothing has been written, as in `value`."""
        self.value = like.value.new_zeros(sentences, heads, 0, like.value.size(3))

    def append(self, key: Tensor, value: Tensor, *, read: int | None = None) -> KeysValues:
        """Write the newest positions, (sentences, heads, new * beams, width) each, and return all entries so far.

        With `read` it returns so many, as `Cache.grow` counts them; those to come are zero.

        Raises:
            ValueError: the capacity is used up, and the length is known.
        """
        if isinstance(self.length, Tensor):
            places = self.length * self.beams + torch.arange(key.size(2), device=key.device)
            self.key.index_copy_(2, places, key)
            self.value.index_copy_(2, places, value)
            self.length += key.size(2) // self.beams
            return KeysValues(self.key, self.value)
        begin, end = self.length * self.beams, self.length * self.beams + key.size(2)
        check_capacity(end // self.beams, self.capacity)
        read = end if read is None else read
        if max(end, read) > self.value.size(2):
            self.reserve(max(end, read))
        self.key[:, :, begin:end] = key
        self.value[:, :, begin:end] = value
        self.length = end // self.beams
        return KeysValues(self.key[:, :, :read], self.value[:, :, :read])

    def reserve(self, entries: int) -> None:
        """Take memory for so many entries, and some more."""
        most = round_up(self.capacity * self.beams, TOGETHER)
        if isinstance(self.length, Tensor):
            most = min(most, round_up(entries, REPLAYED * self.beams))
        elif self.key.device.type == "cpu":
            most = min(most, round_up(entries, TOGETHER * self.beams))
        more = most - self.value.size(2)
        self.key, self.value = F.pad(self.key, (0, 0, 0, more)), F.pad(self.value, (0, 0, 0, more))

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences, in this order; those that keep their place are not moved."""
        self.key, self.value = keep_rows(self.key, sentences), keep_rows(self.value, sentences)


class Cache(list[LayerCache]):
    """What grows while decoding: one `LayerCache` per block, and who descends from whom.

    It is written over from step to step, so gradients reach back through the newest call alone. `memory` says how many
    sentences there are, and of which heads, type and device the entries.
    """

    def __init__(self, memory: Iterable[KeysValues], capacity: int, *, beams: int = 1, replayed: bool = False) -> None:
        super().__init__(LayerCache(like, capacity, beams=beams, replayed=replayed) for like in memory)
        sentences, device = len(self[0].key), self[0].key.device
        self.beams = beams
        self.own = torch.eye(beams, dtype=torch.bool, device=device)
        entries = round_up(capacity * beams, TOGETHER)
        self.ancestors = torch.zeros(sentences if beams > 1 else 1, beams, entries, dtype=torch.bool, device=device)
        """True at the entries that a hypothesis has come from; one row does where each is alone in its sentence."""

    @property
    def length(self) -> Offset:
        """Positions held so far."""
        return self[0].length

    def reserve(self, positions: int) -> int:
        """Take memory for so many positions, and some more; return how many there is memory for.

        Raises:
            ValueError: the capacity is used up.
        """
        check_capacity(positions, self[0].capacity)
        for layer in self:
            layer.reserve(positions * self.beams)
        return min(self[0].value.size(2) // self.beams, self[0].capacity)

    def grow(self, new: int) -> Bool[Tensor, "#sentences 1 queries entries"] | None:
        """Tell `new` positions that follow, (new * beams) queries, which of the entries they may see.

        None where they see all. On a CPU, whose kernels want whole vectors, entries to come are counted in, and where
        the length is known to the device alone those of all memory that is reserved.

        Raises:
            ValueError: the capacity is used up, and the length is known.
        """
        length, own, device = self.length, self.own.repeat(1, new), self.ancestors.device
        if isinstance(length, int):
            check_capacity(length + new, self[0].capacity)
            end = (length + new) * self.beams
            self.ancestors[:, :, end - new * self.beams : end] = own
            read = round_up(end, TOGETHER) if device.type == "cpu" else end
            if new == 1 and self.beams == 1 and read == end:
                return None
        else:
            places = length * self.beams + torch.arange(new * self.beams, device=device)
            self.ancestors.index_copy_(2, places, own.expand(len(self.ancestors), -1, -1))
            read = self[0].value.size(2)
        seen = self.ancestors[:, :, :read]
        if new == 1:
            return seen[:, None]
        positions = torch.arange(read, device=device) // self.beams
        past = positions <= (length + torch.arange(new, device=device))[:, None]
        return (seen[:, None] & past[:, None]).flatten(1, 2)[:, None]

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Let hypothesis i go on from hypothesis `parents[i]` of the same sentence, counted through the batch."""
        if self.beams > 1:
            self.ancestors.copy_(self.ancestors.flatten(0, 1)[parents].view_as(self.ancestors))

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences, in this order."""
        if self.beams > 1:
            self.ancestors = self.ancestors[sentences]
        for layer in self:
            layer.keep(sentences)


def check_capacity(positions: int, capacity: int) -> None:
    """Refuse more positions than a cache was made for.

    Raises:
        ValueError: there are more.
    """
    if positions > capacity:
        raise ValueError(f"position {positions} is past the capacity of the cache, {capacity}: ask for more.")


def keep_rows(x: Tensor, rows: Int[Tensor, "kept"]) -> Tensor:
    """Return `x[rows]`; without gradients `x` is written over, so that what stays in its place is not moved."""
    if len(rows) > len(x) or x.requires_grad:
        return x[rows]
    places = torch.arange(len(rows), device=rows.device)
    moved = (rows != places).nonzero().flatten()
    x[moved] = x[rows[moved]]
    return x[: len(rows)]


def round_up(count: int, block: int) -> int:
    """Return the multiple of `block` that holds `count`."""
    return -(-count // block) * block
