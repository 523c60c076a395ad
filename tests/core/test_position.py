import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import (
    BlockConfig,
    Encoder,
    GridRotary,
    Learned,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    Sinusoidal,
    TokenEmbedding,
    WindowAttention,
    WindowBias,
    sinusoidal_table,
)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Sinusoidal.


def test_the_sinusoidal_table_is_the_formula_of_the_paper():
    table = sinusoidal_table(50, 6).tolist()
    for position in range(50):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert table[position][2 * i] == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[position][2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-12)


def test_sinusoidal_positions_are_exact_far_out():
    x = Sinusoidal(4)(torch.zeros(1, 3, 4), offset=100_000)
    assert_close(x[0, 2, 0].item(), math.sin(100_002), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [Sinusoidal, lambda dim, length: Learned(dim, max_length=17)])
def test_an_offset_continues_where_the_positions_before_it_end(make):
    position, x = make(6, length=5), torch.randn(2, 17, 6)
    whole = position(x)
    assert_close(torch.cat([position(x[:, :4]), position(x[:, 4:], offset=4)], 1), whole)
    assert_close(whole[0] - x[0], whole[1] - x[1])


@pytest.mark.parametrize("offset", [0, 1, 40])
def test_the_sinusoidal_table_grows_with_the_sequence(offset):
    position, x = Sinusoidal(6, length=5), torch.zeros(1, 9, 6)
    assert_close(position(x, offset)[0], sinusoidal_table(offset + 9, 6)[offset:].float())
    assert_close(position(x[:, :2])[0], sinusoidal_table(2, 6).float())


@pytest.mark.parametrize("make", [lambda: Sinusoidal(6), lambda: Rotary(6)])
def test_tables_are_no_part_of_a_checkpoint(make):
    assert not make().state_dict()


@pytest.mark.parametrize("make", [lambda: Sinusoidal(8), lambda: Rotary(8), lambda: GridRotary(8, (3, 4))])
def test_tables_are_as_exact_as_the_model(make):
    position = make().half().double()
    assert torch.equal(position.table, position._compute(len(position.table)))
    position.float().reserve(position.table.size(0))
    assert torch.equal(position.table, position._compute(len(position.table)).float())


def test_a_model_made_without_memory_has_its_tables_afterwards():
    block = BlockConfig(dim=8, num_heads=2, hidden_dim=8, position="rotary", drop_path=0.5)

    def make() -> nn.Module:
        windows = WindowAttention(MultiHeadAttention(8, 2, position=WindowBias(2, (2, 3))), (2, 3), shifted=True)
        return nn.ModuleList([TokenEmbedding(11, replace(block, position="sinusoidal")), Encoder(block, 2), windows])

    with torch.device("meta"):
        empty = make()
    whole, filled = make(), empty.to_empty(device="cpu")
    filled.load_state_dict(whole.state_dict())
    assert dict(filled.named_buffers()).keys() == dict(whole.named_buffers()).keys() != set()
    for name, buffer in filled.named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name)), name


@pytest.mark.parametrize(("causal", "buckets", "max_distance"), [(True, 1, 9), (False, 2, 9), (True, 32, 16)])
def test_buckets_that_leave_no_room_are_refused(causal, buckets, max_distance):
    with pytest.raises(ValueError, match=f"buckets={buckets} give .* max_distance={max_distance} must be more"):
        RelativeBias(2, causal=causal, buckets=buckets, max_distance=max_distance)


def test_an_odd_dim_has_no_sinusoidal_table():
    with pytest.raises(ValueError, match="dim=7 is odd: .* for example 8"):
        Sinusoidal(7)


# Learned.


def test_learned_positions_add_a_row_each_and_learn():
    position = Learned(6, max_length=9)
    position(torch.zeros(2, 3, 6), offset=4).sum().backward()
    assert position.weight.grad.sum(1).tolist() == [0] * 4 + [12] * 3 + [0] * 2


@pytest.mark.parametrize(("length", "offset"), [(10, 0), (1, 9), (4, 6)])
def test_a_sequence_past_the_learned_positions_is_refused(length, offset):
    with pytest.raises(ValueError, match=rf"position {length + offset} is past max_length=9 .*: shorten .* larger"):
        Learned(6, max_length=9)(torch.zeros(1, length, 6), offset)


# Rotary.


