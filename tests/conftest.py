"""What every test starts from."""

import pytest
import torch

from transformer_core import BlockConfig, Decoder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


@pytest.fixture
def decoder() -> Decoder:
    """Three blocks of 32 features in evaluation mode; without positions of its own, so that any input will do."""
    config = BlockConfig(dim=32, num_heads=4, num_kv_heads=2, hidden_dim=44, position="rotary")
    return Decoder(config, depth=3).eval()
