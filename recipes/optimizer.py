"""The optimizer of a run: which weights decay, and which learn at another rate than the rest."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from recipes.train_config import TrainConfig

SPARED = re.compile(r"(^|\.)(position|prefix)(\.|$)")
"""Names of tables that do not decay: positions, biases of distances, tokens before the patches."""


def make_optimizer(model: nn.Module, config: TrainConfig, factors: Mapping[str, float]) -> torch.optim.Optimizer:
    """Build the optimizer; `factors` says by name what the learning rate of a weight is multiplied by, 1 unless given.

    Matrices decay; norms, biases, positions and learned tokens do not (Touvron et al. 2021; Liu et al. 2021, in their
    published code). A weight of factor 0 is frozen: it needs no gradient any more.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, weight in model.named_parameters():
        factor = factors.get(name, 1.0)
        if factor == 0.0:
            weight.requires_grad_(False)
            continue
        decays = weight.dim() > 1 and not SPARED.search(name)
        groups.setdefault((decays, factor), []).append(weight)
    settings = [
        {"params": weights, "weight_decay": config.weight_decay if decays else 0.0, "factor": factor}
        for (decays, factor), weights in groups.items()
    ]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(settings, lr=config.lr, momentum=config.betas[0], fused=True)
        if config.betas[0]:  # PyTorch would make them in the first step, and leave them unwritten where that is skipped
            for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return optimizer
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
