"""Which parts of an image a classifier looked at: attention, followed back through all layers."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.image_classification.swin import SwinTransformer
from tasks.image_classification.vit import VisionTransformer
from transformer_core import EncoderBlock, WindowAttention, record_attention


@torch.inference_mode()
def attention_rollout(
    model: VisionTransformer | SwinTransformer, images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch rows columns"]:
    """Return the share of each patch in what the head reads; the shares of an image sum to 1, less what tokens hold.

    Attention weights are averaged over the heads; each layer keeps half of a token through its residual connection, so
    shares go back by (A + I) / 2. Source: Abnar and Zuidema (2020), section 3, "attention rollout". Instead of the
    product of all matrices, the shares of the pooled vector are carried from the last layer to the first, which
    also suits windows: Swin's are carried window by window, and from a merged token in equal parts to its four.
    """
    model.eval()
    with record_attention(model) as maps:
        model(images)
    weights = [calls[0].float().mean(1) for calls in maps.values() if calls]
    if isinstance(model, SwinTransformer):
        return _swin_rollout(model, weights, images)
    prefix, places = model.config.prefix, model.grid[0] * model.grid[1]
    shares = weights[0].new_zeros(len(images), prefix + places)
    match model.config.pool:
        case "cls":
            heads = 1 + model.config.distillation_token
            shares[:, :heads] = 1 / heads
        case "mean":
            shares[:, prefix:] = 1 / places
        case "attention":
            shares[:, prefix:] = weights.pop()[:, 0]
    for layer in reversed(weights):
        queries = layer.size(1)  # of the last layer, those that are read alone
        shares = (shares + (shares[:, None, :queries] @ layer)[:, 0]) / 2
    return shares[:, prefix:].unflatten(1, model.grid)


def _swin_rollout(model: SwinTransformer, weights: list[Tensor], images: Tensor) -> Tensor:
    grids = [tuple(-(-side // patch) for side, patch in zip(images.shape[-2:], model.patch_size, strict=True))]
    for _ in model.mergings[:-1]:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    rows, columns = grids[-1]
    shares = images.new_full((len(images), rows, columns), 1 / (rows * columns))
    for stage, (rows, columns) in reversed(list(zip(model.stages, grids, strict=True))):
        if shares.shape[1:] != (rows, columns):
            shares = shares.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :rows, :columns] / 4
        for block in reversed(list(stage.children())):
            attention = cast(WindowAttention, cast(EncoderBlock, block).attention)
            carried = (attention.fold(shares[..., None]).mT @ weights.pop()).mT
            shares = (shares + attention.unfold(carried, (rows, columns))[..., 0]) / 2
    return shares
