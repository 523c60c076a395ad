import math
from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from transformer_core import Additive, Bilinear, Cosine, GaussianKernel, Score, make_score
from transformer_core.score import ScoreName

SCORES = get_args(ScoreName)
FACTORED = [name for name in SCORES if name != "additive"]


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def trained(name: ScoreName, width: int = 5) -> Score:
    """A score in float64 whose parameters have left their initial values."""
    score = make_score(name, width).double()
    for parameter in score.parameters():
        nn.init.normal_(parameter, std=0.4)
    return score


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def one_pair(name: ScoreName, score: Score, query: list[float], key: list[float]) -> float:
    """The score of one query and one key in plain Python, from the formulas of the papers."""
    learned = {name: value.tolist() for name, value in score.named_parameters()}
    match name:
        case "dot":
            return dot(query, key)
        case "scaled_dot":
            return dot(query, key) / len(key) ** 0.5
        case "additive":
            rows = zip(learned["query.weight"], learned["key.weight"], strict=True)
            hidden = [math.tanh(dot(to_query, query) + dot(to_key, key)) for to_query, to_key in rows]
            return dot(learned["weight.weight"][0], hidden)
        case "bilinear":
            return dot(query, [dot(row, key) for row in learned["weight"]])
        case "cosine":
            return dot(query, key) / math.hypot(*query) / math.hypot(*key) * math.exp(learned["log_sharpness"])
        case "gaussian":
            return -(math.dist(query, key) ** 2) / (2 * math.exp(learned["log_sigma"]) ** 2)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_the_formula_of_its_paper(name):
    score = trained(name)
    query, key = doubles(2, 3, 4, 5), doubles(2, 3, 7, 5)
    expected = torch.empty(2, 3, 4, 7, dtype=torch.float64)
    for b, h, i, j in product(*map(range, expected.shape)):
        expected[b, h, i, j] = one_pair(name, score, query[b, h, i].tolist(), key[b, h, j].tolist())
    assert_close(score(query, key), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "make"), [("additive", Additive), ("bilinear", Bilinear)])
def test_widths_of_queries_and_keys_may_differ(name, make):
    score = make(3, 5).double()
    query, key = doubles(2, 1, 4, 3), doubles(2, 1, 7, 5)
    expected = torch.empty(2, 1, 4, 7, dtype=torch.float64)
    for b, h, i, j in product(*map(range, expected.shape)):
        expected[b, h, i, j] = one_pair(name, score, query[b, h, i].tolist(), key[b, h, j].tolist())
    assert_close(score(query, key), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FACTORED)
def test_the_factorisation_equals_the_score_under_softmax(name):
    score = trained(name)
    query, key = doubles(2, 3, 4, 5), doubles(2, 3, 7, 5)
    factored = score.factor(query, key)
    product_ = factored.scale * factored.query @ factored.key.mT
    assert_close(product_.softmax(-1), score(query, key).softmax(-1), rtol=0, atol=1e-12)


def test_the_factorisation_takes_fewer_heads_of_keys():
    for name in FACTORED:
        query, key, scale = trained(name).factor(doubles(2, 6, 4, 5), doubles(2, 3, 7, 5))
        assert (query.size(1), key.size(1), query.size(-1)) == (6, 3, key.size(-1)), name
        assert isinstance(scale, float)


def test_additive_has_no_factorisation_and_neither_has_a_score_that_writes_only_forward():
    assert trained("additive").factor(doubles(1, 1, 2, 5), doubles(1, 1, 3, 5)) is None
    assert Score().factor(doubles(1, 1, 2, 5), doubles(1, 1, 3, 5)) is None


@pytest.mark.parametrize("name", SCORES)
def test_gradients_of_a_score_equal_finite_differences(name):
    score = trained(name, 3)
    query, key = doubles(1, 2, 2, 3).requires_grad_(), doubles(1, 2, 4, 3).requires_grad_()
    # gradcheck moves the parameters in place, so they count although `score` reads them itself.
    assert gradcheck(lambda query, key, *_: score(query, key), (query, key, *score.parameters()))


