"""What a run is made of at one moment, and how it is saved, resumed and averaged."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from recipes import checkpoint
from recipes.weights import flatten_optimizer, load_tensors_into, unflatten_optimizer
from tasks.errors import InputError

CHECKPOINTS = "checkpoints"


@dataclass
class Progress:
    """Where a run stands; all there is to know beside the tensors."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epoch of the next window."""
    window: int = 0
    """Next window in the plan of that epoch."""
    skipped: int = 0
    """Updates left out because a gradient was not finite."""
    best: list[tuple[float, int]] = field(default_factory=list)
    """Score and step of the best validations so far, best first."""
    monitor: str = ""
    """Metric of those scores."""
    stale: int = 0
    """Validations since the best one."""
    stopped_early: bool = False
    """Whether validations stopped improving."""
    data: str = ""
    """Digest of the data, as the task gives it."""


class MovingAverage:
    """An exponential moving average of the weights (Polyak and Juditsky 1992), with a short memory at the start.

    After update t the decay is min(decay, (1 + t) / (10 + t)), so that the random start is forgotten at once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averaged weights under every name that the model has for them, with its buffers."""
        own = {value.data_ptr(): self.weights[name] for name, value in model.named_parameters()}
        saved: dict[str, Tensor] = model.state_dict()
        return {name: own.get(value.data_ptr(), value) for name, value in saved.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights of the model after update `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [value.detach() for _, value in model.named_parameters()]
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), current, 0)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        own = {name: value.data for name, value in model.named_parameters()}
        try:
            for name, value in model.named_parameters():
                value.data = self.weights[name]
            yield
        finally:
            for name, value in model.named_parameters():
                value.data = own[name]


@dataclass
class State:
    """Model, optimizer, moving average and progress of a run."""

    model: nn.Module
    """Bare, without the wrapping of processes or compilation."""
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    progress: Progress = field(default_factory=Progress)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of this step into the run folder."""
        moments, groups = flatten_optimizer(self.optimizer.state_dict())
        tensors = {"model": self.model.state_dict(), "optimizer": moments}
        if self.average is not None:
            tensors["ema"] = self.average.state_dict(self.model)
        state = {"progress": asdict(self.progress), "optimizer": groups, "torch": torch.__version__}
        return checkpoint.save(folder / CHECKPOINTS, self.progress.step, tensors, state)

    def load(self, path: Path) -> None:
        """Take over a checkpoint. Raises InputError where it does not fit."""
        saved = checkpoint.load(path)
        load_tensors_into(self.model, saved.tensors["model"])
        try:
            self.optimizer.load_state_dict(unflatten_optimizer(saved.tensors["optimizer"], saved.state["optimizer"]))
        except ValueError as error:
            raise InputError(
                f"{path} is of another version, whose optimizer holds other weights together ({error}): choose another "
                f"--train.out and --train.start_from the weights of this run."
            ) from None
        if self.average is not None:
            self.average.weights = {
                name: saved.tensors["ema"][name].to(value) for name, value in self.average.weights.items()
            }
        self.progress = Progress(**saved.state["progress"])
        self.progress.best = [(score, step) for score, step in saved.state["progress"]["best"]]


def mean_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Average the models of several checkpoints, in float64, not their EMA (Vaswani et al. 2017, section 6.1).

    Names that share their weights in the checkpoints share them in the result.
    """
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for path in paths:
        last = checkpoint.load(path).tensors["model"]
        for name, tensor in last.items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    mean = {last[name].data_ptr(): (tensor / len(paths)).to(last[name].dtype) for name, tensor in total.items()}
    return {name: mean[tensor.data_ptr()] for name, tensor in last.items()}


def derived_seed(*parts: int | str) -> int:
    """Derive a seed from what identifies a draw, so that randomness never has to be saved."""
    digest = hashlib.sha256("-".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def as_scalars(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn settings into what a tracker stores: numbers and text."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
