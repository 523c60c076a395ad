"""Steps of training and of inference, the same for every library."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.worker import Setting

Batch = TypeVar("Batch")


def precision(setting: Setting, device: str = "cpu") -> torch.autocast:
    """Return the context in which a setting computes."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=setting == "bf16")


def compile_blocks(model: nn.Module, *, dynamic: bool | None = None) -> nn.Module:
    """Compile the blocks that a model repeats, in place, or the model where it has no list of them, and return it."""
    stacks = [stack for stack in model.modules() if isinstance(stack, nn.ModuleList) and len(stack) > 1]
    for part in [block for stack in stacks for block in stack] or [model]:
        part.compile(dynamic=dynamic)
    return model


class TrainingStep(Generic[Batch]):
    """One update after the other: forward, loss, backward, fused AdamW. The units are the targets of the batch."""

    def __init__(
        self,
        setting: Setting,
        model: nn.Module,
        loss: Callable[[Batch], Tensor],
        batches: Sequence[Batch],
        targets: Callable[[Batch], int],
    ) -> None:
        self.setting: Setting = setting
        self.device = next(model.parameters()).device.type
        self.loss, self.targets = loss, targets
        self.batches: Iterator[Batch] = cycle(batches)
        self.optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)

    def __call__(self) -> float:
        """Make an update with the next batch. `loss` returns a sum over its targets."""
        batch = next(self.batches)
        targets = self.targets(batch)
        with precision(self.setting, self.device):
            total = self.loss(batch)
        (total / targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return targets


class ForwardStep:
    """The outputs of a batch of images, without gradients. The units are images."""

    def __init__(self, setting: Setting, model: Callable[[Tensor], Tensor], images: Tensor) -> None:
        self.setting: Setting = setting
        self.model, self.images = model, images

    @torch.inference_mode()
    def __call__(self) -> float:
        """Compute all outputs once."""
        with precision(self.setting):
            self.model(self.images)
        return len(self.images)


class ForwardBackwardStep:
    """An output, and the gradients of the inputs and weights that it was made of. The unit is a call."""

    def __init__(
        self, setting: Setting, function: Callable[..., Tensor], *inputs: Tensor, weights: Iterable[Tensor] = ()
    ) -> None:
        self.setting: Setting = setting
        self.function, self.inputs = function, inputs
        self.leaves = [*(x.requires_grad_() for x in inputs), *weights]
        self.gradient = torch.randn_like(function(*inputs))

    def __call__(self) -> float:
        """Compute output and gradients once."""
        with precision(self.setting):
            out = self.function(*self.inputs)
        out.backward(self.gradient.to(out.dtype))
        for leaf in self.leaves:
            leaf.grad = None
        return 1
