"""The blocks of a Transformer, each usable alone: attention, positions, residuals, encoder, decoder, loss, search."""

from transformer_core.attention import attention, attention_weights, masked_softmax
from transformer_core.cache import Cache, KeysValues, LayerCache
from transformer_core.config import BlockConfig, block_configs
from transformer_core.decoder import Decoder, DecoderBlock, Memory
from transformer_core.derived import Derived
from transformer_core.dropout import Dropout
from transformer_core.embedding import PatchEmbedding, TokenEmbedding
from transformer_core.encoder import Encoder, EncoderBlock, make_add_norm, make_attention, make_feed_forward, run_block
from transformer_core.feature_maps import FeatureMapAttention, WordRegionAttention
from transformer_core.feedforward import FeedForward
from transformer_core.grid import GridRotary, resize_grid, sinusoidal_grid
from transformer_core.linear import Linear
from transformer_core.loss import CrossEntropy, FactoredLogits, linear_cross_entropy
from transformer_core.masks import causal_mask, padding_mask
from transformer_core.multihead import MultiHeadAttention, record_attention
from transformer_core.pooling import KernelPooling
from transformer_core.position import Learned, PositionBias, RelativeBias, Rotary, Sinusoidal, sinusoidal_table
from transformer_core.residual import AddNorm, DropPath, LayerScale, make_norm
from transformer_core.score import (
    Additive,
    Bilinear,
    Cosine,
    DotProduct,
    Factored,
    GaussianKernel,
    ScaledDotProduct,
    Score,
    make_score,
)
from transformer_core.search import DecoderState, Ensemble, Hypothesis, SearchConfig, search
from transformer_core.state import CachedState
from transformer_core.windows import WindowAttention, WindowBias, join_windows, region_mask, split_windows

__all__ = [
    "AddNorm",
    "Additive",
    "Bilinear",
    "BlockConfig",
    "Cache",
    "CachedState",
    "Cosine",
    "CrossEntropy",
    "Decoder",
    "DecoderBlock",
    "DecoderState",
    "Derived",
    "DotProduct",
    "DropPath",
    "Dropout",
    "Encoder",
    "EncoderBlock",
    "Ensemble",
    "Factored",
    "FactoredLogits",
    "FeatureMapAttention",
    "FeedForward",
    "GaussianKernel",
    "GridRotary",
    "Hypothesis",
    "KernelPooling",
    "KeysValues",
    "LayerCache",
    "LayerScale",
    "Learned",
    "Linear",
    "Memory",
    "MultiHeadAttention",
    "PatchEmbedding",
    "PositionBias",
    "RelativeBias",
    "Rotary",
    "ScaledDotProduct",
    "Score",
    "SearchConfig",
    "Sinusoidal",
    "TokenEmbedding",
    "WindowAttention",
    "WindowBias",
    "WordRegionAttention",
    "attention",
    "attention_weights",
    "block_configs",
    "causal_mask",
    "join_windows",
    "linear_cross_entropy",
    "make_add_norm",
    "make_attention",
    "make_feed_forward",
    "make_norm",
    "make_score",
    "masked_softmax",
    "padding_mask",
    "record_attention",
    "region_mask",
    "resize_grid",
    "run_block",
    "search",
    "sinusoidal_grid",
    "sinusoidal_table",
    "split_windows",
]
