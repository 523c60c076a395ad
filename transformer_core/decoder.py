"""The decoder: causal self-attention, attention to a memory, feed-forward; whole sequences or step by step."""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from transformer_core.cache import TOGETHER, Cache, KeysValues, LayerCache, keep_rows, round_up
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
        """Return it laid out for many small steps: on a CPU feature by feature and in vectors."""
        key, value = self.keys_values[0]
        if key.device.type != "cpu":
            return self
        missing = round_up(key.size(2), TOGETHER) - key.size(2)
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
    """Causal self-attention, attention to the memory and feed-forward (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.self_attention = make_attention(config, causal=True)
        self.self_attention_branch = make_add_norm(config)
        self.cross_attention = make_attention(config, cross=True)
        self.cross_attention_branch = make_add_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.feed_forward_branch = make_add_norm(config)

    def forward(
        self,
        x: Float[Tensor, "rows length dim"],
        memory: KeysValues,
        mask: Bool[Tensor, "#batch 1 1 source"] | None = None,
        cache: LayerCache | None = None,
        seen: Bool[Tensor, "#batch 1 queries entries"] | None = None,
    ) -> Float[Tensor, "rows length dim"]:
        """Decode `x`, the newest positions if there is a cache, else all of them; `seen` is what `Cache.grow` returns.

        `rows` may be a multiple of the memory's batch, sentence by sentence (the hypotheses of a beam): they become
        further queries of the one memory of their sentence, which is never copied.
        """
        x = self.self_attention_branch(x, lambda h: self.self_attention(h, mask=seen, cache=cache))
        x = self.cross_attention_branch(x, self._read, *memory, mask)
        return self.feed_forward_branch(x, self.feed_forward)

    def _read(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Let all rows of a sentence, one after the other, be queries of its memory."""
        rows, sentences = x.size(0), key.size(0)
        if rows != sentences and (sentences == 0 or rows % sentences):
            raise ValueError(
                f"{rows} rows cannot be shared by the {sentences} sentences of the memory: pass a multiple."
            )
        beams = rows // max(1, sentences)
        queries = x.reshape(sentences, beams * x.size(1), x.size(2))
        return self.cross_attention(queries, KeysValues(key, value), mask=mask).view_as(x)


class Decoder(nn.Module):
    """`depth` decoder blocks; stateless: what is read is a `Memory`, what grows is a `Cache`, both passed in."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.recompute = config.recompute
        self.blocks = nn.ModuleList(DecoderBlock(each) for each in block_configs(config, depth))
        pre = config.order == "pre"
        self.norm = make_norm(config.norm, config.dim, eps=config.norm_eps) if pre else nn.Identity()

    def read(
        self, states: Float[Tensor, "batch source dim"], mask: Bool[Tensor, "#batch 1 1 source"] | None = None
    ) -> Memory:
        """Project the encoder's states for every layer, once per sentence."""
        blocks = (cast(DecoderBlock, block) for block in self.blocks)
        return Memory([block.cross_attention.keys_values(states) for block in blocks], mask)

    def new_cache(self, memory: Memory, capacity: int, *, beams: int = 1, replayed: bool = False) -> Cache:
        """Set memory aside for `capacity` target positions of `beams` hypotheses per sentence; `replayed` as there."""
        return Cache(memory.keys_values, capacity, beams=beams, replayed=replayed)

    def forward(
        self, x: Float[Tensor, "rows length dim"], memory: Memory, cache: Cache | None = None
    ) -> Float[Tensor, "rows length dim"]:
        """Decode embedded tokens: all positions, or with a cache those that follow what it holds."""
        seen = None if cache is None else cache.grow(x.size(1))
        for i, block in enumerate(self.blocks):
            inputs = x, memory.keys_values[i], memory.mask, None if cache is None else cache[i], seen
            x = run_block(block, *inputs, recompute=self.recompute and self.training and cache is None)
        return self.norm(x)
