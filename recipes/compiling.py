"""Compiling a model for training."""

import copy
from typing import cast

import torch
from torch import nn

from transformer_core import DecoderBlock, EncoderBlock

LIMIT = 64
"""Graphs that all blocks of a class may have together."""


def compiled(model: nn.Module, *, ragged: bool, graphs: bool = False) -> nn.Module:
    """Return a model of the same weights that is compiled; the one given stays as it is, for searches and scores.

    What is compiled is a block, once for all blocks that are alike, which takes a fraction of the time that the whole
    model takes; a model without blocks of the core is compiled as a whole.

    Args:
        model: on its device; weights that are replaced later are not seen.
        ragged: batches come in many shapes, so that kernels for all sizes are made at once; else for each size by
            itself.
        graphs: record what the whole model asks of a GPU and replay it; batches have one shape.
    """
    if graphs:
        return cast(nn.Module, torch.compile(model, dynamic=False, mode="reduce-overhead"))
    from torch._dynamo import config  # takes two seconds

    # Blocks of all kinds and sizes count against one limit, and what is beyond it would not be compiled.
    config.recompile_limit = max(LIMIT, config.recompile_limit)
    blocks = [block for block in model.modules() if isinstance(block, EncoderBlock | DecoderBlock)]
    if not blocks:
        return cast(nn.Module, torch.compile(model, dynamic=ragged))
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    made = {id(block): torch.compile(block, dynamic=ragged) for block in blocks}
    return copy.deepcopy(model, {**kept, **made})
