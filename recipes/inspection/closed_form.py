"""Parameters and FLOPs by formula, to check what was counted.

Source: Narayanan et al. (2021, "Efficient large-scale language model training on GPU clusters using Megatron-LM"),
section 5.1 and appendix: with a feed-forward network of 4 h, a layer of h features has 12 h^2 + 13 h parameters and
takes 24 b s h^2 + 4 b s^2 h FLOPs forward for b sequences of length s; a training step takes three times as many.
Kaplan et al. (2020, section 2.1) count the same as 2 N + 2 layers x context x width a token. A FLOP is an addition or
a multiplication; norms, softmax and activations are left out, and causal attention counts in full.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

from transformer_core import BlockConfig

if TYPE_CHECKING:  # a task is imported only if a recipe is its own, because each takes seconds
    from tasks.image_classification.model import ImageModelConfig
    from tasks.text_recognition.model import ReaderConfig
    from tasks.translation.model import TranslationConfig


class Flops(NamedTuple):
    """Floating-point operations, by what they are for."""

    before: int
    """Patches and stem."""
    attention: int
    """Products of queries with keys and of weights with values."""
    linear: int
    """Projections and feed-forward networks."""
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def is_textbook(block: BlockConfig, *, windows: bool = False) -> bool:
    """Say whether the formulas hold for a block: they know no weights of scores, one kind of norm and of heads.

    Relative positions are counted where they are those of `windows`.
    """
    return (
        (windows or block.position != "relative")
        and block.score in ("scaled_dot", "dot")
        and block.num_kv_heads in (None, block.num_heads)
        and block.norm == "layer"
        and not (block.qk_norm or block.layer_scale)
    )


def translation(config: "TranslationConfig", vocabulary: int, batch: int, length: int) -> tuple[int, Flops]:
    """Return parameters and forward FLOPs of an encoder-decoder for sentences of `length` on both sides."""
    block, tokens = config.block, batch * length
    dim, encoder, decoder = block.dim, config.encoder_depth, config.decoder_depth
    attentions = encoder + 2 * decoder
    tables = {"all": 1, "target": 2, "none": 3}[config.tie] * vocabulary * dim
    positions = (1 if config.tie == "all" else 2) * block.max_length * dim * (block.position == "learned")
    parameters = _stack_parameters(block, encoder, decoder) + tables + positions
    linear = attentions * _projection_flops(dim, tokens, tokens)
    linear += (encoder + decoder) * _feed_forward_flops(block, tokens)
    products = attentions * _product_flops(dim, tokens, length)
    return parameters, Flops(0, products, linear, 2 * tokens * dim * vocabulary)


def recognition(
    config: "ReaderConfig", characters: int, channels: int, size: tuple[int, int], batch: int, length: int
) -> tuple[int, Flops]:
    """Return parameters and forward FLOPs of a reader of lines, whose decoder looks at the patches of an image."""
    block, pixels = config.block, math.prod(config.patch_size) * channels
    dim, encoder, decoder = block.dim, config.encoder_depth, config.decoder_depth
    patches = batch * math.prod(side // patch for side, patch in zip(size, config.patch_size, strict=True))
    tokens = batch * length
    parameters = (
        (pixels + 1) * dim
        + _stack_parameters(block, encoder, decoder)
        + characters * dim
        + block.max_length * dim * (block.position == "learned")
    )
    linear = encoder * (_projection_flops(dim, patches, patches) + _feed_forward_flops(block, patches))
    linear += decoder * (_projection_flops(dim, tokens, tokens) + _projection_flops(dim, tokens, patches))
    linear += decoder * _feed_forward_flops(block, tokens)
    products = encoder * _product_flops(dim, patches, patches // batch)
    products += decoder * (_product_flops(dim, tokens, length) + _product_flops(dim, tokens, patches // batch))
    return parameters, Flops(2 * patches * pixels * dim, products, linear, 2 * tokens * dim * characters)


def vit(config: "ImageModelConfig", classes: int, channels: int, batch: int) -> tuple[int, Flops]:
    """Return parameters and forward FLOPs of a plain ViT; with `pool: cls` the last block computes the read tokens."""
    block, own = config.block, config.vit
    dim, depth, pixels = block.dim, own.depth, math.prod(own.patch_size) * channels
    patches = math.prod(side // patch for side, patch in zip(config.image_size, own.patch_size, strict=True))
    length, heads = patches + own.prefix, 1 + own.distillation_token
    read = heads if own.pool == "cls" and block.position != "rotary" else length
    width = own.representation_dim or dim
    places = patches + own.prefix * own.position_of_prefix
    parameters = (
        (pixels + 1) * dim
        + (own.prefix + places * (block.position == "learned")) * dim
        + depth * (_attention_parameters(dim) + _feed_forward_parameters(block) + 4 * dim)
        + 2 * dim * (block.order == "pre")
        + (dim + 1) * width * bool(own.representation_dim)
        + heads * (width + 1) * classes
    )
    linear = products = 0
    for queries in [length] * (depth - 1) + [read]:
        linear += _projection_flops(dim, batch * queries, batch * length) + _feed_forward_flops(block, batch * queries)
        products += _product_flops(dim, batch * queries, length)
    linear += 2 * batch * heads * dim * width * bool(own.representation_dim)
    return parameters, Flops(2 * batch * patches * pixels * dim, products, linear, 2 * batch * heads * width * classes)


def swin(config: "ImageModelConfig", classes: int, channels: int, batch: int) -> tuple[int, Flops]:
    """Return parameters and forward FLOPs of a Swin Transformer (Liu et al. 2021, section 3.2, equation 2)."""
    own, block = config.swin, config.block
    dim, heads, hidden = block.dim, block.num_heads, block.hidden_dim
    rows, columns = (-(-side // patch) for side, patch in zip(config.image_size, own.patch_size, strict=True))
    pixels, area = math.prod(own.patch_size) * channels, math.prod(own.window)
    before = 2 * batch * rows * columns * pixels * dim
    parameters, linear, products = (pixels + 3) * dim, 0, 0
    for stage, depth in enumerate(own.depths):
        padded = math.prod(
            -(-side // window) * window for side, window in zip((rows, columns), own.window, strict=True)
        )
        tokens, in_windows = batch * rows * columns, batch * padded
        bias = math.prod(2 * side - 1 for side in own.window) * heads
        parameters += depth * (4 * dim * dim + 2 * dim * hidden + hidden + 9 * dim + bias)
        linear += depth * (_projection_flops(dim, in_windows, in_windows) + 4 * tokens * dim * hidden)
        products += depth * _product_flops(dim, in_windows, area)
        if stage < len(own.depths) - 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
            parameters += 8 * dim * dim + 8 * dim
            linear += 2 * batch * rows * columns * 8 * dim * dim
            dim, heads, hidden = 2 * dim, 2 * heads, 2 * hidden
    parameters += 2 * dim + (dim + 1) * classes
    return parameters, Flops(before, products, linear, 2 * batch * dim * classes)


def _stack_parameters(block: BlockConfig, encoder: int, decoder: int) -> int:
    """Parameters of so many encoder and decoder blocks, with their norms."""
    norms = 2 * encoder + 3 * decoder + 2 * (block.order == "pre")
    attentions = (encoder + 2 * decoder) * _attention_parameters(block.dim)
    return attentions + (encoder + decoder) * _feed_forward_parameters(block) + norms * 2 * block.dim


def _attention_parameters(dim: int) -> int:
    return 4 * dim * dim + 4 * dim


def _feed_forward_parameters(block: BlockConfig) -> int:
    return _matrices(block) * block.dim * block.hidden_dim + (_matrices(block) - 1) * block.hidden_dim + block.dim


def _projection_flops(dim: int, queries: int, keys: int) -> int:
    """Queries and outputs of so many tokens, keys and values of so many; 8 b s h^2 of a layer."""
    return 4 * (queries + keys) * dim * dim


def _product_flops(dim: int, queries: int, keys: int) -> int:
    """All queries, each against its keys; 4 b s^2 h of a layer."""
    return 4 * queries * keys * dim


def _feed_forward_flops(block: BlockConfig, tokens: int) -> int:
    """16 b s h^2 of a layer where the hidden features are 4 h."""
    return 2 * _matrices(block) * tokens * block.dim * block.hidden_dim


def _matrices(block: BlockConfig) -> int:
    return 3 if block.activation == "swiglu" else 2
