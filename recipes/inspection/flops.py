"""FLOPs of a forward pass and of a training step, counted operation by operation in a dry run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from recipes.inspection.closed_form import Flops
from recipes.inspection.dry_run import Device, dry_run
from recipes.inspection.memory import as_trained
from recipes.inspection.subject import Subject

Counts = Mapping[str, Mapping[Any, int]]
"""FLOPs by module and operation."""
PRODUCTS = ("attention", "bmm", "baddbmm")
"""Parts of the names of operations of which attention is made; all other products are of a weight."""


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, which knows the fused attention of CPUs only from 2.15 on, and is told of it here."""

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kw: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def forward_flops(subject: Subject, examples: int, device: Device) -> Flops:
    """Count an evaluation of a batch."""
    with dry_run(device), torch.no_grad():
        model = subject.model.eval()
        with flop_counter() as counter:
            subject.forward(model, subject.batch(examples))
    return _forward(counter.get_flop_counts(), type(model).__name__, subject)


def training_flops(subject: Subject, examples: int, device: Device) -> Flops:
    """Count a micro-batch forward and backward, recomputed blocks as often as they are computed.

    Gradients of the logits of a translator are made in the forward pass, and counted there.
    """
    with dry_run(device):
        model = as_trained(subject, subject.model)
        with flop_counter() as counter:
            total = subject.task.loss(model, subject.batch(examples)).total
        ahead = counter.get_flop_counts()
        with flop_counter() as counter:
            total.backward()
        back = Counter(counter.get_flop_counts()["Global"])
    name = type(model).__name__
    convolutions, patches = _convolutions(back), _inside(ahead, name, subject.before)
    # The patches of an image have one gradient, that of their weight; those of a stem, and logits, have two.
    before = convolutions + (2 if convolutions else 1) * (sum(patches.values()) - _convolutions(patches))
    logits = 2 * sum(_inside(ahead, name, subject.after).values())
    attention = _products(back)
    linear = sum(back.values()) - before - logits - attention
    own = before, attention, linear, logits
    return Flops(*map(sum, zip(_forward(ahead, name, subject), own, strict=True)))


def _forward(counts: Counts, model: str, subject: Subject) -> Flops:
    """Sort the FLOPs of a forward pass; what is outside the model makes logits."""
    whole, inside = Counter(counts["Global"]), Counter(counts[model])
    before = sum(_inside(counts, model, subject.before).values())
    head = sum(_inside(counts, model, subject.after).values())
    attention = _products(inside)
    linear = sum(inside.values()) - before - attention - head
    return Flops(before, attention, linear, head + sum(whole.values()) - sum(inside.values()))


def _inside(counts: Counts, model: str, names: Sequence[str]) -> Counter[Any]:
    """Return the FLOPs of some parts of the model, by operation."""
    return sum((Counter(counts.get(f"{model}.{name}", {})) for name in names), Counter())


def _products(counts: Counter[Any]) -> int:
    return sum(number for operation, number in counts.items() if any(part in str(operation) for part in PRODUCTS))


def _convolutions(counts: Counter[Any]) -> int:
    return sum(number for operation, number in counts.items() if "convolution" in str(operation))
