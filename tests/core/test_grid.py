"""Positions on a grid, windows of it, and the residual parts that vision brought."""

import math

import pytest
import timm
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import (
    AddNorm,
    BlockConfig,
    Decoder,
    DropPath,
    Encoder,
    GridRotary,
    LayerScale,
    MultiHeadAttention,
    PatchEmbedding,
    Rotary,
    WindowAttention,
    WindowBias,
    block_configs,
    join_windows,
    record_attention,
    region_mask,
    resize_grid,
    sinusoidal_grid,
    split_windows,
)

CPU = torch.device("cpu")


def test_a_place_of_the_sinusoidal_grid_is_its_row_and_its_column():
    table = sinusoidal_grid(3, 5, 12)
    rate = [10_000 ** -(i / 2) for i in range(3)]
    row, column = 2, 4
    expected = [f(x * r) for x in (column, row) for f in (math.sin, math.cos) for r in rate]
    assert_close(table[row * 5 + column], torch.tensor(expected, dtype=torch.float64))
    assert table.shape == (15, 12)


def test_a_grid_needs_features_in_fours():
    with pytest.raises(ValueError, match="dim=10 is no multiple of 4"):
        sinusoidal_grid(2, 2, 10)
    with pytest.raises(ValueError, match="width=6 of a head is no multiple of 4"):
        GridRotary(6, (2, 2))


