"""A function recorded once as a CUDA graph and replayed: small kernels are launched without Python between them."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


class Replay:
    """Calls a function of one tensor that does the same operations on the same memory each time.

    The first call computes as usual, the second one records and replays, all others replay. What is returned is written
    over by the next call. On a CPU the function is simply called.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.warm = False
        self.graph: torch.cuda.CUDAGraph | None = None

    def forget(self) -> None:
        """Record again at the next call, because sizes or places in memory have changed."""
        self.graph = None

    def __call__(self, given: Tensor) -> Tensor:
        """Return what the function returns."""
        if given.device.type != "cuda":
            return self.function(given)
        if not self.warm:
            self.warm = True
            return self._aside(given, lambda: self.function(given))
        if self.graph is None:
            self.given, self.graph = given.clone(), torch.cuda.CUDAGraph()
            self.made = self._aside(given, self._record)
        self.given.copy_(given)
        self.graph.replay()
        return self.made

    def _record(self) -> Tensor:
        assert self.graph is not None
        self.graph.capture_begin(capture_error_mode="thread_local")
        try:
            return self.function(self.given)
        finally:
            self.graph.capture_end()

    def _aside(self, given: Tensor, work: Callable[[], Tensor]) -> Tensor:
        """Work on the stream that recordings are made on, so that the first call sets up its libraries there."""
        aside, current = _stream(given.device), torch.cuda.current_stream(given.device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            made = work()
        current.wait_stream(aside)
        return made


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
