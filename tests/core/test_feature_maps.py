"""Attention over feature maps against the formulas of the papers, written out in float64."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import max_pool2d
from torch.testing import assert_close

from transformer_core import FeatureMapAttention, WordRegionAttention, make_score, padding_mask
from transformer_core.score import ScoreName

SIZES = [(1, 1), (3, 5), (7, 2), (6, 6)]


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def trained(channels: int = 16, **options) -> FeatureMapAttention:
    layer = FeatureMapAttention(channels, **options).double()
    nn.init.constant_(layer.gain, 0.7)
    return layer


def mixed(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution is a matrix at each place: (batch, channels, places)."""
    return torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], x.flatten(2))


# Places among themselves.


@pytest.mark.parametrize("size", SIZES)
def test_self_attention_over_a_map_is_the_formula_of_the_paper(size):
    layer, x = trained(), doubles(2, 16, *size)
    f, g, h = mixed(layer.key, x), mixed(layer.query, x), mixed(layer.value, x)
    s = torch.einsum("bci,bcj->bij", f, g)
    beta = s.exp() / s.exp().sum(1, keepdim=True)  # how much place j attends to place i
    o = mixed(layer.output, torch.einsum("bij,bci->bcj", beta, h))
    expected = 0.7 * o.view_as(x) + x
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert_close(layer.weights(x), beta.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
def test_keys_and_values_may_be_the_maxima_of_squares(size):
    layer, x = trained(pool=2), doubles(2, 16, *size)
    f, h = (max_pool2d(conv(x), 2, ceil_mode=True).flatten(2) for conv in (layer.key, layer.value))
    beta = (mixed(layer.query, x).mT @ f).softmax(-1)
    expected = x + 0.7 * mixed(layer.output, h @ beta.mT).view_as(x)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_sizes_of_queries_keys_and_values_are_those_of_the_published_code():
    layer = FeatureMapAttention(64)
    shapes = {name: tuple(weight.shape) for name, weight in layer.named_parameters()}
    assert shapes == {
        "query.weight": (8, 64, 1, 1),
        "key.weight": (8, 64, 1, 1),
        "value.weight": (32, 64, 1, 1),
        "output.weight": (64, 32, 1, 1),
        "gain": (),
    }


def test_a_fresh_layer_changes_nothing_and_learns_its_gain_first():
    layer, x = FeatureMapAttention(16), torch.randn(2, 16, 3, 5)
    out = layer(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert layer.gain.grad != 0 and not layer.query.weight.grad.any()


def test_places_that_change_places_take_their_features_with_them():
    layer, x = trained(), doubles(2, 16, 3, 5)
    order = torch.randperm(15)

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    assert_close(layer(shuffled(x)), shuffled(layer(x)), rtol=0, atol=1e-12)
    assert (layer(shuffled(x)) - layer(x)).abs().max() > 0.1


def test_each_place_sees_the_farthest():
    layer, x = trained(), doubles(1, 16, 4, 7).requires_grad_()
    layer(x)[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, -1, -1].any()


@pytest.mark.parametrize("pool", [1, 2])
def test_gradients_of_self_attention_over_a_map_equal_finite_differences(pool):
    layer = trained(4, key_dim=2, value_dim=3, pool=pool)
    assert gradcheck(lambda x, *_: layer(x), (doubles(2, 4, 2, 3).requires_grad_(), *layer.parameters()))


@pytest.mark.parametrize("name", get_args(ScoreName))
def test_any_score_compares_places_and_words(name: ScoreName):
    layer, x = trained(score=make_score(name, 2)), doubles(2, 16, 3, 5)
    expected = x + 0.7 * mixed(layer.output, mixed(layer.value, x) @ layer.weights(x).mT).view_as(x)
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
    reader = WordRegionAttention(16, 6, score=make_score(name, 16)).double()
    words = doubles(2, 4, 6)
    expected = torch.einsum("bthw,btc->bchw", reader.weights(x, words), words @ reader.word.weight.T)
    assert_close(reader(x, words), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "key_dim=0 of 4 channels leaves nothing"),
        ({"channels": 16, "value_dim": 0}, "value_dim=0 of 16 channels leaves nothing"),
        ({"channels": 16, "pool": 0}, "pool=0 of 16 channels leaves nothing"),
    ],
)
def test_a_layer_of_no_size_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureMapAttention(**options)


# Regions and words.


@pytest.mark.parametrize("size", SIZES)
def test_the_word_context_of_a_region_is_the_formula_of_the_paper(size):
    layer, h, e = WordRegionAttention(7, 6).double(), doubles(3, 7, *size), doubles(3, 5, 6)
    lengths = [5, 2, 4]
    found = layer(h, e, mask=padding_mask(torch.tensor(lengths), 5))
    weights = layer.weights(h, e, mask=padding_mask(torch.tensor(lengths), 5))
    for b, length in enumerate(lengths):
        projected = [layer.word.weight @ word for word in e[b, :length]]
        for row in range(size[0]):
            for column in range(size[1]):
                s = torch.stack([h[b, :, row, column] @ word for word in projected])
                beta = s.exp() / s.exp().sum()
                context = sum(share * word for share, word in zip(beta, projected, strict=True))
                assert_close(found[b, :, row, column], context, rtol=0, atol=1e-12)
                assert_close(weights[b, :length, row, column], beta, rtol=0, atol=1e-12)
    assert not weights[1, 2:].any()


def test_padding_words_change_nothing_and_an_inverted_mask_would_be_noticed():
    layer, regions, words = WordRegionAttention(8, 6).double(), doubles(2, 8, 3, 4), doubles(2, 5, 6)
    mask = padding_mask(torch.tensor([3, 5]), 5)
    other = torch.where(mask[:, 0, 0, :, None], words, 50.0)
    assert_close(layer(regions, other, mask=mask), layer(regions, words, mask=mask), rtol=0, atol=0)
    assert (layer(regions, other, mask=~mask) - layer(regions, words, mask=~mask)).abs().max() > 1
    longer = torch.cat([words, doubles(2, 3, 6)], 1)
    mask_of_longer = padding_mask(torch.tensor([3, 5]), 8)
    expected = layer(regions, words, mask=mask)
    assert_close(layer(regions, longer, mask=mask_of_longer), expected, rtol=0, atol=1e-12)


def test_a_caption_without_words_gives_zeros_and_finite_gradients():
    layer, regions, words = WordRegionAttention(8, 6).double(), doubles(2, 8, 3, 4).requires_grad_(), doubles(2, 5, 6)
    context = layer(regions, words, mask=padding_mask(torch.tensor([0, 4]), 5))
    context.square().sum().backward()
    assert not context[0].any() and context[1].any()
    assert regions.grad.isfinite().all() and not regions.grad[0].any() and regions.grad[1].any()
    assert layer.word.weight.grad.isfinite().all()
    assert not layer(regions, words[:, :0]).any()


def test_gradients_of_the_word_context_equal_finite_differences():
    layer, mask = WordRegionAttention(3, 4).double(), padding_mask(torch.tensor([2, 3]), 3)
    inputs = doubles(2, 3, 2, 2).requires_grad_(), doubles(2, 3, 4).requires_grad_(), *layer.parameters()
    assert gradcheck(lambda regions, words, *_: layer(regions, words, mask=mask), inputs)
