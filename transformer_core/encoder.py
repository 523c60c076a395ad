"""The encoder: blocks of self-attention and feed-forward, the same for words, patches and windows."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from transformer_core.config import BlockConfig
from transformer_core.feedforward import FeedForward
from transformer_core.multihead import MultiHeadAttention
from transformer_core.position import RelativeBias, Rotary
from transformer_core.residual import AddNorm, make_norm
from transformer_core.score import make_score


def make_attention(config: BlockConfig, *, causal: bool = False, cross: bool = False) -> MultiHeadAttention:
    """Build the attention of a block; positions belong to self-attention, whose queries and keys share one sequence."""
    width = config.dim // config.num_heads
    position = None
    if config.position == "rotary" and not cross:
        position = Rotary(width)
    elif config.position == "relative" and not cross:
        position = RelativeBias(config.num_heads, causal=causal)
    return MultiHeadAttention(
        config.dim,
        config.num_heads,
        num_kv_heads=config.num_kv_heads,
        score=make_score(config.score, width),
        position=position,
        causal=causal,
        dropout=config.attention_dropout,
    )


def make_add_norm(config: BlockConfig) -> AddNorm:
    """Build the residual branch of a block."""
    return AddNorm(config.dim, order=config.order, dropout=config.dropout, norm=config.norm, eps=config.norm_eps)


def make_feed_forward(config: BlockConfig) -> FeedForward:
    """Build the feed-forward network of a block."""
    return FeedForward(config.dim, config.hidden_dim, activation=config.activation, dropout=config.hidden_dropout)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each on a residual branch (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.attention = make_attention(config)
        self.attention_branch = make_add_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.feed_forward_branch = make_add_norm(config)

    def forward(
        self, x: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "#batch #heads #length length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Let tokens see each other where `mask` is True, everywhere without one."""
        x = self.attention_branch(x, lambda h: self.attention(h, mask=mask))
        return self.feed_forward_branch(x, self.feed_forward)


class Encoder(nn.Module):
    """`depth` encoder blocks; with pre-norm a last norm, because the residual stream itself is never normed."""

    def __init__(self, config: BlockConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(depth))
        pre = config.order == "pre"
        self.norm = make_norm(config.norm, config.dim, eps=config.norm_eps) if pre else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "#batch #heads #length length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Encode embedded tokens; `mask` as in `EncoderBlock`, None where the batch has no padding."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
