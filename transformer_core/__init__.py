"""The blocks of a Transformer, each usable alone: attention, positions, residuals, encoder, decoder, loss, search."""

from transformer_core.attention import attention, attention_weights, masked_softmax
from transformer_core.config import BlockConfig
from transformer_core.decoder import Cache, Decoder, DecoderBlock, Memory
from transformer_core.dropout import Dropout
from transformer_core.embedding import TokenEmbedding
from transformer_core.encoder import Encoder, EncoderBlock
from transformer_core.feedforward import FeedForward
from transformer_core.loss import CrossEntropy, FactoredLogits, linear_cross_entropy
from transformer_core.masks import causal_mask, padding_mask
from transformer_core.multihead import KeysValues, LayerCache, MultiHeadAttention, record_attention
from transformer_core.position import Learned, RelativeBias, Rotary, Sinusoidal, sinusoidal_table
from transformer_core.residual import AddNorm, make_norm
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

__all__ = [
    "AddNorm",
    "Additive",
    "Bilinear",
    "BlockConfig",
    "Cache",
    "Cosine",
    "CrossEntropy",
    "Decoder",
    "DecoderBlock",
    "DotProduct",
    "Dropout",
    "Encoder",
    "EncoderBlock",
    "Factored",
    "FactoredLogits",
    "FeedForward",
    "GaussianKernel",
    "KeysValues",
    "LayerCache",
    "Learned",
    "Memory",
    "MultiHeadAttention",
    "RelativeBias",
    "Rotary",
    "ScaledDotProduct",
    "Score",
    "Sinusoidal",
    "TokenEmbedding",
    "attention",
    "attention_weights",
    "causal_mask",
    "linear_cross_entropy",
    "make_norm",
    "make_score",
    "masked_softmax",
    "padding_mask",
    "record_attention",
    "sinusoidal_table",
]
