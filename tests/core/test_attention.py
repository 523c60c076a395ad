import math
import sys
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from transformer_core import (
    Additive,
    Bilinear,
    Score,
    attention,
    attention_weights,
    causal_mask,
    make_score,
    masked_softmax,
    padding_mask,
)
from transformer_core.score import ScoreName

SCORES = get_args(ScoreName)
MODULE = sys.modules[attention.__module__]


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def trained(name: ScoreName, width: int = 5) -> Score:
    """A score in float64 whose parameters have left their initial values."""
    score = make_score(name, width).double()
    for parameter in score.parameters():
        nn.init.normal_(parameter, std=0.4)
    return score


def blinding(batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """A random mask in which query 1 of the first example sees nothing, whatever else holds."""
    mask = torch.rand(batch, heads, queries, keys) < 0.6
    mask[0, :, 1] = False
    return mask


# Masks and who may look.


@pytest.mark.parametrize("lens", [[0, 3, 5, 2], [[0, 1, 2], [5, 4, 3], [3, 0, 3], [1, 1, 1]]])
def test_a_padding_mask_is_true_before_the_valid_length(lens):
    mask = padding_mask(torch.tensor(lens), 5)
    per_query = [length if isinstance(length, list) else [length] for length in lens]
    expected = [[[[key < length for key in range(5)] for length in lengths]] for lengths in per_query]
    assert mask.tolist() == expected


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (3, 7)])
def test_a_causal_mask_lets_the_last_query_see_the_last_key(queries, keys):
    expected = [[key <= query + keys - queries for key in range(keys)] for query in range(queries)]
    assert causal_mask(queries, keys).tolist() == expected


def test_more_queries_than_keys_have_no_causal_mask():
    with pytest.raises(ValueError, match="5 queries cannot be the last of 3 keys"):
        causal_mask(5, 3)
    with pytest.raises(ValueError, match="5 queries cannot be the last of 3 keys"):
        attention(doubles(1, 1, 5, 3), doubles(1, 1, 3, 3), doubles(1, 1, 3, 3), score=trained("dot"), causal=True)


def softmax_by_hand(logits: list[float], seen: list[bool]) -> list[float]:
    total = sum(math.exp(x) for x, s in zip(logits, seen, strict=True) if s)
    return [math.exp(x) / total if s else 0.0 for x, s in zip(logits, seen, strict=True)]


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 3, 5)])
@pytest.mark.parametrize("lens", [None, [0, 3, 5, 2], [[0, 1, 2], [5, 4, 3], [3, 0, 3], [1, 1, 1]]])
@pytest.mark.parametrize("masked", [False, True])
def test_masked_softmax_equals_a_loop_over_its_rows(shape, lens, masked):
    logits = doubles(*shape)
    mask = torch.rand(shape) < 0.5 if masked else None
    weights = masked_softmax(logits, mask, valid_lens=None if lens is None else torch.tensor(lens))
    for *row, query in product(*map(range, shape[:-1])):
        length = 5 if lens is None else lens[row[0]][query] if isinstance(lens[0], list) else lens[row[0]]
        seen = [key < length and (mask is None or mask[*row, query, key].item()) for key in range(5)]
        assert_close(weights[*row, query].tolist(), softmax_by_hand(logits[*row, query].tolist(), seen))


def test_masked_softmax_takes_a_mask_that_broadcasts():
    logits, mask = doubles(2, 3, 4, 5), torch.rand(2, 1, 1, 5) < 0.5
    assert_close(masked_softmax(logits, mask), masked_softmax(logits, mask.expand(2, 3, 4, 5)))


