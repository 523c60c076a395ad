"""A model of CTranslate2 with our weights."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.hugging_face import decoder_blocks, encoder_blocks
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from transformer_core import DecoderBlock, EncoderBlock, MultiHeadAttention, sinusoidal_table


@torch.no_grad()
def save(model: TranslationModel, config: TranslationConfig, positions: int, folder: Path) -> None:
    """Write the weights as a model of CTranslate2, in float32."""
    specs = import_module("ctranslate2.specs")
    spec = specs.TransformerSpec.from_config(
        (config.encoder_depth, config.decoder_depth),
        config.block.num_heads,
        pre_norm=config.block.order == "pre",
        activation=specs.Activation.RELU if config.block.activation == "relu" else specs.Activation.GELU,
    )
    table = sinusoidal_table(positions, config.block.dim).float()
    sides = (
        (spec.encoder, spec.encoder.embeddings[0], model.source_embedding, model.encoder),
        (spec.decoder, spec.decoder.embeddings, model.target_embedding, model.decoder),
    )
    for side, embeddings, tokens, stack in sides:
        side.scale_embeddings = math.sqrt(config.block.dim)
        side.position_encodings.encodings = table.numpy()
        embeddings.weight = _numbers(tokens.tokens.weight)
        if config.block.order == "pre":
            _norm_spec(side.layer_norm, stack.norm)
    _linear_spec(spec.decoder.projection, model.output.weight, None)
    for theirs, block in zip(spec.encoder.layer, encoder_blocks(model), strict=True):
        _attention_spec(theirs.self_attention, block.attention, block.attention_branch.norm)
        _feed_forward_spec(theirs.ffn, block)
    for theirs, block in zip(spec.decoder.layer, decoder_blocks(model), strict=True):
        _attention_spec(theirs.self_attention, block.self_attention, block.self_attention_branch.norm)
        _attention_spec(theirs.attention, block.cross_attention, block.cross_attention_branch.norm)
        _feed_forward_spec(theirs.ffn, block)
    names = piece_names(model.output.out_features)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.layer_norm_epsilon = config.block.norm_eps
    spec.validate()
    spec.optimize()
    spec.save(str(folder))


def piece_names(count: int) -> list[str]:
    """Give each id a name, the marks those that CTranslate2 knows."""
    marks = {PAD: "<pad>", UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
    return [marks.get(id, str(id)) for id in range(count)]


def _attention_spec(spec: Any, mine: nn.Module, norm: nn.Module) -> None:
    """Self-attention has one product for queries, keys and values; attention to the source has two."""
    assert isinstance(mine, MultiHeadAttention)
    rows = [sum(mine.rows)] if len(spec.linear) == 2 else [mine.rows[0], sum(mine.rows[1:])]
    weights, biases = mine.input.weight.split(rows), mine.input.bias.split(rows)
    for part, weight, bias in zip(spec.linear, weights, biases, strict=False):
        _linear_spec(part, weight, bias)
    _linear_spec(spec.linear[-1], mine.output.weight, mine.output.bias)
    _norm_spec(spec.layer_norm, norm)


def _feed_forward_spec(spec: Any, block: EncoderBlock | DecoderBlock) -> None:
    for part, layer in ((spec.linear_0, block.feed_forward.wide), (spec.linear_1, block.feed_forward.narrow)):
        _linear_spec(part, layer.weight, layer.bias)
    _norm_spec(spec.layer_norm, block.feed_forward_branch.norm)


def _linear_spec(spec: Any, weight: Tensor, bias: Tensor | None) -> None:
    spec.weight = _numbers(weight)
    if bias is not None:
        spec.bias = _numbers(bias)


def _norm_spec(spec: Any, norm: nn.Module) -> None:
    spec.gamma, spec.beta = _numbers(norm.get_parameter("weight")), _numbers(norm.get_parameter("bias"))


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()
