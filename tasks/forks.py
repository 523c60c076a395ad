"""Work shared by processes with a core each: what an operator costs in Python is then paid by all of them at once."""

import ctypes
import gc
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")

_function: Callable[[Any], Any]


def default_workers() -> int:
    """Return how many forks keep the cores of this process busy: its threads, or 1 where the system cannot fork."""
    return torch.get_num_threads() if sys.platform == "linux" else 1


class Forks(Generic[Item, Found]):
    """Forks of this process, one thread each, that stay and work out a function of whatever they are given.

    What the function uses when they are made, the weights of a model above all, is shared and not copied; items and
    results are pickled. They end with this object, or with the process.
    """

    def __init__(self, function: Callable[[Item], Found], workers: int) -> None:
        self.function, self.workers = function, workers
        self.pool: ProcessPoolExecutor | None = None

    def map(self, items: Sequence[Item]) -> list[Found]:
        """Return the function of each item, in their order.

        An exception of the function is raised here; BrokenProcessPool if a fork dies, and the next call makes new ones.
        """
        with warnings.catch_warnings():
            # Threads of the parent are idle pools of matrix products, which a fork with one thread never asks for.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            if self.pool is None:
                context = multiprocessing.get_context("fork")
                self.pool = ProcessPoolExecutor(self.workers, context, initializer=_begin, initargs=(self.function,))
            try:
                return list(self.pool.map(_call, items))
            except BrokenProcessPool:
                self.pool = None
                raise


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    torch.set_num_threads(1)
    gc.freeze()  # what is shared lives as long as this process; looking for garbage in it would only copy it
    if sys.platform == "linux":
        # A process that is killed cannot tell its forks, and each of them keeps open what the others wait for.
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _call(item: Any) -> Any:
    return _function(item)