def test_grid_rotary_turns_one_half_of_the_pairs_with_the_row_and_the_other_with_the_column():
    rows, columns, width = 3, 4, 8
    x = torch.randn(2, 5, rows * columns, width)
    turned = GridRotary(width, (rows, columns))(x).view(2, 5, rows, columns, width)
    line = Rotary(width // 2, base=100.0)
    grid = x.view(2, 5, rows, columns, width)
    for column in range(columns):
        assert_close(turned[..., column, :4], line(grid[..., column, :4]))
    for row in range(rows):
        assert_close(turned[:, :, row, :, 4:], line(grid[:, :, row, :, 4:]))


def test_grid_rotary_leaves_the_tokens_before_the_grid_as_they_are():
    x = torch.randn(2, 3, 2 + 6, 8)
    turned = GridRotary(8, (2, 3), prefix=2)(x)
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    assert_close(turned[:, :, 2:], GridRotary(8, (2, 3))(x[:, :, 2:]))


def test_scores_under_grid_rotary_depend_on_the_offset_alone():
    rotary = GridRotary(8, (4, 5))
    query, key = torch.randn(8), torch.randn(8)
    places = query.expand(1, 1, 20, 8), key.expand(1, 1, 20, 8)
    scores = (rotary(places[0])[0, 0] @ rotary(places[1])[0, 0].T).view(4, 5, 4, 5)
    assert_close(scores[0, 1, 2, 3], scores[1, 2, 3, 4])
    assert not torch.isclose(scores[0, 1, 2, 3], scores[0, 1, 3, 2])


def test_more_tokens_than_the_grid_holds_are_refused():
    with pytest.raises(ValueError, match="8 tokens are more than the grid"):
        GridRotary(8, (2, 3), prefix=1)(torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_table_of_positions_is_stretched_as_timm_stretches_it(prefix):
    table = torch.randn(prefix + 3 * 5, 7)
    expected = timm.layers.resample_abs_pos_embed(table[None], [6, 4], old_size=[3, 5], num_prefix_tokens=prefix)
    assert_close(resize_grid(table, (3, 5), (6, 4), prefix=prefix), expected[0])
    assert resize_grid(table, (3, 5), (3, 5), prefix=prefix) is table


def test_patches_are_those_of_timm():
    theirs = PatchEmbed(img_size=(12, 20), patch_size=(4, 5), in_chans=2, embed_dim=11).double()
    ours = PatchEmbedding(2, 11, (4, 5)).double()
    ours.projection.load_state_dict(theirs.proj.state_dict())
    images = torch.randn(3, 2, 12, 20, dtype=torch.float64)
    assert_close(ours(images).flatten(1, 2), theirs(images))
    with pytest.raises(ValueError, match=r"images of \(12, 18\) cannot be cut into patches of \(4, 5\)"):
        ours(images[..., :18])


def test_fresh_patches_of_unit_variance_stay_so():
    patches = PatchEmbedding(3, 64, (4, 8))(torch.randn(8, 3, 16, 32))
    assert patches.std().item() == pytest.approx(1, rel=0.1)


def test_windows_are_cut_row_by_row_and_joined_again():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1).float()
    windows = split_windows(x, (2, 3))
    assert windows.shape == (8, 6, 1)
    assert windows[1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]
    assert windows[2, :, 0].tolist() == [12, 13, 14, 18, 19, 20]
    assert torch.equal(join_windows(windows, (2, 3), (4, 6)), x)


def test_regions_are_those_of_the_published_swin():
    theirs = timm.models.swin_transformer.SwinTransformerBlock(
        dim=8, input_resolution=(8, 12), num_heads=2, window_size=4, shift_size=2
    )
    expected = theirs.attn_mask == 0
    mask = region_mask((8, 12), (4, 4), (2, 2), CPU)
    assert mask is not None
    assert torch.equal(mask[:, 0], expected)
    assert region_mask((8, 12), (4, 4), (0, 0), CPU) is None


def test_the_bias_of_windows_is_that_of_the_published_swin():
    theirs = timm.models.swin_transformer.WindowAttention(dim=6, num_heads=3, window_size=(3, 4))
    nn.init.normal_(theirs.relative_position_bias_table)
    ours = WindowBias(3, (3, 4))
    ours.weight.data = theirs.relative_position_bias_table.data
    assert torch.equal(ours(12, 12), theirs._get_rel_pos_bias())
    with pytest.raises(ValueError, match="11 queries and 12 keys are not the 12 places"):
        ours(11, 12)


@pytest.mark.parametrize("grid", [(8, 12), (7, 9), (3, 10), (2, 3)])
@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_see_their_window_and_nothing_else(grid, shifted):
    attention = MultiHeadAttention(8, 2)
    layer = WindowAttention(attention, (4, 4), shifted=shifted)
    x = torch.randn(1, *grid, 8, requires_grad=True)
    shift = [2 if shifted and side > 4 else 0 for side in grid]

    def window(row: int, column: int) -> tuple[int, int]:
        # A window begins at each multiple of its side, all moved by the shift; the first ones are cut.
        return (row + 4 - shift[0]) // 4, (column + 4 - shift[1]) // 4

    for row, column in [(0, 0), (grid[0] - 1, grid[1] - 1), (grid[0] // 2, grid[1] // 2)]:
        (gradient,) = torch.autograd.grad(layer(x)[0, row, column].sum(), x)
        seen = (gradient[0].abs().sum(-1) > 0).tolist()
        places = [[window(r, c) == window(row, column) for c in range(grid[1])] for r in range(grid[0])]
        assert seen == places


def test_windows_without_shift_are_attention_on_each_window():
    attention = MultiHeadAttention(8, 2)
    layer = WindowAttention(attention, (2, 3), shifted=False)
    x = torch.randn(2, 4, 6, 8)
    assert_close(layer(x)[1, 2:4, 3:6].flatten(0, 1), attention(x[1:, 2:4, 3:6].flatten(1, 2))[0])


def test_windows_take_no_mask():
    layer = WindowAttention(MultiHeadAttention(8, 2), (2, 3), shifted=False)
    with pytest.raises(ValueError, match="there is no mask to give"):
        layer(torch.randn(1, 4, 6, 8), torch.ones(1, 1, 1, 6, dtype=torch.bool))


def test_an_exported_window_leaves_no_mask_without_numbers_behind():
    region_mask.cache_clear()
    layer, x = WindowAttention(MultiHeadAttention(12, 3), (2, 3), shifted=True).eval(), torch.randn(1, 5, 7, 12)
    exported = torch.export.export(layer, (x,)).module()(x)
    assert type(layer(x)) is Tensor
    assert_close(exported, layer(x))


def test_the_weights_of_every_window_can_be_looked_at():
    layer = WindowAttention(MultiHeadAttention(8, 2, position=WindowBias(2, (4, 4))), (4, 4), shifted=True)
    x = torch.randn(3, 8, 12, 8)
    with record_attention(layer) as maps:
        recorded = layer(x)
    assert torch.equal(recorded, layer(x))
    (weights,) = maps["attention"]
    assert weights.shape == (3 * 6, 2, 16, 16)
    assert_close(weights.sum(-1), torch.ones(18, 2, 16))


def test_drop_path_leaves_out_whole_examples_and_keeps_the_mean():
    layer, x, seen = DropPath(0.25).train(), torch.randn(10, 2, 3), torch.zeros(10)
    branches = []

    def branch(x: Tensor, number: Tensor, same: Tensor, nothing: None) -> Tensor:
        branches.append(x)
        assert same.shape == (1, 4) and nothing is None
        return number[:, None, None] + torch.zeros_like(x)

    numbers = torch.arange(1.0, 11.0)
    for _ in range(4_000):
        added = layer(x, branch, numbers, torch.zeros(1, 4), None) - x
        share = (added / numbers[:, None, None]).flatten(1)
        kept = share[:, 0] > 0.5
        assert torch.allclose(share, kept[:, None] / 0.75, atol=1e-5)
        assert len(branches[-1]) == kept.sum() in (7, 8)  # what is left out is not computed
        seen += kept
    assert_close(seen / 4_000, torch.full((10,), 0.75), rtol=0, atol=0.04)
    assert torch.equal(layer.eval()(x, torch.sin), x + x.sin())


def test_compiled_drop_path_keeps_the_mean_too(unchecked):
    torch._dynamo.reset()
    layer = torch.compile(DropPath(0.75).train(), backend="eager")
    found = layer(torch.zeros(4_000, 1), lambda x: x + 1)
    assert found.unique().tolist() == [0, 4] and found.mean().item() == pytest.approx(1, abs=0.15)


def test_where_drop_path_leaves_nobody_the_weights_still_get_gradients_of_zero():
    layer, branch = DropPath(0.9).train(), nn.Linear(3, 3)
    sizes = []
    for _ in range(40):
        out = layer(torch.randn(1, 2, 3), branch)
        (grad,) = torch.autograd.grad(out.sum(), [branch.weight])
        sizes.append(bool(grad.any()))
    assert 0 < sum(sizes) < 20


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"drop_path 1\.0 is no share"):
        DropPath(1.0)


def test_layer_scale_and_drop_path_act_on_the_branch_and_not_on_what_goes_past_it():
    for order in ("pre", "post"):
        branch = AddNorm(6, order=order, layer_scale=0.5)
        nn.init.normal_(branch.layer_scale.weight)
        x = torch.randn(2, 5, 6)
        scaled = branch.norm(x).sin() * branch.layer_scale.weight if order == "pre" else None
        expected = x + scaled if order == "pre" else branch.norm(x + x.sin() * branch.layer_scale.weight)
        assert_close(branch(x, torch.sin), expected)
    assert torch.equal(LayerScale(3, 0.1).weight.data, torch.full((3,), 0.1))
    branch = AddNorm(6, order="pre", drop_path=0.999).train()
    assert torch.isclose(branch(x, torch.sin), x).all(-1).all(-1).sum() >= 1


def test_drop_path_grows_linearly_with_the_depth():
    config = BlockConfig(dim=8, num_heads=2, drop_path=0.3)
    assert [each.drop_path for each in block_configs(config, 4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [each.drop_path for each in block_configs(config, 1)] == [0]


def test_queries_and_keys_are_normed_head_by_head_in_memory_too():
    attention = MultiHeadAttention(12, 3, qk_norm="layer")
    for norm in (attention.query_norm, attention.key_norm):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 12)
    query, key, value = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in attention.input(x).chunk(3, -1))
    weights = (attention.query_norm(query) @ attention.key_norm(key).mT / 2).softmax(-1)
    expected = attention.output((weights @ value).transpose(1, 2).flatten(2))
    assert_close(attention(x), expected)
    assert_close(attention(x, attention.keys_values(x)), expected)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_blocks_computed_again_give_the_same_gradients_with_less_kept(kind):
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        config = BlockConfig(dim=16, num_heads=2, hidden_dim=32, dropout=0.2, recompute=recompute)
        model = (Encoder if kind == "encoder" else Decoder)(config, 3).train()
        x, states = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 4, 16)
        kept: list[int] = []
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: (k.append(t.numel()), t)[1], lambda t: t):
            out = model(x) if isinstance(model, Encoder) else model(x, model.read(states))
            total = out.square().sum()
        total.backward()
        found.append((x.grad, [weight.grad for weight in model.parameters()], sum(kept)))
    assert_close(found[1][:2], found[0][:2])
    assert found[1][2] < found[0][2] / 2
