"""The encoder: blocks of self-attention and feed-forward, the same for words, patches and windows."""

from collections.abc import Callable
from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transformer_core.config import BlockConfig, block_configs
from transformer_core.feedforward import FeedForward
from transformer_core.multihead import MultiHeadAttention
from transformer_core.position import PositionBias, RelativeBias, Rotary
from transformer_core.residual import AddNorm, make_norm
from transformer_core.score import make_score


def make_attention(
    config: BlockConfig,
    *,
    causal: bool = False,
    cross: bool = False,
    position: Rotary | PositionBias | None = None,
) -> MultiHeadAttention:
    """Build the attention of a block; `position` is used instead of the one that the configuration names.

    Positions belong to self-attention, whose queries and keys share one sequence.
    """
    width = config.dim // config.num_heads
    if position is None and config.position == "rotary" and not cross:
        position = Rotary(width)
    elif position is None and config.position == "relative" and not cross:
        position = RelativeBias(config.num_heads, causal=causal)
    return MultiHeadAttention(
        config.dim,
        config.num_heads,
        num_kv_heads=config.num_kv_heads,
        score=make_score(config.score, width),
        position=position,
        qk_norm=config.norm if config.qk_norm else None,
        norm_eps=config.norm_eps,
        causal=causal,
        dropout=config.attention_dropout,
    )


def make_add_norm(config: BlockConfig) -> AddNorm:
    """Build the residual branch of a block."""
    return AddNorm(
        config.dim,
        order=config.order,
        dropout=config.dropout,
        drop_path=config.drop_path,
        layer_scale=config.layer_scale,
        norm=config.norm,
        eps=config.norm_eps,
    )


def make_feed_forward(config: BlockConfig) -> FeedForward:
    """Build the feed-forward network of a block."""
    return FeedForward(config.dim, config.hidden_dim, activation=config.activation, dropout=config.hidden_dropout)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each on a residual branch (Vaswani et al. 2017, section 3.1).

    `attention` replaces the self-attention that the configuration describes: a module called as `attention(x,
    mask=mask)`, such as `WindowAttention`.
    """

    def __init__(self, config: BlockConfig, *, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.attention = make_attention(config) if attention is None else attention
        self.attention_branch = make_add_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.feed_forward_branch = make_add_norm(config)

    def forward(
        self,
        x: Float[Tensor, "batch *length dim"],
        mask: Bool[Tensor, "*#leading #queries keys"] | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "batch *out dim"]:
        """Let tokens see each other where `mask` is True, everywhere without one.

        A mask has four axes, (batch, heads, queries, keys), each of them maybe 1, as `padding_mask` makes it, or two,
        (queries, keys), for all examples.
        `length` is one number, or whatever the attention given to the block reads: the height and width of a grid, say.
        With `first` only so many of the first tokens are returned, and computed where attention knows no positions.
        """
        mask = mask[None, None] if mask is not None and mask.dim() == 2 else mask
        if first is None or not isinstance(self.attention, MultiHeadAttention) or self.attention.position is not None:
            x = self.attention_branch(x, lambda h, seen: self.attention(h, mask=seen), mask)[:, :first]
        else:
            seen = mask if mask is None or mask.size(2) == 1 else mask[:, :, :first]
            x = self.attention_branch(x[:, :first], self._look, x, seen)
        return self.feed_forward_branch(x, self.feed_forward)

    def _look(self, queries: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Let some tokens, as their branch gives them, see all."""
        attention, branch = cast(MultiHeadAttention, self.attention), self.attention_branch
        memory = attention.keys_values(branch.norm(x) if branch.order == "pre" else x)
        return attention(queries, memory, mask=mask)


class Encoder(nn.Module):
    """`depth` encoder blocks; with pre-norm a last norm, because the residual stream itself is never normed.

    `attention` makes the self-attention of each block, instead of the one that the configuration describes.
    """

    def __init__(
        self, config: BlockConfig, depth: int, *, attention: Callable[[BlockConfig], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.recompute = config.recompute
        self.blocks = nn.ModuleList(
            EncoderBlock(each, attention=None if attention is None else attention(each))
            for each in block_configs(config, depth)
        )
        pre = config.order == "pre"
        self.norm = make_norm(config.norm, config.dim, eps=config.norm_eps) if pre else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "*#leading #length length"] | None = None,
        *,
        first: int | None = None,
    ) -> Float[Tensor, "batch out dim"]:
        """Encode embedded tokens; `mask` as in `EncoderBlock`, None where the batch has no padding.

        With `first` only so many of the first tokens are returned, and the last block does not compute the others.
        """
        for left, block in zip(reversed(range(len(self.blocks))), self.blocks, strict=True):
            x = run_block(block, x, mask, None if left else first, recompute=self.recompute and self.training)
        return self.norm(x[:, :first])


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """Run a block; with `recompute` its activations are made again in the backward pass (Chen et al. 2016)."""
    return checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
