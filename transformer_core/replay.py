"""A function recorded once as a CUDA graph and replayed: small kernels are launched without Python between them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_latest: dict[torch.device, torch.cuda.CUDAGraph] = {}
"""The last recording on each device, whose memory the next one takes over; memory of a graph that is gone can only be
freed, which PyTorch does not do while it records."""


class Replay:
    """Calls a function of one tensor that does the same operations on the same memory each time.

    The first call computes as usual, the second one records and replays, all others replay. What is returned is written
    over by the next call of this or of another replay on the device; all belong to one thread. On a CPU the function is
    simply called.
    """

    def __init__(self) -> None:
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def forget(self) -> None:
        """Record again at the next call, because sizes or places in memory have changed."""
        self.graph = None

    def __call__(self, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Return what the function, the same at each call, returns of `given`."""
        if given.device.type != "cuda":
            return function(given)
        if not self.warm:
            self.warm = True
            return _aside(given.device, lambda: function(given))
        if self.graph is None:
            self.given = given.clone()
            self.made, self.graph = _record(function, self.given)
        self.given.copy_(given)
        self.graph.replay()
        return self.made


def _record(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph]:
    graph, latest = torch.cuda.CUDAGraph(), _latest.get(given.device)

    def work() -> Tensor:
        graph.capture_begin(pool=None if latest is None else latest.pool(), capture_error_mode="thread_local")
        try:
            return function(given)
        finally:
            graph.capture_end()

    made = _aside(given.device, work)
    _latest[given.device] = graph
    return made, graph


def _aside(device: torch.device, work: Callable[[], Tensor]) -> Tensor:
    """Work on the stream that recordings are made on, so that the first call sets up its libraries there."""
    aside, current = _stream(device), torch.cuda.current_stream(device)
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        made = work()
    current.wait_stream(aside)
    return made


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
