"""Memory of a model at inference and in training, from the ledger of a dry run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from recipes.inspection.dry_run import Device, Ledger, dry_run
from recipes.inspection.shapes import storage_id
from recipes.inspection.subject import Subject

Precision = Literal["fp32", "bf16"]
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
"""Numbers that an optimizer keeps for each weight."""
NOTHING = nullcontext()


class Memory(NamedTuple):
    """Bytes of one device, by what they hold.

    Mixed precision is usually counted as 20 bytes a parameter with Adam (Narayanan et al. 2021: weights and gradients
    in 16 bits, 2 + 2; a master copy of weights, gradients and two moments in 32, 4 + 4 + 8), or as 16 without gradients
    in 32 bits (Rajbhandari et al. 2020, "ZeRO", section 3.1). Under autocast weights and gradients stay in float32, 4 +
    4 + 8 bytes a parameter, and a copy of the matrices in bfloat16 lives as long as the backward pass needs it.
    """

    weights: int
    """Weights and buffers."""
    gradients: int
    optimizer: int
    average: int
    """The moving average of the weights."""
    copies: int
    """Weights in bfloat16 that the backward pass waits for."""
    activations: int
    """All else that the backward pass waits for, the batch included."""
    peak: int
    """The most that lives at one time; gradients come as activations go, so it is no sum."""


def inference(
    subject: Subject,
    examples: int,
    device: Device,
    precision: Precision,
    *,
    watch: AbstractContextManager[Any] = NOTHING,
) -> Memory:
    """Count an evaluation of a batch, without gradients; what else is to be seen of it, `watch` sees."""
    with dry_run(device), torch.no_grad():
        model = subject.model.eval()
        with Ledger(model, device) as ledger, watch, autocast(precision):
            subject.forward(model, subject.batch(examples))
        weights = size_of(model)
    return Memory(weights, 0, 0, 0, 0, 0, weights + ledger.peak)


def training(
    subject: Subject,
    examples: int,
    device: Device,
    precision: Precision,
    *,
    recompute: bool | None = None,
    watch: tuple[AbstractContextManager[Any], AbstractContextManager[Any]] = (NOTHING, NOTHING),
) -> Memory:
    """Count an update, the micro-batch in which it needs the most.

    A teacher and other processes are left out, and the workspace of an LSTM, whose size its kernel does not tell.

    `recompute` overrules the configuration of the model, unless it is None. The two of `watch` see what else is to be
    seen of the way forward and of the way back.
    """
    config = subject.train
    with dry_run(device):
        model = as_trained(subject, subject.model, recompute=recompute)
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = sum(weight.nbytes for weight in learned)
        if config.accumulate > 1:
            for weight in learned:
                weight.grad = torch.zeros_like(weight)
        with Ledger(model, device) as ledger:
            with watch[0], autocast(precision):
                total = subject.task.loss(model, subject.batch(examples)).total
            copies, kept = ledger.weight_copies, ledger.live
            with watch[1]:
                total.backward()
        weights, before = size_of(model), gradients if config.accumulate > 1 else 0
        optimizer = MOMENTS[config.optimizer] * gradients
        average = sum(weight.nbytes for weight in model.parameters()) if config.ema else 0
    always = weights + optimizer + average
    peak = always + max(before + ledger.peak, gradients)
    return Memory(weights, gradients, optimizer, average, copies, kept - copies, peak)


def largest_batch(limit: float, peak: Callable[[int], int], start: int) -> int:
    """Return the largest batch whose peak is at most `limit` bytes; 0 where not even one example fits.

    Memory grows almost in proportion to the batch: each guess lies on the line through one example and the last guess.
    """
    low, high, least = 1, 0, peak(1)
    if least > limit:
        return 0
    guess = max(2, start)
    while high - low != 1:
        size = peak(guess)
        low, high = (guess, high) if size <= limit else (low, guess)
        slope = max(1.0, (size - least) / (guess - 1))
        guess = max(int(1 + (limit - least) / slope), low + 1)
        guess = min(guess, high - 1) if high else guess
    return low


def as_trained(subject: Subject, model: nn.Module, *, recompute: bool | None = None) -> nn.Module:
    """Make a model ready for training: frozen weights want no gradient, the others have none yet."""
    model.train().zero_grad()
    factors = subject.task.rate_factors(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(factors.get(name, 1.0) != 0)
    for module in model.modules():
        if hasattr(module, "recompute"):
            vars(module)["recompute"] = subject.recompute if recompute is None else recompute
    return model


def autocast(precision: Precision) -> torch.autocast:
    """Multiply in the precision of a run; dry runs are on the CPU, whatever they stand for."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def size_of(model: nn.Module) -> int:
    """Return the bytes of weights and buffers; those that share memory count once."""
    storages = {storage_id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(storages.values())
