"""Numbers that follow from the settings of a module."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Derived(nn.Module, ABC):
    """A module with buffers that follow from its settings, and so are in no state dict.

    They are written anew whenever the module is moved or changes its type. So those of a model in float64 are as exact
    as it is, and a model that was made without memory, under `torch.device("meta")`, has them after `to_empty`.
    """

    @abstractmethod
    def derive(self) -> None:
        """Write the numbers into the buffers, whatever device and type these have."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        with torch.no_grad():
            self.derive()
        return self
