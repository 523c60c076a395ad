"""Scoring a split: every example once, over all processes, measured together."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import nn

from recipes.feed import Key, read_ahead, readers_watched
from tasks.errors import InputError
from tasks.progress import shown
from tasks.task import Split, Task


@torch.inference_mode()
def predict(
    task: Task[Any],
    model: nn.Module,
    split: Split,
    plan: Sequence[Sequence[int]],
    device: torch.device,
    *,
    workers: int = 0,
) -> list[tuple[int, Any]]:
    """Return one (example, output) for each example of the planned micro-batches; `model` is in evaluation mode.

    `workers` processes read ahead; 0: none.
    """
    order = (Key(0, 0, place, list(rows), real=True, last=True) for place, rows in enumerate(plan))
    workers, pin = min(workers, len(plan)), device.type == "cuda"
    found: list[tuple[int, Any]] = []
    with readers_watched(workers), closing(read_ahead(task, split, order, workers=workers, pin=pin)) as items:
        for item in shown(items, f"{split} batches", total=len(plan)):
            found += task.predict(split, model, send_to_device(item.batch, device, non_blocking=True))
    return found


def evaluate(
    task: Task[Any], model: nn.Module, split: Split, accelerator: Accelerator, *, workers: int = 0
) -> tuple[dict[str, float], list[str]]:
    """Predict every example of a split once, over all processes, and score all outputs together.

    Args:
        model: bare, with the weights to score; returned to the mode it came in.
        workers: processes that read ahead, for each process of the launcher; 0: none.
    """
    plan = task.plan(split, 0)
    was_training = model.training
    own = plan[accelerator.process_index :: accelerator.num_processes]
    with accelerator.autocast():
        found = predict(task, model.eval(), split, own, accelerator.device, workers=workers)
    model.train(was_training)
    found = sorted(gather_object(found), key=lambda pair: pair[0])
    count = sum(map(len, plan))
    if [row for row, _ in found] != list(range(count)):
        raise RuntimeError(f"The {len(found)} outputs of {split} are not one for each of its {count} examples.")
    result: list[Any] = [None]
    if accelerator.is_main_process:
        outputs = [output for _, output in found]
        result = [(task.measure(split, outputs), task.samples(split, outputs))]
    broadcast_object_list(result)
    return result[0]


def check_reported(flag: str, metric: str, metrics: Mapping[str, float]) -> None:
    """Raise InputError where a task does not report the metric that a flag names."""
    if metric not in metrics:
        raise InputError(f"{flag} {metric} is not reported: choose among {', '.join(metrics)}.")
