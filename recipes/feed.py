"""The stream of training data: the windows of each epoch's plan, cut for this process, read by loader workers."""

import signal
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset

from tasks.errors import InputError, one_line
from tasks.task import Split, Task


class Key(NamedTuple):
    """One micro-batch to read."""

    epoch: int
    window: int
    place: int
    """Its place in the window, the same on any number of processes."""
    rows: list[int]
    real: bool
    """False for a stand-in that keeps this process in step with the others and counts for nothing."""
    last: bool
    """Whether it is the last of this process in the window."""


class Item(NamedTuple):
    """One micro-batch that was read."""

    key: Key
    batch: Any
    targets: int


class _MicroBatches(Dataset[Item]):
    def __init__(self, task: Task[Any], split: Split) -> None:
        self.task = task
        self.split: Split = split

    def __getitem__(self, key: Key) -> Item:
        try:
            batch = self.task.batch(self.split, key.rows, key.epoch)
        except InputError as error:  # a worker would wrap it in a traceback
            return Item(key, error, 0)
        return Item(key, batch, self.task.targets(batch) if key.real else 0)


def keys(task: Task[Any], *, accumulate: int, epoch: int, window: int, rank: int, world: int) -> Iterator[Key]:
    """Yield, without end, what one process reads from a given window of a given epoch on.

    A window is `accumulate` micro-batches of the plan, the last of an epoch maybe fewer; process r takes every
    `world`-th of it from r on. Every process gets the same number from a window: where one has too few, a single
    example of the window stands in.
    """
    while True:
        plan = task.plan("train", epoch)
        if not plan:
            raise InputError("the training data hold no example: give more, or drop fewer.")
        windows = [plan[begin : begin + accumulate] for begin in range(0, len(plan), accumulate)]
        for index in range(window, len(windows)):
            batches = windows[index]
            for begin in range(0, len(batches), world):
                place, last = begin + rank, begin + world >= len(batches)
                real = place < len(batches)
                yield Key(epoch, index, place, list(batches[place] if real else batches[0][:1]), real, last)
        epoch, window = epoch + 1, 0


def _outlive_requests(worker: int) -> None:
    """Let a worker outlive a request to stop that goes to the whole group; it ends when the stream is closed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def read_ahead(
    task: Task[Any], split: Split, order: Iterator[Key], *, workers: int, pin: bool
) -> Generator[Item, None, None]:
    """Read micro-batches ahead in `workers` processes (0: in this one, when asked) and yield them in order.

    Raises InputError for examples that cannot be read, when their turn comes.
    """
    loader = DataLoader(
        _MicroBatches(task, split),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_outlive_requests,
    )
    for item in loader:
        if isinstance(item.batch, InputError):
            raise item.batch
        yield item


def windows(task: Task[Any], order: Iterator[Key], *, workers: int, pin: bool) -> Generator[list[Item], None, None]:
    """Read the micro-batches to train on, as `read_ahead` does, and yield them window by window."""
    window: list[Item] = []
    for item in read_ahead(task, "train", order, workers=workers, pin=pin):
        window.append(item)
        if item.key.last:
            yield window
            window = []


@contextmanager
def readers_watched(workers: int) -> Iterator[None]:
    """Raise InputError where one of the processes that read ahead dies meanwhile.

    Its signal may come anywhere, and PyTorch raises there.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not workers or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")):
            raise
        with suppress(RuntimeError):  # the signal may still be under way, and would break in upon what follows
            time.sleep(0.2)
        raise InputError(
            f"a process that reads ahead has died ({one_line(error)}), for lack of memory maybe: lower "
            "--train.workers; the same command continues."
        ) from error
