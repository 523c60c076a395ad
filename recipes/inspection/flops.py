"""FLOPs of a forward pass and of a training step, counted operation by operation in the dry run that counts memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from recipes.inspection.closed_form import Flops
from recipes.inspection.dry_run import Device
from recipes.inspection.memory import Memory, inference, training
from recipes.inspection.subject import Subject

Counts = Mapping[str, Mapping[Any, int]]
"""FLOPs by module and operation."""
PRODUCTS = ("attention", "bmm", "baddbmm")
"""Parts of the names of operations of which attention is made; all other products are of a weight."""


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter, told of what it does not know on CPUs: fused attention, before 2.15, and the LSTM."""

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kw: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def lstm(steps: torch.Size, of_input: torch.Size, of_state: torch.Size, *args: Any, **kwargs: Any) -> int:
        return 2 * steps[:-1].numel() * (of_input.numel() + of_state.numel())

    def lstm_backward(*args: Any, **kwargs: Any) -> int:
        return 2 * lstm(*args)

    aten = torch.ops.aten
    known = {
        aten.mkldnn_rnn_layer: lstm,
        aten.mkldnn_rnn_layer_backward: lstm_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def evaluation(subject: Subject, examples: int, device: Device) -> tuple[Flops, Memory]:
    """Count an evaluation of a batch in float32."""
    counter = flop_counter()
    memory = inference(subject, examples, device, "fp32", watch=counter)
    return _forward(counter.get_flop_counts(), type(subject.model).__name__, subject), memory


def update(subject: Subject, examples: int, device: Device, *, recompute: bool) -> tuple[Flops, Memory]:
    """Count a micro-batch in float32 forward and backward, recomputed blocks as often as they are computed.

    Gradients of the logits of a translator are made in the forward pass, and counted there.
    """
    there, back_again = flop_counter(), flop_counter()
    memory = training(subject, examples, device, "fp32", recompute=recompute, watch=(there, back_again))
    if recompute:  # PyTorch's counter keeps what is computed again, so memory is counted without it
        memory = training(subject, examples, device, "fp32", recompute=True)
    ahead, back = there.get_flop_counts(), Counter(back_again.get_flop_counts()["Global"])
    name = type(subject.model).__name__
    convolutions, patches = _convolutions(back), _inside(ahead, name, subject.before)
    # The patches of an image have one gradient, that of their weight; those of a stem, and logits, have two.
    before = convolutions + (2 if convolutions else 1) * (sum(patches.values()) - _convolutions(patches))
    logits = 2 * sum(_inside(ahead, name, subject.after).values())
    attention = _products(back)
    linear = sum(back.values()) - before - logits - attention
    own = before, attention, linear, logits
    return Flops(*map(sum, zip(_forward(ahead, name, subject), own, strict=True))), memory


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