def test_valid_lengths_want_logits_of_examples():
    with pytest.raises(ValueError, match=r"logits of \(batch, queries, keys\) or .*, not of \(2, 5\)"):
        masked_softmax(torch.randn(2, 5), valid_lens=torch.tensor([2, 3]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_of_a_row_without_keys_is_zero_forward_and_backward(dtype):
    logits = (20 * doubles(3, 2, 5)).to(dtype).requires_grad_()
    weights = masked_softmax(logits, valid_lens=torch.tensor([0, 5, 2]))
    (weights * torch.arange(5).to(dtype)).sum().backward()
    assert not weights[0].any() and not logits.grad[0].any()
    assert logits.grad.isfinite().all() and logits.grad[1:].any()


def test_gradients_of_masked_softmax_equal_finite_differences():
    mask = blinding(2, 1, 3, 5)
    assert gradcheck(lambda logits: masked_softmax(logits, mask), doubles(2, 2, 3, 5).requires_grad_())


# The definition.


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_weights_are_the_softmax_of_what_each_query_may_see(name, causal):
    score, query, key = trained(name), doubles(2, 4, 3, 5), doubles(2, 2, 7, 5)
    mask, bias = blinding(2, 1, 3, 7), doubles(1, 4, 3, 7)
    weights = attention_weights(query, key, score=score, mask=mask, bias=bias, causal=causal)
    for b, h, i in product(range(2), range(4), range(3)):
        logits = score(query[b, h, i].view(1, 1, 1, 5), key[b, h // 2].view(1, 1, 7, 5)).flatten() + bias[0, h, i]
        seen = [mask[b, 0, i, j].item() and (not causal or j <= i + 4) for j in range(7)]
        assert_close(weights[b, h, i].tolist(), softmax_by_hand(logits.tolist(), seen), rtol=0, atol=1e-12)


def masks(batch: int, heads: int, queries: int, keys: int) -> dict[str, Tensor | None]:
    return {
        "none": None,
        "padding": padding_mask(torch.tensor([2, keys]), keys),
        "lengths": padding_mask(torch.randint(0, keys + 1, (batch, queries)), keys),
        "blind": blinding(batch, heads, queries, keys),
        "shared": blinding(1, 1, queries, keys),
    }


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("mask", masks(2, 4, 3, 7))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_the_mean_of_the_values_by_the_weights(name, mask, biased, causal, kv_heads):
    for queries, keys in [(3, 7), (5, 5), (1, 5)]:
        score = trained(name)
        query, key, value = doubles(2, 4, queries, 5), doubles(2, kv_heads, keys, 5), doubles(2, kv_heads, keys, 3)
        given = {
            "mask": masks(2, 4, queries, keys)[mask] if queries > 1 else masks(2, 4, 2, keys)[mask],
            "bias": doubles(1, 4, queries, keys) if biased else None,
            "causal": causal,
        }
        if queries == 1 and given["mask"] is not None:
            given["mask"] = given["mask"][:, :, -1:]
        weights = attention_weights(query, key, score=score, **given)
        expected = weights @ value.repeat_interleave(4 // kv_heads, 1)
        assert_close(attention(query, key, value, score=score, **given), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_width", [2, 5, 8, 13])
@pytest.mark.parametrize("name", SCORES)
def test_values_may_be_of_any_width(name, value_width):
    score, query, key, value = trained(name), doubles(2, 3, 4, 5), doubles(2, 3, 7, 5), doubles(2, 3, 7, value_width)
    assert_close(attention(query, key, value, score=score), attention_weights(query, key, score=score) @ value)


@pytest.mark.parametrize("make", [Additive, Bilinear])
def test_attention_takes_queries_and_keys_of_different_widths(make):
    score, query, key, value = make(3, 6).double(), doubles(2, 4, 3, 3), doubles(2, 2, 7, 6), doubles(2, 2, 7, 5)
    expected = attention_weights(query, key, score=score) @ value.repeat_interleave(2, 1)
    assert_close(attention(query, key, value, score=score), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_attention_equal_finite_differences(name, causal):
    score, mask = trained(name, 2), blinding(1, 2, 3, 4)
    mask[:, :, 1] = False
    bias = doubles(1, 2, 3, 4).requires_grad_()
    query, key, value = (doubles(1, heads, n, 2).requires_grad_() for heads, n in [(2, 3), (1, 4), (1, 4)])

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        masked = attention(query, key, value, score=score, mask=mask, bias=bias, causal=causal)
        return masked, attention(query, key, value, score=score, causal=causal)

    # gradcheck moves the parameters in place, so they count although `score` reads them itself.
    assert gradcheck(run, (query, key, value, bias, *score.parameters()))


@pytest.mark.parametrize("name", SCORES)
def test_fewer_heads_of_keys_are_as_good_as_the_same_heads_repeated(name):
    score, query, key, value = trained(name), doubles(2, 6, 4, 5), doubles(2, 2, 7, 5), doubles(2, 2, 7, 5)
    key_grown, value_grown = (torch.cat([x[:, :1]] * 3 + [x[:, 1:]] * 3, 1) for x in (key, value))
    grouped = attention(query, key, value, score=score, causal=True)
    assert_close(grouped, attention(query, key_grown, value_grown, score=score, causal=True), rtol=0, atol=1e-12)


def test_a_score_that_writes_only_forward_is_enough():
    class Manhattan(Score):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return -torch.cdist(query, key, p=1)

    query, key, value = doubles(2, 4, 3, 5), doubles(2, 2, 7, 5), doubles(2, 2, 7, 4)
    weights = (-(query[..., :, None, :] - key.repeat_interleave(2, 1)[..., None, :, :]).abs().sum(-1)).softmax(-1)
    expected = weights @ value.repeat_interleave(2, 1)
    assert_close(attention(query, key, value, score=Manhattan()), expected, rtol=0, atol=1e-12)


# What must not be seen, is not seen.


def check_that_nothing_passes(name: ScoreName, mask: Tensor, hidden: Tensor, causal: bool = False) -> None:
    """Change keys and values at the `hidden` positions of each example; nothing may come of it."""
    score, query, key, value = trained(name), doubles(3, 2, 6, 5), doubles(3, 2, 6, 5), doubles(3, 2, 6, 5)
    before = attention(query, key, value, score=score, mask=mask, causal=causal)
    moved = hidden[:, None, :, None]
    key, value = key.masked_fill(moved, 50.0), value.masked_fill(moved, -50.0)
    after = attention(query, key, value, score=score, mask=mask, causal=causal)
    assert_close(after, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("causal", [False, True])
def test_what_a_mask_hides_changes_nothing_and_an_inverted_mask_would_be_noticed(name, causal):
    valid_lens = torch.tensor([6, 2, 4])
    hidden = torch.arange(6) >= valid_lens[:, None]
    check_that_nothing_passes(name, padding_mask(valid_lens, 6), hidden, causal)
    with pytest.raises(AssertionError):
        check_that_nothing_passes(name, ~padding_mask(valid_lens, 6), hidden, causal)
    with pytest.raises(AssertionError):
        check_that_nothing_passes(name, torch.ones(3, 1, 1, 6, dtype=torch.bool), hidden, causal)


@pytest.mark.parametrize("name", SCORES)
def test_more_padding_changes_nothing(name):
    score, query, key, value = trained(name), doubles(2, 2, 3, 5), doubles(2, 2, 7, 5), doubles(2, 2, 7, 5)
    lens = torch.tensor([7, 4])
    longer_key, longer_value = (torch.cat([x, 9 * doubles(2, 2, 4, 5)], 2) for x in (key, value))
    short = attention(query, key, value, score=score, mask=padding_mask(lens, 7))
    long = attention(query, longer_key, longer_value, score=score, mask=padding_mask(lens, 11))
    assert_close(long, short, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_a_blind_query_gets_zeros_and_finite_gradients(name, dtype, causal):
    score = trained(name).to(dtype)
    query, key, value = (4 * doubles(3, heads, n, 5).to(dtype) for heads, n in [(4, 3), (2, 7), (2, 7)])
    leaves = [x.requires_grad_() for x in (query, key, value)]
    lens = torch.tensor([0, 7, 3])
    mask = padding_mask(lens, 7).expand(3, 1, 3, 7).clone()
    mask[1, :, 1] = False
    out = attention(*leaves, score=score, mask=mask, causal=causal)
    out.square().sum().backward()
    assert out.dtype == dtype and out.isfinite().all()
    assert not out[0].any() and not out[1, :, 1].any() and out[1, :, 0].any() and out[2].any()
    for leaf in leaves:
        assert leaf.grad.isfinite().all() and not leaf.grad[0].any() and leaf.grad[1:].any()
    assert not query.grad[1, :, 1].any()
    assert all(parameter.grad.isfinite().all() for parameter in score.parameters())


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blind_example_does_not_disturb_the_others(name, dtype):
    score = trained(name).to(dtype)
    query, key, value = (doubles(3, 2, n, 5).to(dtype) for n in (3, 7, 7))
    together = attention(query, key, value, score=score, mask=padding_mask(torch.tensor([4, 0, 7]), 7))
    for i, length in ((0, 4), (2, 7)):
        one = slice(i, i + 1)
        alone = attention(query[one], key[one], value[one], score=score, mask=padding_mask(torch.tensor([length]), 7))
        assert_close(together[one], alone)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("biased", [False, True])
def test_without_any_keys_there_are_zeros(name, biased):
    bias = doubles(1, 2, 3, 0) if biased else None
    mask = torch.ones(2, 1, 1, 0, dtype=torch.bool)
    for seen in (None, mask):
        query, key, value = doubles(2, 2, 3, 5).requires_grad_(), doubles(2, 2, 0, 5), doubles(2, 2, 0, 4)
        out = attention(query, key, value, score=trained(name), mask=seen, bias=bias)
        out.sum().backward()
        assert_close(out, torch.zeros(2, 2, 3, 4).double())
        assert query.grad is None or not query.grad.any()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_follows_float64_forward_and_backward(name, causal):
    score, mask, probe = trained(name).bfloat16().double(), blinding(2, 2, 7, 7), doubles(2, 2, 7, 5).bfloat16()
    leaves = [doubles(*shape).bfloat16().requires_grad_() for shape in [(2, 2, 7, 5)] * 3 + [(1, 2, 7, 7)]]

    def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> list[Tensor]:
        masked = attention(query, key, value, score=score, mask=mask, bias=bias, causal=causal)
        out = masked + attention(query, key, value, score=score, causal=causal)
        return [out, *torch.autograd.grad((out * probe).sum(), [query, key, value, bias])]

    expected = run(*(leaf.detach().double().requires_grad_() for leaf in leaves))
    score = score.bfloat16()
    for narrow, wide in zip(run(*leaves), expected, strict=True):
        assert narrow.dtype == torch.bfloat16
        assert ((narrow - wide).norm() / wide.norm()).item() < 0.03


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_numbers_are_not_taken_for_a_mask(name, dtype):
    score, query, key, value = trained(name), doubles(2, 2, 3, 5), doubles(2, 2, 7, 5), doubles(2, 2, 7, 5)
    mask = padding_mask(torch.tensor([7, 4]), 7).to(dtype)
    for look in (lambda: attention(query, key, value, score=score, mask=mask), lambda: masked_softmax(key, mask)):
        with pytest.raises((TypeError, RuntimeError)):
            look()


@pytest.mark.parametrize("name", SCORES)
def test_weights_in_bfloat16_follow_float64(name):
    score, query, key = trained(name, 16), doubles(2, 2, 40, 16).bfloat16(), doubles(2, 2, 50, 16).bfloat16()
    expected = attention_weights(query.double(), key.double(), score=score)
    weights = attention_weights(query, key, score=score.bfloat16())
    assert_close(weights.double(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_drops_weights_and_scales_up_the_others(name, causal):
    score, query, key = trained(name), doubles(3, 2, 9, 5), doubles(3, 2, 9, 5)
    identity = torch.eye(9, dtype=torch.float64).expand(3, 2, 9, 9)
    weights = attention_weights(query, key, score=score, causal=causal)
    dropped = attention(query, key, identity, score=score, causal=causal, dropout=0.25)
    kept = dropped != 0
    assert_close(dropped, kept * weights / 0.75, rtol=0, atol=1e-12)
    assert 0.65 < (kept.sum() / (weights != 0).sum()).item() < 0.85


@pytest.mark.parametrize("name", ["dot", "additive"])
def test_a_mask_of_two_axes_is_as_good_as_one_of_four(name):
    score, query, key, value = trained(name), doubles(2, 2, 3, 5), doubles(2, 2, 7, 5), doubles(2, 2, 7, 5)
    expected = attention(query, key, value, score=score, causal=True)
    assert_close(attention(query, key, value, score=score, mask=causal_mask(3, 7)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [3, 30])
def test_a_bias_as_low_as_numbers_go_opens_nothing_that_is_hidden(queries):
    query, key, value = (torch.randn(1, 2, queries, 5) for _ in range(3))
    bias = torch.zeros(1, 1, 1, queries)
    bias[..., 0] = torch.finfo(torch.float32).min
    bias = bias.expand(1, 1, queries, queries)
    options = {"score": make_score("scaled_dot", 5), "bias": bias, "causal": True}
    weights = attention_weights(query, key, **options)
    assert_close(weights[:, :, 0, 0], torch.ones(1, 2))
    assert not weights.triu(1).any()
    assert_close(attention(query, key, value, **options), weights @ value)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_keys_of_zeros_have_a_cosine_of_0_in_float16_too(scale):
    query, key, value = (torch.randn(1, 1, 4, 8).half() for _ in range(3))
    expected = attention(query, key * 0, value, score=make_score("cosine", 8).half())
    assert_close(expected, value.mean(-2, keepdim=True).expand_as(value), rtol=0, atol=2e-3)
    assert make_score("cosine", 8).half()(query * scale, key * 0).isfinite().all()


# Memory.


def run_additive() -> tuple[list[Tensor], int]:
    """Output and gradients, and the numbers in the largest tensor that autograd keeps."""
    torch.manual_seed(3)
    score = Additive(5, 3, hidden_dim=11).double()
    inputs = [doubles(2, 4, 13, 5), doubles(2, 2, 7, 3), doubles(2, 2, 7, 6)]
    leaves = [x.requires_grad_() for x in inputs]
    kept: list[int] = []
    with saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = attention(*leaves, score=score, mask=blinding(2, 1, 13, 7))
    return [out, *torch.autograd.grad(out.square().sum(), [*leaves, *score.parameters()])], max(kept)


@pytest.mark.parametrize("rows", [1, 3, 5, 13])
def test_additive_attention_in_chunks_is_bounded_in_memory_and_equal(rows, largest, monkeypatch):
    pairs = 2 * 4 * 13 * 7
    whole, kept = run_additive()
    assert kept >= pairs * 11  # all at once it is much
    monkeypatch.setattr(MODULE, "CHUNK_ELEMENTS", rows * 2 * 4 * 7 * 11)
    with largest:
        parts, kept = run_additive()
    assert pairs <= largest.numbers <= max(rows * 2 * 4 * 7 * 11, pairs)
    assert kept <= pairs or rows == 13
    for part, one in zip(parts, whole, strict=True):
        assert_close(part, one, rtol=0, atol=1e-12)


def test_a_chunk_is_at_least_one_query(monkeypatch):
    expected = run_additive()[0]
    monkeypatch.setattr(MODULE, "CHUNK_ELEMENTS", 1)
    for part, one in zip(run_additive()[0], expected, strict=True):
        assert_close(part, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_attention_weights_of_any_score_are_bounded_in_memory(name, largest, monkeypatch):
    score, query, key = trained(name, 16), doubles(2, 2, 13, 16), doubles(2, 2, 7, 16)
    pairs = 2 * 2 * 13 * 7
    monkeypatch.setattr(MODULE, "CHUNK_ELEMENTS", 3 * pairs)
    with largest, torch.no_grad():
        attention_weights(query, key, score=score)
    assert largest.numbers <= 3 * pairs
