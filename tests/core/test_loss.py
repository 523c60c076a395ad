import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from transformer_core import FactoredLogits, linear_cross_entropy
from transformer_core.loss import log_likelihood

MODULE = sys.modules[linear_cross_entropy.__module__]
ROWS = [1, 3, 4, 5, 8, 13]


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch):
    monkeypatch.setattr(MODULE, "chunk_rows", lambda weight: 4)


def example(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of 5 features, the weight of 11 classes, and targets."""
    hidden = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    return hidden, torch.randn(11, 5, dtype=dtype, requires_grad=True), torch.randint(11, (rows,))


def assert_equal_to(reference: Tensor, ours: Tensor, leaves: tuple[Tensor, Tensor], **tolerance: float) -> None:
    """Values and gradients, also under a factor that comes from above."""
    assert_close(ours, reference, **tolerance)
    expected = torch.autograd.grad(reference * 0.3, leaves)
    for grad, other in zip(torch.autograd.grad(ours * 0.3, leaves), expected, strict=True):
        assert_close(grad, other, **tolerance)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_it_equals_cross_entropy_of_the_multiplied_logits(rows, smoothing):
    hidden, weight, target = example(rows)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=smoothing)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    assert_equal_to(expected, ours.smoothed, (hidden, weight), rtol=0, atol=1e-10)
    assert_close(ours.plain, F.cross_entropy(logits, target, reduction="sum").detach(), rtol=0, atol=1e-10)
    assert not ours.plain.requires_grad


def test_label_smoothing_is_the_cross_entropy_to_a_mixture_with_the_uniform_distribution():
    hidden, weight, target = example(7)
    logits = hidden.detach().numpy() @ weight.detach().numpy().T
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = np.full((7, 11), 0.2 / 11)
    wanted[np.arange(7), target.numpy()] += 0.8
    expected = -(wanted * np.log(probability)).sum()
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.2)
    assert ours.smoothed.item() == pytest.approx(expected, abs=1e-10)
    assert ours.plain.item() == pytest.approx(-np.log(probability[np.arange(7), target]).sum(), abs=1e-10)


def with_consistency(hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float, consistency: float) -> Tensor:
    """R-Drop by autograd: both passes pay the cross-entropy and half the sum of both divergences."""
    logits = hidden @ weight.T
    nll = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    one, other = logits.log_softmax(1).chunk(2)
    there = F.kl_div(other, one, reduction="sum", log_target=True)
    back = F.kl_div(one, other, reduction="sum", log_target=True)
    return nll + consistency / 2 * (there + back)


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_consistency_adds_half_of_both_divergences_between_the_passes(pairs, smoothing):
    hidden, weight, target = example(2 * pairs)
    target = target[:pairs].repeat(2)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=smoothing, consistency=1.7)
    expected = with_consistency(hidden, weight, target, smoothing, 1.7)
    assert_equal_to(expected, ours.smoothed, (hidden, weight), rtol=0, atol=1e-10)
    assert_close(ours.plain, F.cross_entropy(hidden @ weight.T, target, reduction="sum").detach(), rtol=0, atol=1e-10)


def test_two_equal_passes_cost_twice_one_pass():
    hidden, weight, target = example(5)
    one = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1)
    twice = FactoredLogits(hidden.repeat(2, 1), weight)
    two = linear_cross_entropy(twice, target.repeat(2), smoothing=0.1, consistency=5.0)
    assert_equal_to(2 * one.smoothed, two.smoothed, (hidden, weight), rtol=0, atol=1e-10)


@pytest.mark.parametrize("consistency", [0.0, 1.7])
def test_its_gradients_equal_finite_differences(consistency):
    hidden, weight, target = example(6)
    target = target[:3].repeat(2)

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = FactoredLogits(hidden, weight)
        return linear_cross_entropy(logits, target, smoothing=0.1, consistency=consistency).smoothed

    assert gradcheck(run, (hidden, weight))


@pytest.mark.parametrize("rows", [1, 511, 512, 513, 1030])
def test_the_chunks_of_everyday_use_change_nothing(rows, monkeypatch):
    monkeypatch.undo()
    hidden, weight, target = example(rows)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1)
    expected = F.cross_entropy(hidden @ weight.T, target, label_smoothing=0.1, reduction="sum")
    assert_equal_to(expected, ours.smoothed, (hidden, weight), rtol=0, atol=1e-9)


@pytest.mark.parametrize("consistency", [0.0, 1.7])
def test_no_more_logits_exist_at_one_time_than_a_chunk_has(consistency, largest):
    hidden, weight, target = torch.randn(40, 3), torch.randn(101, 3), torch.randint(101, (40,))
    with largest:
        linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1, consistency=consistency)
    assert 101 * 3 <= largest.numbers <= 101 * 4


def test_under_bfloat16_autocast_rounding_does_not_add_up():
    hidden, weight, target = example(1301, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1)
    logits = hidden @ weight.T
    assert_close(ours.plain, F.cross_entropy(logits, target, reduction="sum").detach(), rtol=1e-3, atol=0)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1, reduction="sum")
    assert_close(ours.smoothed, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("consistency", [0.0, 1.7])
def test_under_bfloat16_autocast_it_is_close_and_the_sum_is_in_float32(consistency):
    hidden, weight, target = example(26, torch.float32)
    target = target[:13].repeat(2)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(
            FactoredLogits(hidden, weight), target, smoothing=0.1, consistency=consistency
        ).smoothed
    assert ours.dtype == torch.float32
    expected = with_consistency(hidden, weight, target, 0.1, consistency)
    assert_close(ours, expected, rtol=1e-2, atol=0)
    for grad, other in zip(
        torch.autograd.grad(ours, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight]), strict=True
    ):
        assert grad.dtype == torch.float32
        assert ((grad - other).norm() / other.norm()).item() < 2e-2


def test_the_sum_over_hidden_states_in_bfloat16_is_not_rounded_to_bfloat16():
    hidden, weight, target = example(301, torch.bfloat16)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target)
    expected = F.cross_entropy((hidden @ weight.T).float(), target, reduction="sum")
    assert_close(ours.plain.float(), expected.detach(), rtol=1e-4, atol=0)  # bfloat16 would be off by 2e-3


def test_the_likelihood_of_narrow_logits_is_wide():
    hidden, weight, target = example(6, torch.bfloat16)
    found = log_likelihood(FactoredLogits(hidden, weight), target)
    expected = (hidden @ weight.T).double().log_softmax(1).gather(1, target[:, None])[:, 0]
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_large_logits_stay_finite():
    hidden, weight, target = example(6, torch.float32)
    target = target[:3].repeat(2)
    logits = FactoredLogits(hidden * 1e3, weight)
    ours = linear_cross_entropy(logits, target, smoothing=0.1, consistency=1.0).smoothed
    assert_close(ours, with_consistency(*logits, target, 0.1, 1.0))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(ours, [hidden, weight]))


@pytest.mark.parametrize("consistency", [0.0, 1.7])
def test_no_rows_cost_nothing_and_have_zero_gradients(consistency):
    hidden, weight, target = example(0)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1, consistency=consistency)
    assert (ours.smoothed.item(), ours.plain.item()) == (0, 0)
    grads = torch.autograd.grad(ours.smoothed, [hidden, weight])
    assert_close(grads, (torch.zeros(0, 5).double(), torch.zeros(11, 5).double()))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_either_side_may_be_frozen(frozen):
    hidden, weight, target = example(6)
    leaf = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1)
    expected = F.cross_entropy(hidden @ weight.T, target, label_smoothing=0.1, reduction="sum")
    assert_close(torch.autograd.grad(ours.smoothed, leaf), torch.autograd.grad(expected, leaf), rtol=0, atol=1e-10)


def test_it_works_where_gradients_are_off():
    hidden, weight, target = example(6)
    with torch.no_grad():
        ours = linear_cross_entropy(FactoredLogits(hidden, weight), target, smoothing=0.1)
    assert_close(
        ours.smoothed, F.cross_entropy(hidden @ weight.T, target, label_smoothing=0.1, reduction="sum").detach()
    )
    assert not ours.smoothed.requires_grad


def test_gradients_of_gradients_are_refused_instead_of_wrong():
    hidden, weight, target = example(6)
    ours = linear_cross_entropy(FactoredLogits(hidden, weight), target)
    (grad,) = torch.autograd.grad(ours.smoothed.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_passes_that_are_no_pairs_are_refused():
    hidden, weight, target = example(5)
    with pytest.raises(ValueError, match="consistency"):
        linear_cross_entropy(FactoredLogits(hidden, weight), target, consistency=1.0)


def test_targets_of_another_number_than_the_rows_are_refused():
    hidden, weight, _ = example(5)
    with pytest.raises((ValueError, RuntimeError)):
        linear_cross_entropy(FactoredLogits(hidden, weight), torch.randint(11, (6,)))
