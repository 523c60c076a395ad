"""What the blocks of a stack have in common."""

from dataclasses import dataclass, replace

from transformer_core.choices import check_choices
from transformer_core.feedforward import Activation
from transformer_core.multihead import check_heads
from transformer_core.position import PositionName
from transformer_core.residual import NormName, Order
from transformer_core.score import ScoreName


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One encoder or decoder block; every block of a model is built from the same.

    Raises:
        ValueError: a setting is out of its range, or two do not go together; the message names them.
    """

    dim: int = 256
    """Features of a token (d_model of Vaswani et al. 2017)."""
    num_heads: int = 4
    """Attention heads; each sees dim / num_heads features."""
    num_kv_heads: int | None = None
    """Heads of keys and values; fewer than num_heads shrink the cache (grouped-query attention). None: as many."""
    hidden_dim: int = 1024
    """Hidden features of the feed-forward network (d_ff)."""
    activation: Activation = "relu"
    """Non-linearity of the feed-forward network; swiglu has a third matrix: 2/3 of hidden_dim is equal size."""
    score: ScoreName = "scaled_dot"
    """How queries and keys are compared; all but additive run on fused kernels."""
    position: PositionName = "sinusoidal"
    """Order comes with the embedding (sinusoidal, learned) or inside self-attention (rotary, relative)."""
    max_length: int = 1024
    """Longest sequence of learned positions, in tokens; the other kinds have no limit."""
    order: Order = "pre"
    """Norm before each sublayer ("pre", trains without warm-up) or after the residual ("post", the original)."""
    norm: NormName = "layer"
    """LayerNorm or RMSNorm."""
    norm_eps: float = 1e-5
    """Added to the variance in the norm."""
    dropout: float = 0.1
    """Share of features dropped after the embedding and after each sublayer."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped; above 0 it costs fused kernels on a CPU."""
    hidden_dropout: float = 0.0
    """Share of hidden features of the feed-forward network dropped."""
    drop_path: float = 0.0
    """Share of examples that the last block of a stack skips in training; it grows from 0 at the first block."""
    layer_scale: float = 0.0
    """What the learned factor of each feature of a branch starts from, usually 1e-6 to 0.1; 0: no factors."""
    qk_norm: bool = False
    """Norm queries and keys, head by head, which keeps the scores of large models bounded (Dehghani et al. 2023)."""
    recompute: bool = False
    """Keep no activations inside a block and compute them again backward: less memory, a third more computation."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_heads(self.dim, self.num_heads, self.num_heads if self.num_kv_heads is None else self.num_kv_heads)
        for name in ("dropout", "attention_dropout", "hidden_dropout", "drop_path"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise ValueError(f"{name}={rate} is no share: choose 0 or more, and less than 1.")
        for name in ("dim", "hidden_dim", "max_length"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(f"{name}={size} is no size: choose 1 or more.")
        if self.layer_scale < 0:
            raise ValueError(f"layer_scale={self.layer_scale} is negative: choose 0 for none, or 1e-6 to 0.1.")
        width = self.dim // self.num_heads
        if self.position == "rotary" and width % 2:
            raise ValueError(
                f"position=rotary turns pairs of features, but dim={self.dim} over num_heads={self.num_heads} "
                f"leaves {width} a head: choose num_heads so that the width is even."
            )
        if self.position == "sinusoidal" and self.dim % 2:
            raise ValueError(f"position=sinusoidal needs an even dim, not {self.dim}.")


def block_configs(config: BlockConfig, depth: int) -> list[BlockConfig]:
    """Return the configuration of each block of a stack: equal but for `drop_path`, which grows linearly to its value.

    Source: Huang et al. (2016), section 3; from 0 in the first block on, as in the code of Touvron et al. (2021).
    """
    return [replace(config, drop_path=config.drop_path * index / max(1, depth - 1)) for index in range(depth)]
