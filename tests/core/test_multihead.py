import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import (
    BlockConfig,
    Encoder,
    KeysValues,
    LayerCache,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    ScaledDotProduct,
    attention,
    attention_weights,
    make_score,
    padding_mask,
    record_attention,
)
from transformer_core.score import ScoreName

SCORES = get_args(ScoreName)
NAMES = {"in_proj_weight": "input.weight", "in_proj_bias": "input.bias", "out_proj.": "output."}
LENS = torch.tensor([7, 3, 5])


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def renamed(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `torch.nn.MultiheadAttention` to ours."""
    for theirs, ours in NAMES.items():
        named = {name.replace(theirs, ours): value for name, value in named.items()}
    return named


@pytest.fixture
def theirs() -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def twin(theirs: nn.MultiheadAttention, **options) -> MultiHeadAttention:
    ours = MultiHeadAttention(12, 3, **options).double()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours


def assert_equal_gradients(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    grads = renamed({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, grads[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention_equals_torch(theirs, causal, padded):
    ours, probe = twin(theirs, causal=causal), doubles(3, 7, 12)
    x = doubles(3, 7, 12).requires_grad_()
    x_too = x.detach().clone().requires_grad_()
    ahead = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    padding = torch.arange(7) >= LENS[:, None] if padded else None
    expected, weights = theirs(x, x, x, attn_mask=ahead, key_padding_mask=padding, average_attn_weights=False)
    with record_attention(ours) as maps:
        out = ours(x_too, mask=padding_mask(LENS, 7) if padded else None)
    assert_close(out, expected, rtol=0, atol=1e-10)
    assert_close(maps[""][0], weights, rtol=0, atol=1e-10)
    (expected * probe).sum().backward()
    (out * probe).sum().backward()
    assert_close(x_too.grad, x.grad, rtol=0, atol=1e-10)
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention_equals_torch(theirs, padded):
    ours, probe = twin(theirs), doubles(3, 4, 12)
    x, source = doubles(3, 4, 12).requires_grad_(), doubles(3, 7, 12).requires_grad_()
    x_too, source_too = (leaf.detach().clone().requires_grad_() for leaf in (x, source))
    padding = torch.arange(7) >= LENS[:, None] if padded else None
    expected, _ = theirs(x, source, source, key_padding_mask=padding)
    out = ours(x_too, ours.keys_values(source_too), mask=padding_mask(LENS, 7) if padded else None)
    assert_close(out, expected, rtol=0, atol=1e-10)
    (expected * probe).sum().backward()
    (out * probe).sum().backward()
    assert_close(x_too.grad, x.grad, rtol=0, atol=1e-10)
    assert_close(source_too.grad, source.grad, rtol=0, atol=1e-10)
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("score", SCORES)
def test_grouped_heads_equal_heads_whose_weights_are_repeated(score):
    grouped = MultiHeadAttention(24, 6, num_kv_heads=2, score=make_score(score, 4), causal=True).double()
    nn.init.normal_(grouped.input.bias)
    whole = MultiHeadAttention(24, 6, score=grouped.score, causal=True).double()

    def repeat(rows: Tensor) -> Tensor:
        query, key, value = rows.split([24, 8, 8])
        return torch.cat([query, *(x.unflatten(0, (2, 4)).repeat_interleave(3, 0).flatten(0, 1) for x in (key, value))])

    whole.input.weight.data, whole.input.bias.data = repeat(grouped.input.weight.data), repeat(grouped.input.bias.data)
    whole.output.load_state_dict(grouped.output.state_dict())
    x = doubles(2, 5, 24)
    assert_close(grouped(x), whole(x), rtol=0, atol=1e-10)
    assert grouped.keys_values(x).key.shape == (2, 2, 5, 4)


def test_the_projections_of_a_fresh_layer_are_each_xavier_uniform():
    layer = MultiHeadAttention(24, 6, num_kv_heads=2)
    for weight in (*layer.input.weight.split([24, 8, 8]), layer.output.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.9 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert not layer.input.bias.any() and not layer.output.bias.any()


def by_hand(layer: MultiHeadAttention, x: Tensor, rate: Tensor, bias: Tensor | float) -> Tensor:
    """Self-attention whose queries and keys are complex numbers, each turned by `rate` times its position."""
    query, key, value = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in layer.input(x).chunk(3, -1))
    angle = torch.arange(x.size(1))[:, None] * rate
    turned = [torch.view_as_complex(part.unflatten(-1, (2, 2))) * torch.exp(1j * angle) for part in (query, key)]
    weights = ((turned[0] @ turned[1].mH).real / 2 + bias).softmax(-1)
    return layer.output((weights @ value).transpose(1, 2).flatten(2))


def test_rotary_self_attention_turns_queries_and_keys_alike():
    layer, x = MultiHeadAttention(12, 3, position=Rotary(4)).double(), doubles(2, 7, 12)
    assert_close(layer(x), by_hand(layer, x, torch.tensor([1.0, 0.01]).double(), 0.0), rtol=0, atol=1e-6)


def test_relative_self_attention_adds_the_bias_to_the_scores():
    layer, x = MultiHeadAttention(12, 3, position=RelativeBias(3, causal=False)).double(), doubles(2, 7, 12)
    nn.init.normal_(layer.position.weight)
    assert_close(layer(x), by_hand(layer, x, torch.zeros(2).double(), layer.position(7, 7)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", [None, Rotary(4), RelativeBias(3, causal=True)])
def test_causal_attention_sees_nothing_of_the_future(score, position, training):
    layer = MultiHeadAttention(12, 3, score=make_score(score, 4), position=position, causal=True, dropout=0.3)
    layer = layer.double().train(training)
    x = doubles(2, 7, 12)
    changed = x.clone()
    changed[:, 4:] = 9 * doubles(2, 3, 12)
    outs = []
    for given in (x, changed):
        torch.manual_seed(5)  # the same weights are dropped
        outs.append(layer(given))
    assert_close(outs[1][:, :4], outs[0][:, :4], rtol=0, atol=1e-12)
    assert not torch.isclose(outs[1][:, 4:], outs[0][:, 4:]).all(-1).any()


def test_attention_that_is_not_causal_would_fail_the_test_of_causality():
    layer, x = MultiHeadAttention(12, 3).double(), doubles(2, 7, 12)
    changed = x.clone()
    changed[:, 4:] += 1
    assert not torch.isclose(layer(changed)[:, :4], layer(x)[:, :4]).all(-1).any()


def test_attention_drops_weights_in_training_only():
    layer, x = MultiHeadAttention(12, 3, dropout=0.5).eval(), torch.randn(2, 7, 12)
    assert_close(layer(x), layer(x), rtol=0, atol=0)
    layer.train()
    assert not torch.isclose(layer(x), layer(x)).all()


# Recording.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("training", [False, True])
def test_recording_changes_no_bit_of_output_and_gradient(score, training):
    config = BlockConfig(dim=12, num_heads=3, hidden_dim=7, score=score, position="relative", attention_dropout=0.2)
    encoder = Encoder(config, depth=2).train(training)
    x, mask = torch.randn(3, 7, 12), padding_mask(LENS, 7)

    def run() -> list[Tensor]:
        torch.manual_seed(2)
        out = encoder(x, mask)
        return [out, *torch.autograd.grad(out.square().sum(), list(encoder.parameters()), allow_unused=True)]

    plain = run()
    with record_attention(encoder) as maps:
        recorded = run()
    for one, other in zip(plain, recorded, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert list(maps) == ["blocks.0.attention", "blocks.1.attention"]
    for (weights,) in maps.values():
        assert weights.shape == (3, 3, 7, 7) and not weights.requires_grad
        assert_close(weights.sum(-1), torch.ones(3, 3, 7))
        assert not weights.masked_select(~mask).any()


def test_recorded_weights_are_those_that_made_the_output():
    layer = MultiHeadAttention(12, 3, position=Rotary(4), causal=True).double()
    x = doubles(2, 5, 12)
    with record_attention(layer) as maps:
        out = layer(x)
    value = layer.keys_values(x).value
    assert_close(layer.output((maps[""][0] @ value).transpose(1, 2).flatten(2)), out, rtol=0, atol=1e-12)


def test_recording_sees_every_call_and_every_attention_of_a_decoder(decoder):
    memory = decoder.read(torch.randn(2, 5, 32))
    cache = decoder.new_cache(memory, capacity=3)
    with record_attention(decoder) as maps:
        for _ in range(3):
            decoder(torch.randn(2, 1, 32), memory, cache)
    assert len(maps) == 6
    assert [tuple(step.shape) for step in maps["blocks.2.self_attention"]] == [(2, 4, 1, n) for n in (1, 2, 3)]
    assert [tuple(step.shape) for step in maps["blocks.2.cross_attention"]] == [(2, 4, 1, 5)] * 3


def test_recording_ends_with_its_block_even_after_an_exception():
    layer, x = MultiHeadAttention(12, 3), torch.randn(2, 5, 12)
    with pytest.raises(KeyError), record_attention(layer) as maps:
        layer(x)
        raise KeyError
    layer(x)
    assert len(maps[""]) == 1


def test_a_recording_inside_another_gives_back_to_it():
    layer, x = MultiHeadAttention(12, 3), torch.randn(2, 5, 12)
    with record_attention(layer) as outer:
        with record_attention(layer) as inner:
            layer(x)
        layer(x)
    assert len(inner[""]) == len(outer[""]) == 1


# Cache.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", [None, Rotary(4), RelativeBias(6, causal=True)])
def test_attention_in_pieces_over_a_cache_equals_attention_at_once(score, position):
    layer = MultiHeadAttention(24, 6, num_kv_heads=2, score=make_score(score, 4), position=position, causal=True)
    layer = layer.double()
    x = doubles(2, 7, 24)
    for pieces in [(1,) * 7, (3, 4), (2, 1, 4), (7,)]:
        cache = LayerCache(layer.keys_values(x), capacity=9)
        out = torch.cat([layer(piece, cache=cache) for piece in x.split(pieces, 1)], 1)
        assert_close(out, layer(x), rtol=0, atol=1e-10)


def test_a_cache_returns_what_was_put_in_and_refuses_more_than_its_capacity():
    like = KeysValues(doubles(2, 3, 5, 4), doubles(2, 3, 5, 4))
    cache, pieces = LayerCache(like, capacity=5), [doubles(2, 3, n, 4) for n in (2, 3)]
    for piece in pieces:
        key, value = cache.append(piece, -piece)
    assert_close(key, torch.cat(pieces, 2))
    assert_close(value, -key)
    with pytest.raises(ValueError, match="position 6 is past the capacity of the cache, 5"):
        cache.append(doubles(2, 3, 1, 4), doubles(2, 3, 1, 4))
    assert cache.length == 5


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2], [2], []])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_cache_keeps_the_sentences_that_are_left(kept, beams):
    first, second = doubles(3, 2, 2 * beams, 4), doubles(len(kept), 2, beams, 4)
    cache = LayerCache(KeysValues(first, first), capacity=4, beams=beams)
    cache.append(first, -first)
    cache.keep(torch.tensor(kept, dtype=torch.int64))
    key, value = cache.append(second, -second)
    assert_close(key, torch.cat([first[kept], second], 2))
    assert_close(value, -key)


# What is refused.


def test_a_memory_and_a_cache_together_are_refused():
    layer, x = MultiHeadAttention(12, 3), torch.randn(2, 5, 12)
    memory = layer.keys_values(x)
    with pytest.raises(ValueError, match="memory .* or cache"):
        layer(x, memory, cache=LayerCache(memory, 5))


def test_a_position_is_not_silently_left_out_towards_a_memory():
    layer, x = MultiHeadAttention(12, 3, position=Rotary(4)), torch.randn(2, 5, 12)
    with pytest.raises(ValueError, match="position"):
        layer(x, layer.keys_values(x))


@pytest.mark.parametrize("keys", [20, 60])
@pytest.mark.parametrize("learning", [False, True])
def test_one_example_of_queries_looks_at_all_memories(keys, learning):
    layer, latents, source = MultiHeadAttention(12, 3), torch.randn(1, 4, 12), torch.randn(3, keys, 12)
    with torch.set_grad_enabled(learning):
        found = layer(latents, layer.keys_values(source))
        assert_close(found, layer(latents.expand(3, -1, -1), layer.keys_values(source)))
        one = layer(latents.expand(3, -1, -1), layer.keys_values(source[:1]))
        assert_close(one[2], layer(latents, layer.keys_values(source[:1]))[0])
        with record_attention(layer) as maps:
            layer(latents, layer.keys_values(source))
        assert maps[""][0].shape == (3, 3, 4, keys)


def test_heads_that_cannot_share_the_features_are_refused():
    with pytest.raises(ValueError, match="dim=12 cannot be split over num_heads=5: .* for example 4"):
        MultiHeadAttention(12, 5)
    with pytest.raises(ValueError, match="num_heads=6 cannot share num_kv_heads=4"):
        MultiHeadAttention(12, 6, num_kv_heads=4)
    query, key = torch.randn(1, 4, 5, 2), torch.randn(1, 3, 5, 2)
    with pytest.raises(ValueError, match="3 heads of keys do not divide 4 heads of queries"):
        attention(query, key, key, score=ScaledDotProduct())


def test_weights_can_be_had_without_the_layer(theirs):
    layer, x, source = twin(theirs), doubles(3, 4, 12), doubles(3, 7, 12)
    query = nn.functional.linear(x, theirs.in_proj_weight[:12], theirs.in_proj_bias[:12])
    query = query.unflatten(-1, (3, 4)).transpose(1, 2)
    _, expected = theirs(x, source, source, average_attn_weights=False)
    weights = attention_weights(query, layer.keys_values(source).key, score=layer.score)
    assert_close(weights, expected, rtol=0, atol=1e-10)
