"""The decoder: causal self-attention, attention to a memory, feed-forward; whole sequences or step by step."""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transformer_core.cache import TOGETHER, Cache, KeysValues, LayerCache, keep_rows
from transformer_core.config import BlockConfig, block_configs
from transformer_core.encoder import make_add_norm, make_attention, make_feed_forward, run_block
from transformer_core.residual import make_norm


class Memory(NamedTuple):
    """What the decoder reads: the encoder's states, projected once for every layer. It never grows."""

    keys_values: list[KeysValues]
    """Per layer, (batch, kv_heads, source length, width) twice."""
    mask: Bool[Tensor, "#batch 1 1 source"] | None
    """True at real source positions; None where there is no padding."""

    def for_steps(self) -> "Memory":
        """Return a copy laid out for many small steps: on a CPU feature by feature and in vectors."""
        key, value = self.keys_values[0]
        if key.device.type != "cpu":
            return Memory([KeysValues(key.clone(), value.clone()) for key, value in self.keys_values], self.mask)
        missing = -key.size(2) % TOGETHER
        mask = self.mask
        if missing:
            mask = key.new_ones(1, 1, 1, key.size(2), dtype=torch.bool) if mask is None else mask
            mask = F.pad(mask, (0, missing))
        laid = [
            KeysValues(F.pad(key.mT, (0, missing)).contiguous().mT, F.pad(value, (0, 0, 0, missing)).contiguous())
            for key, value in self.keys_values
        ]
        return Memory(laid, mask)

    def keep(self, sentences: Int[Tensor, "kept"]) -> "Memory":
        """Return the memory of some sentences, in this order; this one is written over and used up."""
        kept = [KeysValues(keep_rows(key, sentences), keep_rows(value, sentences)) for key, value in self.keys_values]
        return Memory(kept, self.mask if self.mask is None or len(self.mask) == 1 else self.mask[sentences])


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the memory and feed-forward (Vaswani et al. 2017, section 3.1).

    Without `cross` there is no memory to look at, as in a language model (Radford et al. 2018, section 3.1).
    """

    def __init__(self, config: BlockConfig, *, cross: bool = True) -> None:
        super().__init__()
        self.cross = cross
        self.self_attention = make_attention(config, causal=True)
        self.self_attention_branch = make_add_norm(config)
        if cross:
            self.cross_attention = make_attention(config, cross=True)
            self.cross_attention_branch = make_add_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.feed_forward_branch = make_add_norm(config)

    def forward(
        self,
        x: Float[Tensor, "rows length dim"],
        memory: KeysValues | None = None,
        mask: Bool[Tensor, "#batch 1 1 source"] | None = None,
        cache: LayerCache | None = None,
        seen: Bool[Tensor, "#batch 1 queries entries"] | None = None,
    ) -> Float[Tensor, "rows length dim"]:
        """Decode `x`, the newest positions if there is a cache, else all of them; `seen` is what `Cache.grow` returns.

        `rows` may be a multiple of the memory's batch, sentence by sentence (the hypotheses of a beam): they become
        further queries of the one memory of their sentence, which is never copied.

        Raises:
            ValueError: there is no memory to look at, or the rows are no multiple of its batch.
        """
        x = self.self_attention_branch(x, lambda h: self.self_attention(h, mask=seen, cache=cache))
        if self.cross:
            if memory is None:
                raise ValueError("there is no memory to look at: pass one, or build the decoder with cross=False.")
            x = self.cross_attention_branch(x, self._read, *memory, mask)
        return self.feed_forward_branch(x, self.feed_forward)

    def _read(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Let all rows of a sentence, one after the other, be queries of its memory."""
        rows, sentences = x.size(0), key.size(0)
        beams = rows // max(1, sentences)
        if rows != beams * sentences:
            raise ValueError(
                f"{rows} rows cannot be shared by the {sentences} sentences of the memory: pass a multiple."
            )
        queries = x.reshape(sentences, beams * x.size(1), x.size(2))
        return self.cross_attention(queries, KeysValues(key, value), mask=mask).view_as(x)


class Decoder(nn.Module):
    """`depth` decoder blocks; stateless: what is read is a `Memory`, what grows is a `Cache`, both passed in.

    Without `cross` it is a language model, and reads no memory. To search with it all the same, `read` states without
    positions, (batch, 0, dim), which say how many sentences there are.
    """

    def __init__(self, config: BlockConfig, depth: int, *, cross: bool = True) -> None:
        super().__init__()
        self.recompute = config.recompute
        self.blocks = nn.ModuleList(DecoderBlock(each, cross=cross) for each in block_configs(config, depth))
        pre = config.order == "pre"
        self.norm = make_norm(config.norm, config.dim, eps=config.norm_eps) if pre else nn.Identity()

    def read(
        self, states: Float[Tensor, "batch source dim"], mask: Bool[Tensor, "#batch 1 1 source"] | None = None
    ) -> Memory:
        """Project the encoder's states for every layer, once per sentence.

        This calls parts of blocks: who shards them block by block (FSDP2) registers it as a forward method.
        """
        blocks = (cast(DecoderBlock, block) for block in self.blocks)
        readers = (block.cross_attention if block.cross else block.self_attention for block in blocks)
        return Memory([reader.keys_values(states) for reader in readers], mask)

    def new_cache(self, memory: Memory, capacity: int, *, beams: int = 1, replayed: bool = False) -> Cache:
        """Set memory aside for `capacity` target positions of `beams` hypotheses per sentence; `replayed` as there."""
        return Cache(memory.keys_values, capacity, beams=beams, replayed=replayed)

    def forward(
        self, x: Float[Tensor, "rows length dim"], memory: Memory | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "rows length dim"]:
        """Decode embedded tokens: all positions, or with a cache those that follow what it holds."""
        seen = None if cache is None else cache.grow(x.size(1))
        for i, block in enumerate(self.blocks):
            given = (None, None) if memory is None else (memory.keys_values[i], memory.mask)
            inputs = x, *given, None if cache is None else cache[i], seen
            x = run_block(block, *inputs, recompute=self.recompute and self.training and cache is None)
        return self.norm(x)
