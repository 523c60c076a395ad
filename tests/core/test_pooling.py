"""Attention pooling against Nadaraya-Watson regression in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from transformer_core import KernelPooling


def regression(at: Tensor, seen: Tensor, values: Tensor, width: float, *, hide_own: bool = False) -> np.ndarray:
    """sum K(x - x_i) y_i / sum K(x - x_i) of one example, (queries, value_features)."""
    squares = np.square(at.numpy()[:, None] - seen.numpy()[None]).sum(-1)
    kernel = np.exp(-squares / (2 * width**2))
    if hide_own:
        np.fill_diagonal(kernel, 0.0)
    return kernel @ values.numpy() / kernel.sum(1, keepdims=True)


def curve(points: int = 50, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """The noisy curve y = 2 sin x + x^0.8, (1, points, 1) each."""
    x = 5 * torch.rand(points, dtype=torch.float64).sort().values
    y = 2 * x.sin() + x**0.8 + noise * torch.randn(points, dtype=torch.float64)
    return x[None, :, None], y[None, :, None]


@pytest.mark.parametrize("width", [0.07, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("queries", [3, 23])
@pytest.mark.parametrize("features", [1, 3])
def test_predictions_are_the_closed_form(width, queries, features):
    pool = KernelPooling(width).double()
    at, seen, values = (5 * torch.rand(2, *shape).double() for shape in [(queries, features), (50, features), (50, 2)])
    found = pool(at, seen, values)
    assert_close(found, pool.weights(at, seen) @ values, rtol=0, atol=1e-12)
    for example in range(2):
        expected = regression(at[example], seen[example], values[example], pool.width)
        assert_close(found[example], torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_places_far_from_0_are_as_good_as_others():
    x = torch.linspace(1990, 2020, 31)[None, :, None]
    y, hidden = (x / 3).sin(), ~torch.eye(31, dtype=torch.bool)
    gradients = []
    for pool in (KernelPooling(0.5, learned=True), KernelPooling(0.5, learned=True).double()):
        dtype = pool.kernel.log_sigma.dtype
        found = pool(x.to(dtype), x.to(dtype), y.to(dtype), mask=hidden)
        assert_close(found, pool.weights(x.to(dtype), x.to(dtype), mask=hidden) @ y.to(dtype), rtol=0, atol=1e-5)
        (found - y.to(dtype)).square().mean().backward()
        gradients.append(pool.kernel.log_sigma.grad.double())
    assert_close(*gradients, rtol=1e-2, atol=0)


def test_an_infinite_width_is_the_mean_of_all_values():
    at, (seen, values) = torch.linspace(0, 5, 7).double()[None, :, None], curve()
    pool = KernelPooling(math.inf).double()
    assert_close(pool(at, seen, values), values.mean(1, keepdim=True).expand(1, 7, 1), rtol=0, atol=1e-12)
    assert_close(pool.weights(at, seen), torch.full((1, 7, 50), 1 / 50).double())


def test_a_place_hidden_from_itself_is_left_out_of_its_prediction():
    pool, (seen, values) = KernelPooling(0.4).double(), curve()
    found = pool(seen, seen, values, mask=~torch.eye(50).bool())
    expected = regression(seen[0], seen[0], values[0], pool.width, hide_own=True)
    assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=1e-10)
    assert not pool(seen, seen, values, mask=torch.zeros(50, 50).bool()).any()


def test_only_a_learned_width_learns():
    assert [parameter.requires_grad for parameter in KernelPooling(2.0).parameters()] == [False]
    pool, (seen, values) = KernelPooling(0.7, learned=True).double(), curve(5)
    assert pool.width == pytest.approx(0.7)
    # gradcheck moves the parameter in place, so it counts although `pool` reads it itself.
    assert gradcheck(lambda *inputs: pool(*inputs[:3]), (seen, seen, values, *pool.parameters()))


def test_each_point_left_out_in_training_the_width_becomes_that_of_cross_validation():
    seen, values = curve()
    others = ~torch.eye(50).bool()
    pool = KernelPooling(learned=True).double()

    def loss(pool: KernelPooling) -> Tensor:
        return (pool(seen, seen, values, mask=others) - values).square().mean()

    before = loss(pool).item()
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(pool).backward()
        optimizer.step()
    assert pool.width < 1 and loss(pool).item() < before

    widths = np.linspace(0.05, 1.5, 291)
    errors = [
        np.square(regression(seen[0], seen[0], values[0], width, hide_own=True) - values[0].numpy()).mean()
        for width in widths
    ]
    assert pool.width == pytest.approx(widths[np.argmin(errors)], abs=0.01)
    assert loss(pool).item() == pytest.approx(min(errors), abs=1e-4)


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match=f"width={width} is no standard deviation: choose more than 0"):
        KernelPooling(width)


def test_an_infinite_width_cannot_be_learned():
    with pytest.raises(ValueError, match="width=inf has no gradient to learn from"):
        KernelPooling(math.inf, learned=True)
