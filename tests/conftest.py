"""What every test starts from."""

import jaxtyping
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transformer_core import BlockConfig, Decoder


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """Check the annotations of the core in its own tests, save slow ones: a check takes longer than what it checks."""
    checked = item.path.parent.name == "core" and item.get_closest_marker("slow") is None
    jaxtyping.config.update("jaxtyping_disable", not checked)


@pytest.fixture
def unchecked() -> None:
    """Let a test of the core say what users meet, whose annotations nobody checks."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


@pytest.fixture
def decoder() -> Decoder:
    """Three blocks of 32 features with rotary positions, in evaluation mode."""
    config = BlockConfig(dim=32, num_heads=4, num_kv_heads=2, hidden_dim=44, position="rotary")
    return Decoder(config, depth=3).eval()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation makes, forward and backward."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *(x.untyped_storage().nbytes() // x.element_size() for x in made)])
        return out


@pytest.fixture
def largest() -> Largest:
    """A context that measures the largest tensor made inside."""
    return Largest()
