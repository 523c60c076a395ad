"""The translation model of transformers in the shape of ours, and with our weights."""

from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.vocabulary import BOS, EOS, PAD
from transformer_core import DecoderBlock, EncoderBlock, MultiHeadAttention, sinusoidal_table


def translation_model(config: TranslationConfig, vocabulary: int, positions: int) -> Any:
    """Return Marian, or with the norm first Pegasus, with fused attention and one matrix for all embeddings.

    Args:
        config: ours; the peers know sinusoidal positions and ReLU or GELU.
        vocabulary: pieces of the joint vocabulary.
        positions: the longest sequence.
    """
    library, block = import_module("transformers"), config.block
    post = block.order == "post"
    make_config = library.MarianConfig if post else library.PegasusConfig
    make_model = library.MarianMTModel if post else library.PegasusForConditionalGeneration
    return make_model(
        make_config(
            vocab_size=vocabulary,
            max_position_embeddings=positions,
            d_model=block.dim,
            encoder_layers=config.encoder_depth,
            decoder_layers=config.decoder_depth,
            encoder_attention_heads=block.num_heads,
            decoder_attention_heads=block.num_heads,
            encoder_ffn_dim=block.hidden_dim,
            decoder_ffn_dim=block.hidden_dim,
            activation_function=block.activation,
            dropout=block.dropout,
            attention_dropout=block.attention_dropout,
            activation_dropout=block.hidden_dropout,
            scale_embedding=True,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
            attn_implementation="sdpa",
        )
    )


@torch.no_grad()
def trained_model(model: TranslationModel, config: TranslationConfig, positions: int) -> Any:
    """Return the model of transformers with the weights of ours."""
    copy = translation_model(config, model.output.out_features, positions).eval()
    parts = copy.model
    parts.shared.weight.copy_(model.target_embedding.tokens.weight)
    table = sinusoidal_table(positions, config.block.dim)
    pairs = [(parts.encoder, model.encoder), (parts.decoder, model.decoder)]
    for theirs, mine in pairs:
        theirs.embed_positions.weight.copy_(table)
        if config.block.order == "pre":
            theirs.layer_norm.load_state_dict(mine.norm.state_dict())
    for theirs, block in zip(parts.encoder.layers, encoder_blocks(model), strict=True):
        _copy_attention(theirs.self_attn, block.attention)
        theirs.self_attn_layer_norm.load_state_dict(block.attention_branch.norm.state_dict())
        _copy_feed_forward(theirs, block)
    for theirs, block in zip(parts.decoder.layers, decoder_blocks(model), strict=True):
        _copy_attention(theirs.self_attn, block.self_attention)
        theirs.self_attn_layer_norm.load_state_dict(block.self_attention_branch.norm.state_dict())
        _copy_attention(theirs.encoder_attn, block.cross_attention)
        theirs.encoder_attn_layer_norm.load_state_dict(block.cross_attention_branch.norm.state_dict())
        _copy_feed_forward(theirs, block)
    return copy


def _copy_attention(theirs: Any, mine: nn.Module) -> None:
    assert isinstance(mine, MultiHeadAttention)
    for part, weight, bias in zip(
        (theirs.q_proj, theirs.k_proj, theirs.v_proj),
        mine.input.weight.split(mine.rows),
        mine.input.bias.split(mine.rows),
        strict=True,
    ):
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    theirs.out_proj.load_state_dict(mine.output.state_dict())


def _copy_feed_forward(theirs: Any, block: EncoderBlock | DecoderBlock) -> None:
    theirs.fc1.load_state_dict(block.feed_forward.wide.state_dict())
    theirs.fc2.load_state_dict(block.feed_forward.narrow.state_dict())
    theirs.final_layer_norm.load_state_dict(block.feed_forward_branch.norm.state_dict())


def encoder_blocks(model: TranslationModel) -> list[EncoderBlock]:
    """Return the blocks with their type."""
    return [cast(EncoderBlock, block) for block in model.encoder.blocks]


def decoder_blocks(model: TranslationModel) -> list[DecoderBlock]:
    """Return the blocks with their type."""
    return [cast(DecoderBlock, block) for block in model.decoder.blocks]
