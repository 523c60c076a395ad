import gc
import weakref
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import (
    BlockConfig,
    CachedState,
    Decoder,
    DecoderBlock,
    SearchConfig,
    TokenEmbedding,
    padding_mask,
    search,
)
from transformer_core.linear import Linear
from transformer_core.multihead import record_attention
from transformer_core.position import PositionName
from transformer_core.score import ScoreName
from transformer_core.state import replayable

SCORES, POSITIONS = get_args(ScoreName), get_args(PositionName)
NAMES = {
    "self_attn.in_proj_": "self_attention.input.",
    "self_attn.out_proj": "self_attention.output",
    "norm1": "self_attention_branch.norm",
    "multihead_attn.in_proj_": "cross_attention.input.",
    "multihead_attn.out_proj": "cross_attention.output",
    "norm2": "cross_attention_branch.norm",
    "linear1": "feed_forward.wide",
    "linear2": "feed_forward.narrow",
    "norm3": "feed_forward_branch.norm",
    "layers.": "blocks.",
}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LENS = torch.tensor([5, 2, 4])


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def renamed(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `torch.nn.TransformerDecoder` to ours."""
    for theirs, ours in NAMES.items():
        named = {name.replace(theirs, ours): value for name, value in named.items()}
    return named


def config(**options) -> BlockConfig:
    return BlockConfig(**{"dim": 12, "num_heads": 3, "hidden_dim": 17, "dropout": 0.0, **options})


# Against torch.


def check_against_torch(ours: nn.Module, theirs: nn.Module, padded: bool) -> None:
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours.load_state_dict(renamed(theirs.state_dict()))
    x, states, probe = doubles(3, 7, 12).requires_grad_(), doubles(3, 5, 12).requires_grad_(), doubles(3, 7, 12)
    x_too, states_too = (leaf.detach().clone().requires_grad_() for leaf in (x, states))
    padding = torch.arange(5) >= LENS[:, None] if padded else None
    ahead = torch.ones(7, 7, dtype=torch.bool).triu(1)
    expected = theirs(x, states, tgt_mask=ahead, memory_key_padding_mask=padding)
    mask = padding_mask(LENS, 5) if padded else None
    if isinstance(ours, Decoder):
        out = ours(x_too, ours.read(states_too, mask))
    else:
        out = ours(x_too, ours.cross_attention.keys_values(states_too), mask)
    assert_close(out, expected, rtol=0, atol=1e-10)
    (expected * probe).sum().backward()
    (out * probe).sum().backward()
    assert_close(x_too.grad, x.grad, rtol=0, atol=1e-10)
    assert_close(states_too.grad, states.grad, rtol=0, atol=1e-10)
    grads = renamed({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, grads[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_decoder_block_equals_torch(activation, order, padded):
    theirs = nn.TransformerDecoderLayer(
        12, 3, 17, 0.0, activation, batch_first=True, norm_first=order == "pre", dtype=torch.float64
    )
    check_against_torch(DecoderBlock(config(activation=activation, order=order)).double(), theirs, padded)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_decoder_equals_torch(order):
    layer = nn.TransformerDecoderLayer(12, 3, 17, 0.0, batch_first=True, norm_first=order == "pre")
    theirs = nn.TransformerDecoder(layer, 3, nn.LayerNorm(12) if order == "pre" else None).double()
    check_against_torch(Decoder(config(order=order), depth=3).double(), theirs, padded=True)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_decoder_without_memory_is_a_causal_encoder_of_torch(order):
    layer = nn.TransformerEncoderLayer(12, 3, 17, 0.0, batch_first=True, norm_first=order == "pre")
    norm = nn.LayerNorm(12) if order == "pre" else None
    theirs = nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False).double()
    ours = Decoder(config(order=order), 3, cross=False).double()
    names = {"self_attn.out_proj.": "self_attention.output.", "norm2.": "feed_forward_branch.norm."} | NAMES
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    given = theirs.state_dict()
    for old, new in names.items():
        given = {name.replace(old, new): value for name, value in given.items()}
    ours.load_state_dict(given)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    hidden = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    assert_close(ours(x), theirs(x, hidden, is_causal=True), rtol=0, atol=1e-10)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "relative"])
def test_a_language_model_is_searched_as_it_computes_whole_sequences(beams, position):
    block = config(position=position)
    model, embedding = Decoder(block, 2, cross=False).double().eval(), TokenEmbedding(9, block).double().eval()
    output = Linear(12, 9).double()
    nothing = model.read(torch.zeros(2, 0, 12, dtype=torch.float64))
    state = CachedState(model, embedding, output, nothing, beams=beams, capacity=9)
    limits = torch.tensor([6, 4])
    found = search(state, SearchConfig(beams=beams), max_lengths=limits, bos_id=1, eos_id=2)
    for hypotheses, limit in zip(found, limits.tolist(), strict=True):
        ids = [1, *hypotheses[0].ids]
        log_probs = output(model(embedding(torch.tensor([ids])))).log_softmax(-1)[0]
        following = [*ids[1:], 2]
        expected = sum(log_probs[at, id].item() for at, id in enumerate(following))
        assert hypotheses[0].log_probability == pytest.approx(expected, abs=1e-9) and len(ids) - 1 <= limit


def test_a_decoder_that_wants_a_memory_says_so(decoder):
    with pytest.raises(ValueError, match="there is no memory to look at"):
        decoder(torch.randn(2, 3, 32))


# The future.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("training", [False, True])
def test_a_change_in_the_future_changes_nothing_in_the_past(score, position, training):
    chosen = config(
        score=score, position=position, num_kv_heads=1, dropout=0.2, attention_dropout=0.2, hidden_dropout=0.2
    )
    model = Decoder(chosen, depth=2).double().train(training)
    x, memory = doubles(3, 7, 12), model.read(doubles(3, 5, 12), padding_mask(LENS, 5))
    changed = x.clone()
    changed[:, 4:] = 9 * doubles(3, 3, 12)
    outs = []
    for given in (x, changed):
        torch.manual_seed(5)  # the same features and weights are dropped
        outs.append(model(given, memory))
    assert_close(outs[1][:, :4], outs[0][:, :4], rtol=0, atol=1e-12)
    assert not torch.isclose(outs[1][:, 4:], outs[0][:, 4:]).all(-1).any()


@pytest.mark.parametrize("score", SCORES)
def test_no_gradient_flows_from_the_past_to_the_future(score):
    model = Decoder(config(score=score, position="relative"), depth=2).double()
    x, memory, probe = doubles(3, 7, 12).requires_grad_(), model.read(doubles(3, 5, 12)), doubles(12)
    for at in range(7):
        (grad,) = torch.autograd.grad((model(x, memory)[:, at] @ probe).sum(), x)
        assert not grad[:, at + 1 :].any() and grad[:, : at + 1].any(-1).all()


def test_relative_positions_spend_all_buckets_on_the_past():
    # Over 200 positions every bucket of the past is in use; with buckets for a future, half would lie idle.
    model = Decoder(config(position="relative"), depth=1)
    out = model(torch.randn(1, 200, 12), model.read(torch.randn(1, 5, 12)))
    (grad,) = torch.autograd.grad((out @ torch.randn(12)).sum(), model.blocks[0].self_attention.position.weight)
    assert grad.any(-1).all()


def test_cross_attention_is_not_causal():
    model, x, states = Decoder(config(), depth=1).double(), doubles(1, 2, 12), doubles(1, 5, 12).requires_grad_()
    (grad,) = torch.autograd.grad((model(x, model.read(states))[:, 0] @ doubles(12)).sum(), states)
    assert grad.any(-1).all()


# Padding.


@pytest.mark.parametrize("score", SCORES)
def test_more_padding_on_either_side_changes_nothing_at_the_real_positions(score):
    model = Decoder(config(score=score, position="rotary"), depth=2).double()
    x, states = doubles(3, 7, 12), doubles(3, 5, 12)
    longer_x, longer_states = (torch.cat([short, 9 * doubles(3, 4, 12)], 1) for short in (x, states))
    out = model(x, model.read(states, padding_mask(LENS, 5)))
    longer = model(longer_x, model.read(longer_states, padding_mask(LENS, 9)))
    assert_close(longer[:, :7], out, rtol=0, atol=1e-10)
    for i, length in enumerate(LENS.tolist()):
        alone = model(x[i : i + 1], model.read(states[i : i + 1, :length]))
        assert_close(alone[0], out[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("polarity", ["right", "inverted", "absent"])
def test_only_the_right_mask_hides_the_padding_of_the_source(polarity):
    model, x, states, mask = (
        Decoder(config(), depth=2).double(),
        doubles(3, 7, 12),
        doubles(3, 5, 12),
        padding_mask(LENS, 5),
    )
    given = {"right": mask, "inverted": ~mask, "absent": None}[polarity]
    changed = states.masked_fill(~mask[:, 0, 0, :, None], 5.0)
    before, after = model(x, model.read(states, given)), model(x, model.read(changed, given))
    unchanged = torch.isclose(before, after).all(-1)[1:].flatten().tolist()
    assert all(unchanged) if polarity == "right" else not any(unchanged)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_source_is_finite_and_disturbs_nobody(score, dtype):
    model = Decoder(config(score=score), depth=2).to(dtype)
    x, states = torch.randn(3, 7, 12, dtype=dtype), torch.randn(3, 5, 12, dtype=dtype)
    out = model(x, model.read(states, padding_mask(torch.tensor([4, 0, 5]), 5)))
    (out @ torch.randn(12, dtype=dtype)).sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert_close(out[2], model(x[2:], model.read(states[2:]))[0])


# Step by step.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("order", ["pre", "post"])
def test_decoding_in_pieces_equals_decoding_at_once(score, position, order):
    chosen = config(dim=24, num_heads=6, num_kv_heads=2, score=score, position=position, order=order)
    model, embedding = Decoder(chosen, depth=2).double(), TokenEmbedding(31, chosen).double()
    ids, memory = torch.randint(31, (3, 7)), model.read(doubles(3, 5, 24), padding_mask(LENS, 5))
    whole = model(embedding(ids), memory)
    for pieces in [(1,) * 7, (4, 3), (2, 1, 4), (7,)]:
        cache, outs = model.new_cache(memory, capacity=8), []
        for piece in ids.split(pieces, 1):
            outs.append(model(embedding(piece, offset=cache.length), memory, cache))
        assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-10)
        assert cache.length == 7


@pytest.mark.parametrize("position", POSITIONS)
def test_decoding_without_what_came_before_would_be_noticed(position):
    model, embedding = Decoder(config(position=position), depth=2), TokenEmbedding(31, config(position=position))
    ids, memory = torch.randint(31, (3, 7)), model.read(torch.randn(3, 5, 12))
    whole = model(embedding(ids), memory)
    forgetful = model(embedding(ids[:, 3:], offset=3), memory, model.new_cache(memory, capacity=7))
    assert not torch.isclose(forgetful, whole[:, 3:]).all(-1).any()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", POSITIONS)
def test_under_bfloat16_autocast_it_follows_float32(score, position):
    model = Decoder(config(score=score, position=position, num_kv_heads=1), depth=2)
    x, states, probe, mask = torch.randn(3, 7, 12), torch.randn(3, 5, 12), torch.randn(12), padding_mask(LENS, 5)

    def run() -> list[Tensor]:
        out = model(x, model.read(states, mask))
        return [out, *torch.autograd.grad((out @ probe).sum(), list(model.parameters()), allow_unused=True)]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run()
        memory = model.read(states, mask)
        cache = model.new_cache(memory, capacity=7)
        steps = [model(piece, memory, cache) for piece in x.split((1, 2, 4), 1)]
    for other in (narrow[0], torch.cat(steps, 1)):
        assert ((other - expected[0]).norm() / expected[0].norm()).item() < 0.1
    grads, expected_grads = (torch.cat([g.flatten() for g in made[1:] if g is not None]) for made in (narrow, expected))
    assert grads.dtype == torch.float32
    bound = 0.5 if score == "cosine" else 0.1  # a temperature of 0.1 multiplies every rounding by ten
    assert ((grads - expected_grads).norm() / expected_grads.norm()).item() < bound


def test_two_decodings_of_one_memory_do_not_meet(decoder):
    memory = decoder.read(torch.randn(2, 5, 32))
    left, right = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    caches = [decoder.new_cache(memory, capacity=4) for _ in range(2)]
    for at in range(4):
        outs = [decoder(x[:, at : at + 1], memory, cache) for x, cache in zip((left, right), caches, strict=True)]
    assert_close(outs[0][:, 0], decoder(left, memory)[:, -1])
    assert_close(outs[1][:, 0], decoder(right, memory)[:, -1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_memory_serves_one_search_after_another(decoder, device):
    memory = decoder.to(device).read(torch.randn(20, 16, 32, device=device))
    steps = memory.for_steps()
    for pair, copy in zip(memory.keys_values, steps.keys_values, strict=True):
        assert all(one is not other for one, other in zip(pair, copy, strict=True))
    if device == "cpu":
        before = [each.clone() for pair in memory.keys_values for each in pair]
        steps.keep(torch.tensor([3, 1]))
        assert all(map(torch.equal, before, [each for pair in memory.keys_values for each in pair]))


def test_a_state_for_other_rows_than_those_of_the_search_says_so(decoder):
    embedding = TokenEmbedding(9, BlockConfig(dim=32, num_heads=2))
    state = CachedState(decoder, embedding, Linear(32, 9), decoder.read(torch.randn(2, 5, 32)), beams=1, capacity=9)
    with pytest.raises(ValueError, match="10 tokens for 2 sentences of beams=1: .* rows_per_sentence"):
        search(state, SearchConfig(beams=5), max_lengths=torch.tensor([3, 3]), bos_id=1, eos_id=2)


def test_more_positions_than_the_capacity_are_refused(decoder):
    memory = decoder.read(torch.randn(2, 5, 32))
    cache = decoder.new_cache(memory, capacity=3)
    decoder(torch.randn(2, 3, 32), memory, cache)
    with pytest.raises(ValueError, match="position 4 is past the capacity of the cache, 3"):
        decoder(torch.randn(2, 1, 32), memory, cache)


def test_the_cache_takes_the_type_of_the_memory(decoder):
    memory = decoder.bfloat16().read(torch.randn(2, 5, 32, dtype=torch.bfloat16))
    cache = decoder.new_cache(memory, capacity=3, beams=4)
    assert decoder(torch.randn(8, 1, 32, dtype=torch.bfloat16), memory, cache).dtype == torch.bfloat16
    assert cache[0].key.dtype == torch.bfloat16 and cache[0].key.shape == (2, 2, 16, 8)


# Beams.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("padded", [False, True])
def test_beams_that_share_a_memory_equal_beams_with_a_memory_each(score, padded):
    model = Decoder(config(score=score, num_kv_heads=1, position="relative"), depth=2).double()
    x, memory = doubles(12, 7, 12), model.read(doubles(3, 5, 12), padding_mask(LENS, 5) if padded else None)
    each = memory.keep(torch.arange(3).repeat_interleave(4))
    whole = model(x, each)
    assert_close(model(x, memory), whole, rtol=0, atol=1e-10)
    cache = model.new_cache(memory, capacity=7, beams=4)
    steps = [model(piece, memory, cache) for piece in x.split((1, 2, 4), 1)]
    assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-10)


def test_rows_that_are_no_multiple_of_the_memory_are_refused_instead_of_mixed(decoder):
    memory = decoder.read(torch.randn(2, 5, 32))
    with pytest.raises((ValueError, RuntimeError)):
        decoder(torch.randn(3, 4, 32), memory)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("kept", "rows"), [([0, 1, 2], [1, 1, 3, 2, 4, 4]), ([0, 2], [1, 0, 5, 5]), ([1], [3, 2])])
def test_a_cache_follows_its_beams_and_its_sentences(kept, rows, position):
    model = Decoder(config(position=position), depth=2).double()
    parents = list(range(6))
    for place, sentence in enumerate(kept):
        parents[2 * sentence : 2 * sentence + 2] = rows[2 * place : 2 * place + 2]
    before, after = doubles(6, 3, 12), doubles(len(rows), 2, 12)
    memory = model.read(doubles(3, 5, 12), padding_mask(LENS, 5))
    cache = model.new_cache(memory, capacity=5, beams=2)
    model(before, memory, cache)
    cache.reorder(torch.tensor(parents))
    cache.keep(torch.tensor(kept))
    memory = memory.keep(torch.tensor(kept))
    steps = torch.cat([model(piece, memory, cache) for piece in after.split(1, 1)], 1)
    whole = model(torch.cat([before[rows], after], 1), memory)
    assert_close(steps, whole[:, 3:], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
@torch.no_grad()
def test_a_step_that_can_be_replayed_gives_what_a_plain_one_gives(position, beams, device):
    chosen = config(dim=24, num_heads=6, num_kv_heads=2, position=position)
    model, embedding = Decoder(chosen, depth=2), TokenEmbedding(31, chosen)
    model, embedding, output = (part.double().eval().to(device) for part in (model, embedding, Linear(24, 31)))
    memory = model.read(doubles(3, 5, 24).to(device), padding_mask(LENS.to(device), 5))
    plain, other = (
        CachedState(model, embedding, output, memory, beams=beams, capacity=75, replayed=replayed)
        for replayed in (False, True)
    )
    sentences = 3
    for step in range(75):
        tokens = torch.randint(31, (sentences * beams,), device=device)
        assert_close(other.step(tokens), plain.step(tokens), rtol=0, atol=1e-10)
        parents = torch.randint(beams, (sentences, beams)) + torch.arange(sentences)[:, None] * beams
        for state in (plain, other):
            state.reorder(parents.flatten().to(device))
        if step == 30:
            sentences = 2
            for state in (plain, other):
                state.keep(torch.tensor([2, 1], device=device))
    with pytest.raises(ValueError, match="position 76 is past the capacity of the cache, 75"):
        other.step(tokens)


def test_learned_positions_end_where_a_replayed_search_does():
    chosen = config(position="learned", max_length=4)
    model, embedding = Decoder(chosen, depth=1), TokenEmbedding(31, chosen)
    given = model, embedding, Linear(12, 31), model.read(torch.randn(2, 5, 12))
    state = CachedState(*given, beams=1, capacity=9, replayed=True)
    for _ in range(4):
        state.step(torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="position 5 is past the capacity of the cache, 4"):
        state.step(torch.tensor([5, 6]))


def test_a_state_and_its_memory_are_gone_with_its_last_name(decoder):
    chosen = config(dim=32, num_heads=4)
    given = decoder, TokenEmbedding(31, chosen), Linear(32, 31), decoder.read(torch.randn(2, 5, 32))
    state = CachedState(*given, beams=1, capacity=9, replayed=True)
    state.step(torch.tensor([5, 6]))
    seen = weakref.ref(state)
    gc.disable()
    try:
        del state
        assert seen() is None
    finally:
        gc.enable()


def test_positions_that_are_biases_and_weights_to_be_shown_are_not_replayed():
    assert replayable(Decoder(config(), depth=1))
    assert not replayable(Decoder(config(position="relative"), depth=1))
    shown = Decoder(config(), depth=1)
    with record_attention(shown):
        assert not replayable(shown)
        given = shown, TokenEmbedding(31, config()), Linear(12, 31), shown.read(torch.randn(2, 5, 12))
        with pytest.raises(ValueError, match="replayed=False"):
            CachedState(*given, beams=1, capacity=9, replayed=True)


def test_when_no_sentence_is_left_there_is_nothing_to_decode(decoder):
    memory = decoder.read(torch.randn(2, 5, 32)).keep(torch.tensor([], dtype=torch.int64))
    assert decoder(torch.randn(0, 1, 32), memory).shape == (0, 1, 32)


@torch.no_grad()
def test_without_gradients_too_there_may_be_nothing_to_decode(decoder):
    memory = decoder.read(torch.randn(2, 5, 32)).keep(torch.tensor([], dtype=torch.int64)).for_steps()
    cache = decoder.new_cache(memory, 3, beams=2)
    assert decoder(torch.randn(0, 1, 32), memory, cache).shape == (0, 1, 32)


def test_hypotheses_that_would_see_each_other_are_refused(decoder):
    layer = decoder.blocks[0].self_attention
    memory = decoder.read(torch.randn(2, 5, 32))
    cache = decoder.new_cache(memory, 3, beams=2)[0]
    with pytest.raises(ValueError, match="needs the mask of Cache.grow"):
        layer(torch.randn(4, 1, 32), cache=cache)
    assert cache.length == 0


def test_drop_path_refuses_examples_that_share_a_memory():
    model = Decoder(config(drop_path=0.5), depth=2).train()
    memory = model.read(torch.randn(2, 5, 12))
    with pytest.raises(ValueError, match="4 examples share inputs"):
        for _ in range(20):
            model(torch.randn(4, 3, 12), memory)
