"""All that is counted of a model: the dry runs of every precision, at the same time where the system can fork."""

from collections.abc import Mapping
from typing import NamedTuple

from recipes.inspection.closed_form import Flops
from recipes.inspection.dry_run import Device
from recipes.inspection.flops import evaluation, update
from recipes.inspection.layers import OutputShapes
from recipes.inspection.memory import Memory, Precision, inference, training
from recipes.inspection.subject import Subject
from tasks.forks import Forks, default_workers

Kind = tuple[Precision, bool | None]
"""Precision, and whether activations are recomputed in training; None: inference."""
KINDS: tuple[Kind, ...] = (
    *(("fp32", None), ("bf16", None)),
    *(("fp32", False), ("fp32", True)),
    *(("bf16", False), ("bf16", True)),
)
"""In the order of the table."""


class Survey(NamedTuple):
    """What was counted on one micro-batch."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of what each module returns."""
    forward: Flops
    step: Flops
    memory: Mapping[Kind, Memory]


class _Run(NamedTuple):
    memory: Memory
    flops: Flops | None = None
    shapes: Mapping[str, tuple[int, ...]] = {}


def survey(subject: Subject, batch: int, device: Device) -> Survey:
    """Count memory of each kind, and FLOPs and shapes in two of the same dry runs."""

    def run(kind: Kind) -> _Run:
        precision, recompute = kind
        if kind == ("fp32", None):
            with OutputShapes(subject.model) as shapes:
                forward, memory = evaluation(subject, batch, device)
            return _Run(memory, forward, shapes.found)
        if kind == ("fp32", subject.recompute):
            step, memory = update(subject, batch, device, recompute=subject.recompute)
            return _Run(memory, step)
        if recompute is None:
            return _Run(inference(subject, batch, device, precision))
        return _Run(training(subject, batch, device, precision, recompute=recompute))

    longest_first, workers = KINDS[::-1], min(default_workers(), len(KINDS))
    runs = Forks(run, workers).map(longest_first) if workers > 1 else map(run, longest_first)
    found = dict(zip(longest_first, runs, strict=True))
    forward, step = found["fp32", None], found["fp32", subject.recompute]
    assert forward.flops is not None and step.flops is not None
    return Survey(forward.shapes, forward.flops, step.flops, {kind: found[kind].memory for kind in KINDS})
