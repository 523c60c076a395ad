"""The contract between a task and the training loop.

A task knows its data, its model and its scores. It does not know how many processes there are, where checkpoints
go, or what the learning rate is. A batch travels recipe -> loop -> task -> model -> block -> attention; back come one
sum (the loss) and one list (the outputs).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

Batch = TypeVar("Batch")
Split = Literal["train", "valid", "test"]


class Loss(NamedTuple):
    """What a micro-batch contributes: sums over its targets, never means.

    The loop divides every sum once, by the number of targets in the whole update window over all processes.
    """

    total: Tensor
    """The sum to differentiate, a scalar."""
    report: Mapping[str, Tensor]
    """Further sums to log, detached scalars; every micro-batch has the same names."""


class Task(ABC, Generic[Batch]):
    """What a training loop needs to know of a task."""

    falling: frozenset[str] = frozenset({"loss", "perplexity"})
    """Metrics of `measure` of which less is better; of all others more is."""

    unit: str = "targets"
    """What `targets` counts, for the log: tokens, images."""

    ragged: bool = True
    """Whether batches come in many shapes, as those of sentences do."""

    def sign(self, metric: str) -> int:
        """Return 1 for a metric of which more is better, -1 where less is."""
        return -1 if metric in self.falling else 1

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Make or load what the run folder keeps (a vocabulary, class names) and read the data.

        Called in every process, one after the other, so that those behind find the files that the first one wrote.
        """

    def digest(self) -> str:
        """Return a name for the data to train and validate on, another one where they are others.

        A run is continued on the same data alone; "" leaves that to the user.
        """
        return ""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a fresh model; its weights are drawn from torch's global generator."""

    def begin(self, model: nn.Module) -> None:
        """Give the fresh model what it is to start from, other than chance; not called for a run that is resumed."""

    def rate_factors(self, model: nn.Module) -> Mapping[str, float]:
        """Return by name what the learning rate of a weight is multiplied by: 1 unless given, 0 to freeze it."""
        return {}

    @abstractmethod
    def plan(self, split: Split, epoch: int) -> Sequence[Sequence[int]]:
        """Say which examples meet in which micro-batch, in order: a pure function of the split and the epoch."""

    @abstractmethod
    def batch(self, split: Split, indices: Sequence[int], epoch: int) -> Batch:
        """Read, encode, augment and collate the examples; runs in loader workers, all randomness from the arguments."""

    @abstractmethod
    def targets(self, batch: Batch) -> int:
        """Count the things the loss sums over; known on the host, so that nothing waits for the device."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum the loss over the targets of the batch. `model` may be wrapped; call it, do not look inside."""

    @abstractmethod
    def predict(self, split: Split, model: nn.Module, batch: Batch) -> list[tuple[int, Any]]:
        """Return one (example index, output) per example. `model` is bare and in evaluation mode."""

    @abstractmethod
    def measure(self, split: Split, outputs: Sequence[Any]) -> dict[str, float]:
        """Score the outputs of a whole split, in the order of the examples, once."""

    def tables(self) -> Sequence[Any]:
        """Return what to print before training, anything rich can print: what was dropped from the data, and why."""
        return []

    def samples(self, split: Split, outputs: Sequence[Any]) -> list[str]:
        """Return a few outputs as lines to read at each validation."""
        return []