def turn(x: Tensor, offset: int = 0, base: float = 10_000.0) -> Tensor:
    """Rotary positions in complex numbers."""
    rate = torch.tensor([base ** (-2 * i / x.size(-1)) for i in range(x.size(-1) // 2)], dtype=torch.float64)
    angle = torch.outer(torch.arange(offset, offset + x.size(-2), dtype=torch.float64), rate)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@pytest.mark.parametrize("offset", [0, 3, 700, 100_000])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotary_multiplies_by_complex_numbers_of_length_one(offset, base):
    x = torch.randn(2, 3, 9, 6)
    turned = Rotary(6, base=base, length=5)(x, offset)
    assert_close(turned.double(), turn(x, offset, base), rtol=0, atol=1e-6)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_the_dot_product_of_turned_vectors_depends_on_their_distance_alone():
    rotary, query, key = Rotary(6).double(), doubles(1, 1, 1, 6), doubles(1, 1, 1, 6)

    def product(at_query: int, at_key: int) -> float:
        return (rotary(query, at_query) * rotary(key, at_key)).sum().item()

    assert product(3, 1) == pytest.approx(product(45, 43), abs=1e-6)
    assert product(0, 0) == pytest.approx((query * key).sum().item(), abs=1e-6)
    assert product(3, 1) != pytest.approx(product(1, 3), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_keeps_the_type_and_computes_in_float32(dtype):
    rotary, x = Rotary(6), torch.randn(1, 2, 900, 6).to(dtype)
    assert rotary(x).dtype == dtype
    assert_close(rotary(x), turn(x).to(dtype))


def test_a_rotary_table_that_grew_in_inference_still_trains():
    rotary, x = Rotary(6, length=5), torch.randn(1, 2, 9, 6, requires_grad=True)
    with torch.inference_mode():
        rotary(x)
    rotary(x).sum().backward()
    assert x.grad.isfinite().all()


def test_an_odd_width_cannot_be_turned():
    with pytest.raises(ValueError, match="width=5 of a head is odd"):
        Rotary(5)


# Relative.


def bucket(distance: int, *, causal: bool, buckets: int, max_distance: int) -> int:
    """The bucket of one distance (key minus query) by the words of the paper, in exact arithmetic."""
    start = 0
    if not causal:
        buckets //= 2
        start = buckets if distance > 0 else 0
    distance = max(-distance, 0) if causal else abs(distance)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    steps = buckets - exact
    # The last j with distance / exact >= (max_distance / exact) ** (j / steps), and never past the last bucket.
    reached = [j for j in range(steps) if Fraction(distance, exact) ** steps >= Fraction(max_distance, exact) ** j]
    return start + exact + max(reached)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (6, 9), (64, 1000)])
def test_the_buckets_of_relative_bias_are_those_of_the_paper(causal, buckets, max_distance):
    bias = RelativeBias(2, causal=causal, buckets=buckets, max_distance=max_distance)
    distances = range(-3 * max_distance // 2, 3 * max_distance // 2)
    expected = [bucket(d, causal=causal, buckets=buckets, max_distance=max_distance) for d in distances]
    assert bias.bucket(torch.tensor([list(distances)]))[0].tolist() == expected
    assert len(set(expected)) == buckets - (not causal)  # a distance of +0 does not exist


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (2, 7), (1, 300)])
def test_relative_bias_is_a_row_of_its_table_per_distance(causal, queries, keys):
    bias = RelativeBias(3, causal=causal)
    out = bias(queries, keys)
    assert out.shape == (1, 3, queries, keys)
    for query in range(queries):
        for key in range(0, keys, 3):
            row = bucket(key - (query + keys - queries), causal=causal, buckets=32, max_distance=128)
            assert_close(out[0, :, query, key], bias.weight[row])


def test_the_last_query_has_the_last_row_of_the_relative_bias():
    bias = RelativeBias(3, causal=True)
    assert_close(bias(2, 9), bias(9, 9)[:, :, -2:])


def test_relative_bias_of_more_queries_than_keys_is_refused():
    with pytest.raises(ValueError, match="keys"):
        RelativeBias(3, causal=True)(4, 3)


# Embedding.


def test_an_embedding_is_scaled_and_then_placed():
    embedding = TokenEmbedding(11, BlockConfig(dim=6, num_heads=2)).eval()
    ids = torch.tensor([[3, 0, 10], [1, 1, 2]])
    expected = embedding.tokens.weight[ids] * 6**0.5 + sinusoidal_table(3, 6).float()
    assert_close(embedding(ids), expected)


@pytest.mark.parametrize("position", ["rotary", "relative", "none"])
def test_positions_inside_attention_add_nothing_to_the_embedding(position):
    embedding = TokenEmbedding(11, BlockConfig(dim=8, num_heads=2, position=position)).eval()
    ids = torch.tensor([[3, 0, 10]])
    assert_close(embedding(ids, offset=4), embedding.tokens.weight[ids] * 8**0.5)


@pytest.mark.parametrize("position", ["sinusoidal", "learned"])
def test_an_embedding_with_an_offset_continues_the_sequence(position):
    config = BlockConfig(dim=8, num_heads=2, position=position, max_length=9)
    embedding, ids = TokenEmbedding(11, config).eval(), torch.randint(11, (2, 9))
    assert_close(embedding(ids[:, 4:], offset=4), embedding(ids)[:, 4:])
    assert not torch.isclose(embedding(ids[:, 4:]), embedding(ids)[:, 4:]).all(-1).any()


def test_fresh_embeddings_have_unit_variance_and_padding_stays_zero():
    embedding = TokenEmbedding(101, BlockConfig(dim=64, position="none", dropout=0.0), pad_id=2)
    ids = torch.arange(101)[None]
    out = embedding(ids)
    assert out.std().item() == pytest.approx(1, abs=0.05)
    assert not out[0, 2].any()
    out.square().sum().backward()
    assert not embedding.tokens.weight.grad[2].any() and embedding.tokens.weight.grad[3].any()


def test_embeddings_drop_features_in_training_only():
    embedding = TokenEmbedding(11, BlockConfig(dim=64, dropout=0.5))
    ids = torch.arange(11)[None]
    share = (embedding(ids) == 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)
    assert embedding.eval()(ids).count_nonzero() > 0.99 * 64 * 11
