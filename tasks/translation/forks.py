"""Work shared by processes with a core each: what an operator costs in Python is then paid by all of them at once."""

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")

_function: Callable[[Any], Any]


def fork_map(function: Callable[[Item], Found], items: Sequence[Item], workers: int) -> list[Found]:
    """Return `function` of each item, in their order, worked out by forks of this process with one thread each.

    What the function uses, the weights of a model above all, is shared and not copied; items and results are pickled.
    An exception of the function is raised here, and BrokenProcessPool if a fork dies.
    """
    with warnings.catch_warnings():
        # Threads of the parent are idle pools of matrix products, which a fork with one thread never asks for.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(workers, len(items)), context, initializer=_begin, initargs=(function,)) as pool:
            return list(pool.map(_call, items))


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    torch.set_num_threads(1)


def _call(item: Any) -> Any:
    return _function(item)