@pytest.mark.parametrize("name", FACTORED)
def test_gradients_of_a_factorisation_equal_finite_differences(name):
    score = trained(name, 3)
    query, key = doubles(1, 2, 2, 3).requires_grad_(), doubles(1, 2, 4, 3).requires_grad_()
    assert gradcheck(lambda query, key, *_: score.factor(query, key)[:2], (query, key, *score.parameters()))


def test_softmax_over_the_gaussian_kernel_is_nadaraya_watson_regression():
    at, seen, heights, sigma = doubles(4), doubles(7), doubles(7), 0.7
    weights = GaussianKernel(sigma).double()(at.view(1, 1, 4, 1), seen.view(1, 1, 7, 1)).softmax(-1)
    estimates = (weights.view(4, 7) @ heights).tolist()
    for x, estimate in zip(at.tolist(), estimates, strict=True):
        kernel = [math.exp(-(((x - s) / sigma) ** 2) / 2) for s in seen.tolist()]
        assert estimate == pytest.approx(dot(kernel, heights.tolist()) / sum(kernel), abs=1e-6)


def test_the_gaussian_kernel_sees_only_differences():
    score, query, key, shift = trained("gaussian"), doubles(2, 1, 4, 5), doubles(2, 1, 7, 5), doubles(5)
    assert_close(score(query + shift, key + shift), score(query, key), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [4, 16])
def test_the_kernel_of_a_block_begins_as_sharp_as_the_scaled_dot_product(width):
    query = doubles(2, 3, 4, width)
    factored = make_score("gaussian", width).double().factor(query, query)
    assert_close(factored.query[..., :width], query / width**0.5, rtol=1e-6, atol=0)


def test_the_cosine_is_bounded_by_the_inverse_temperature_and_blind_to_length():
    score, query, key = Cosine(temperature=0.2).double(), doubles(2, 1, 4, 5), doubles(2, 1, 7, 5)
    assert_close(score(3 * query, 0.1 * key), score(query, key), rtol=0, atol=1e-9)
    assert_close(score(query, query).diagonal(dim1=-2, dim2=-1), torch.full((2, 1, 4), 5.0).double())


@pytest.mark.parametrize("make", [lambda: Cosine(0.3), lambda: GaussianKernel(1.3)])
def test_a_zero_vector_has_finite_scores_and_gradients(make):
    score = make()
    query, key = torch.zeros(1, 1, 2, 5, requires_grad=True), torch.zeros(1, 1, 3, 5, requires_grad=True)
    for result in (score(query, key), score.factor(query, key).query, score.factor(query, key).key):
        result.sum().backward()
        assert result.isfinite().all() and query.grad.isfinite().all() and key.grad.isfinite().all()


@pytest.mark.parametrize(("query_width", "key_width"), [(5, 5), (7, 3), (3, 7)])
def test_fresh_bilinear_scores_have_unit_variance(query_width, key_width):
    # Of independent features with unit variance the score has the sum of the squares of W as variance.
    assert_close(Bilinear(query_width, key_width).weight.square().sum(), torch.tensor(1.0))


@pytest.mark.parametrize("sigma", [1.0, 1.3])
def test_the_price_of_a_key_in_the_gaussian_kernel_survives_bfloat16(sigma):
    score = GaussianKernel(sigma)
    query = torch.zeros(1, 1, 1, 6, dtype=torch.bfloat16)  # leaves the price alone
    key = (8 * torch.randn(1, 1, 50, 6)).bfloat16()
    factored = score.factor(query, key)
    assert factored.query.dtype == factored.key.dtype == torch.bfloat16
    price = factored.query.double() @ factored.key.double().mT
    assert_close(price, score.double()(query.double(), key.double()), rtol=2**-15, atol=0)
