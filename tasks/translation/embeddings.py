"""What every translation model begins and ends with: the embeddings of both languages and the output layer."""

from typing import Literal

from torch import nn

from transformer_core import BlockConfig, Linear, TokenEmbedding

Tie = Literal["none", "target", "all"]
"""Which matrices are one (Press and Wolf 2017): the target embedding and the output layer, or all three."""


def make_embeddings(
    block: BlockConfig, source_vocabulary: int, target_vocabulary: int, tie: Tie, *, pad_id: int
) -> tuple[TokenEmbedding, TokenEmbedding]:
    """Return the embeddings of target and source, one and the same for `tie` "all".

    Raises:
        ValueError: the vocabularies differ in size, so that they cannot share a matrix.
    """
    target = TokenEmbedding(target_vocabulary, block, pad_id=pad_id)
    if tie != "all":
        return target, TokenEmbedding(source_vocabulary, block, pad_id=pad_id)
    if source_vocabulary != target_vocabulary:
        raise ValueError(
            f"tie=all shares one matrix, but the vocabularies have {source_vocabulary} and {target_vocabulary} "
            "pieces: choose --model.tie target or --data.vocabulary.joint true."
        )
    return target, target


def make_output(target: TokenEmbedding, tie: Tie) -> Linear:
    """Return the output layer, (vocabulary, dim) and without bias, with the matrix of the target embedding if tied."""
    vocabulary, dim = target.tokens.weight.shape
    output = Linear(dim, vocabulary, bias=False)
    if tie == "none":
        nn.init.normal_(output.weight, std=dim**-0.5)
    else:
        output.weight = target.tokens.weight
    return output
