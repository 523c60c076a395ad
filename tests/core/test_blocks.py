from dataclasses import FrozenInstanceError
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import (
    AddNorm,
    BlockConfig,
    Decoder,
    Dropout,
    Encoder,
    EncoderBlock,
    FeedForward,
    MultiHeadAttention,
    causal_mask,
    make_norm,
    make_score,
    padding_mask,
)
from transformer_core.position import PositionName
from transformer_core.score import ScoreName

SCORES, POSITIONS = get_args(ScoreName), get_args(PositionName)
NAMES = {
    "self_attn.in_proj_": "attention.input.",
    "self_attn.out_proj": "attention.output",
    "norm1": "attention_branch.norm",
    "linear1": "feed_forward.wide",
    "linear2": "feed_forward.narrow",
    "norm2": "feed_forward_branch.norm",
    "layers.": "blocks.",
}
LENS = torch.tensor([7, 3, 5])


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def renamed(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `torch.nn.TransformerEncoder` to ours."""
    for theirs, ours in NAMES.items():
        named = {name.replace(theirs, ours): value for name, value in named.items()}
    return named


def config(**options) -> BlockConfig:
    return BlockConfig(**{"dim": 12, "num_heads": 3, "hidden_dim": 17, "dropout": 0.0, **options})


# Dropout.


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_share_and_scales_up_the_rest_forward_and_backward(rate, dtype):
    x = (torch.rand(7, 11, 503) + 0.5).to(dtype).requires_grad_()
    out = Dropout(rate)(x)
    out.backward(torch.full_like(x, 3))
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / x.numel()) ** 0.5)
    assert_close(out, kept * x / (1 - rate))
    assert_close(x.grad, kept * torch.full_like(x, 3) / (1 - rate))


def test_dropout_decides_each_element_on_its_own():
    kept = (Dropout(0.3)(torch.ones(20_000, 8)) != 0).float()
    assert_close(kept.T.corrcoef(), torch.eye(8), rtol=0, atol=0.03)
    assert kept.sum(1).var().item() == pytest.approx(8 * 0.3 * 0.7, rel=0.05)


def test_dropout_follows_the_seed_and_rests_in_evaluation():
    dropout, x, outs = Dropout(0.5), torch.randn(5, 13), []
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        outs.append(dropout(x))
    assert torch.equal(outs[0], outs[2]) and not torch.equal(outs[0], outs[1])
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("rate", [1 - 2**-18, 2**-18])
def test_dropout_of_nearly_all_or_nothing_keeps_its_sense(rate):
    kept = (Dropout(rate)(torch.ones(1000)) != 0).float().mean().item()
    assert kept == pytest.approx(1 - rate, abs=0.01)


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_dropout_of_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=str(rate)):
        Dropout(rate)


# Norm, residual, feed-forward.


def test_layer_norm_has_zero_mean_and_unit_variance():
    norm, x = make_norm("layer", 7, eps=1e-3).double(), doubles(2, 3, 7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    assert_close(norm(x), (x - mean) / (variance + 1e-3).sqrt() * norm.weight + norm.bias, rtol=0, atol=1e-12)


def test_rms_norm_divides_by_the_root_mean_square():
    norm, x = make_norm("rms", 7, eps=1e-3).double(), doubles(2, 3, 7)
    nn.init.normal_(norm.weight)
    assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("training", [False, True])
def test_the_order_of_sublayer_dropout_residual_and_norm(order, training):
    branch = AddNorm(7, order=order, dropout=0.4, norm="rms").double().train(training)
    nn.init.normal_(branch.norm.weight)
    x = doubles(2, 3, 7)
    torch.manual_seed(4)
    out = branch(x, torch.tanh)
    torch.manual_seed(4)
    if order == "post":
        expected = branch.norm(x + branch.dropout(x.tanh()))
    else:
        expected = x + branch.dropout(branch.norm(x).tanh())
    assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("activation", "module"), [("relu", nn.ReLU()), ("gelu", nn.GELU())])
def test_feed_forward_is_two_layers_with_the_activation_between(activation, module):
    ours, x = FeedForward(5, 11, activation=activation).double(), doubles(2, 3, 5)
    nn.init.normal_(ours.wide.bias)
    nn.init.normal_(ours.narrow.bias)
    assert_close(ours(x), nn.Sequential(ours.wide, module, ours.narrow)(x), rtol=0, atol=1e-12)


def test_swiglu_is_the_formula_of_its_paper():
    ours, x = FeedForward(5, 11, activation="swiglu").double(), doubles(2, 3, 5)
    nn.init.normal_(ours.wide.bias)
    (w, v), (b, c) = ours.wide.weight.view(2, 11, 5), ours.wide.bias.view(2, 11)
    gate = x @ w.T + b
    expected = (gate * torch.sigmoid(gate) * (x @ v.T + c)) @ ours.narrow.weight.T + ours.narrow.bias
    assert_close(ours(x), expected, rtol=0, atol=1e-12)


def test_feed_forward_drops_hidden_features_in_training_only():
    ours, x = FeedForward(5, 11, dropout=0.4).double(), doubles(2, 3, 5)
    torch.manual_seed(4)
    out = ours(x)
    torch.manual_seed(4)
    assert_close(out, ours.narrow(ours.dropout(ours.wide(x).relu())), rtol=0, atol=1e-12)
    assert_close(ours.eval()(x), ours.narrow(ours.wide(x).relu()), rtol=0, atol=1e-12)


# Encoder against torch.


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_block_equals_torch(activation, order, padded):
    theirs = nn.TransformerEncoderLayer(
        12, 3, 17, 0.0, activation, batch_first=True, norm_first=order == "pre", dtype=torch.float64
    )
    ours = EncoderBlock(config(activation=activation, order=order)).double()
    check_against_torch(ours, theirs, padded)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_an_encoder_equals_torch(order):
    layer = nn.TransformerEncoderLayer(12, 3, 17, 0.0, batch_first=True, norm_first=order == "pre")
    norm = nn.LayerNorm(12) if order == "pre" else None
    theirs = nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False).double()
    check_against_torch(Encoder(config(order=order), depth=3).double(), theirs, padded=True)


def check_against_torch(ours: nn.Module, theirs: nn.Module, padded: bool) -> None:
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours.load_state_dict(renamed(theirs.state_dict()))
    x, probe = doubles(3, 7, 12).requires_grad_(), doubles(3, 7, 12)
    x_too = x.detach().clone().requires_grad_()
    expected = theirs(x, src_key_padding_mask=torch.arange(7) >= LENS[:, None] if padded else None)
    out = ours(x_too, padding_mask(LENS, 7) if padded else None)
    assert_close(out, expected, rtol=0, atol=1e-10)
    (expected * probe).sum().backward()
    (out * probe).sum().backward()
    assert_close(x_too.grad, x.grad, rtol=0, atol=1e-10)
    grads = renamed({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, grads[name], rtol=0, atol=1e-10)


# Encoder alone.


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("position", POSITIONS)
def test_padding_changes_nothing_at_the_real_positions(score, position):
    encoder = Encoder(config(score=score, position=position, num_kv_heads=1), depth=2).double()
    x = doubles(3, 7, 12)
    longer = torch.cat([x, 9 * doubles(3, 4, 12)], 1)
    out = encoder(x, padding_mask(LENS, 7))
    out_longer = encoder(longer, padding_mask(LENS, 11))
    for i, length in enumerate(LENS.tolist()):
        assert_close(out_longer[i, :length], out[i, :length], rtol=0, atol=1e-10)
        assert_close(encoder(x[i : i + 1, :length])[0], out[i, :length], rtol=0, atol=1e-10)


@pytest.mark.parametrize("polarity", ["right", "inverted", "absent"])
def test_only_the_right_mask_hides_the_padding(polarity):
    encoder, x, mask = Encoder(config(), depth=2).double(), doubles(3, 7, 12), padding_mask(LENS, 7)
    given = {"right": mask, "inverted": ~mask, "absent": None}[polarity]
    changed = x.masked_fill(~mask[:, 0, 0, :, None], 5.0)
    before, after = encoder(x, given), encoder(changed, given)
    unchanged = torch.isclose(before, after).all(-1)[1:][mask[1:, 0, 0]].tolist()
    assert all(unchanged) if polarity == "right" else not any(unchanged)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_example_of_padding_alone_is_finite_and_disturbs_nobody(score, dtype):
    encoder = Encoder(config(score=score), depth=2).to(dtype)
    x = torch.randn(3, 7, 12, dtype=dtype)
    out = encoder(x, padding_mask(torch.tensor([5, 0, 7]), 7))
    (out @ torch.randn(12, dtype=dtype)).sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)
    assert_close(out[2], encoder(x[2:])[0])


@pytest.mark.parametrize("position", POSITIONS)
def test_the_order_of_tokens_matters_only_where_there_are_positions(position):
    encoder, x = Encoder(config(position=position), depth=2).double(), doubles(2, 7, 12)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    unmoved = torch.isclose(encoder(x.flip(1)).flip(1), encoder(x)).all()
    assert unmoved == (position not in ("rotary", "relative"))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_only_pre_norm_ends_with_a_norm(norm):
    assert len(Encoder(config(order="pre", norm=norm), depth=1).norm.state_dict()) == {"layer": 2, "rms": 1}[norm]
    assert not Encoder(config(order="post", norm=norm), depth=1).norm.state_dict()


def test_every_dropout_of_the_config_is_used_and_only_in_training():
    x = torch.randn(2, 7, 12)
    for name in ("dropout", "attention_dropout", "hidden_dropout"):
        block = EncoderBlock(config(**{name: 0.5}))
        assert not torch.isclose(block(x), block(x)).all(), name
        block.eval()
        assert torch.equal(block(x), block(x)), name


def test_every_option_of_the_config_reaches_the_block():
    chosen = config(score="cosine", position="relative", norm="rms", norm_eps=1e-3, activation="swiglu", num_kv_heads=1)
    weights = {name: tuple(weight.shape) for name, weight in EncoderBlock(chosen).state_dict().items()}
    assert weights == {
        "attention.score.log_sharpness": (),
        "attention.position.weight": (32, 3),
        "attention.input.weight": (20, 12),
        "attention.input.bias": (20,),
        "attention.output.weight": (12, 12),
        "attention.output.bias": (12,),
        "attention_branch.norm.weight": (12,),
        "feed_forward.wide.weight": (34, 12),
        "feed_forward.wide.bias": (34,),
        "feed_forward.narrow.weight": (12, 17),
        "feed_forward.narrow.bias": (12,),
        "feed_forward_branch.norm.weight": (12,),
    }
    assert EncoderBlock(chosen).attention_branch.norm.eps == 1e-3


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_every_norm_has_the_eps_of_the_config(kind):
    stack = kind(config(norm_eps=0.25, qk_norm=True, order="pre"), 2)
    assert {module.eps for module in stack.modules() if isinstance(module, nn.LayerNorm)} == {0.25}


# Config.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 12, "num_heads": 5}, "dim=12 cannot be split over num_heads=5: .* divisors of 12, for example 4"),
        ({"dim": 12, "num_heads": 6, "num_kv_heads": 4}, "num_heads=6 cannot share num_kv_heads=4: .* divisors of 6"),
        ({"dim": 9, "num_heads": 3, "position": "rotary"}, "position=rotary .* dim=9 over num_heads=3 leaves 3 a head"),
        ({"dim": 9, "num_heads": 3}, "position=sinusoidal needs an even dim, not 9"),
        ({"dropout": 1.0}, "dropout=1.0 is no share"),
        ({"attention_dropout": -0.1}, "attention_dropout=-0.1 is no share"),
        ({"hidden_dropout": 1.5}, "hidden_dropout=1.5 is no share"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_heads": -4}, "num_heads=-4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0"),
        ({"num_kv_heads": -2}, "num_kv_heads=-2"),
        ({"hidden_dim": 0}, "hidden_dim=0 is no size"),
        ({"max_length": -5}, "max_length=-5 is no size"),
        ({"layer_scale": -0.1}, "layer_scale=-0.1 is negative"),
    ],
)
def test_a_config_that_cannot_be_built_names_what_to_change(options, message):
    with pytest.raises(ValueError, match=message):
        BlockConfig(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeedForward(8, 8, activation="silu"), "activation='silu' is unknown: choose among relu, gelu"),
        (lambda: make_norm("batch", 8), "norm='batch' is unknown: choose among layer, rms"),
        (lambda: AddNorm(8, order="both"), "order='both' is unknown: choose among post, pre"),
        (lambda: make_score("gausian", 8), "score='gausian' is unknown: .* gaussian"),
        (lambda: MultiHeadAttention(8, 2, position="rotary"), "score and position are modules"),
        (lambda: MultiHeadAttention(8, 2, score="dot"), "score and position are modules"),
        (lambda: MultiHeadAttention(8, 2, dropout=1.5), "dropout=1.5 is no share"),
    ],
)
def test_a_name_that_is_none_is_not_taken_for_another(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_hooks_see_is_not_written_over():
    layer, x, seen = FeedForward(8, 16), torch.randn(3, 8, requires_grad=True), []
    layer.wide.register_forward_hook(lambda module, given, out: seen.append(out))
    layer.wide.register_full_backward_hook(lambda *given: None)
    layer(x).sum().backward()
    assert_close(seen[0], nn.functional.linear(x, layer.wide.weight, layer.wide.bias))


def test_masks_that_could_mean_two_things_are_refused(unchecked):
    block, x = EncoderBlock(config()), torch.randn(3, 5, 12)
    with pytest.raises(ValueError, match=r"a mask of \(3, 5, 5\) can mean examples or heads"):
        block(x, torch.ones(3, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="the mask holds torch.float32"):
        block(x, torch.zeros(5, 5))


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        BlockConfig().dim = 7


@pytest.mark.parametrize("position", ["none", "rotary", "relative"])
@pytest.mark.parametrize("learning", [False, True])
def test_an_exported_encoder_takes_sequences_of_any_length(position, learning, unchecked):
    model, length = Encoder(config(position=position), 2).eval(), torch.export.Dim("length", min=2, max=200)
    mask = padding_mask(torch.tensor([9, 4]), 9)
    with torch.set_grad_enabled(learning):
        shapes = ({1: length}, {3: length})
        exported = torch.export.export(model, (torch.randn(2, 9, 12), mask), dynamic_shapes=shapes).module()
        for size in (3, 130):
            x, mask = torch.randn(2, size, 12), padding_mask(torch.tensor([size, 2]), size)
            assert_close(exported(x, mask), model(x, mask))


def test_an_encoder_without_blocks_is_its_norm():
    x = doubles(2, 7, 12)
    assert_close(Encoder(config(), 0).double()(x, first=3), nn.functional.layer_norm(x[:, :3], (12,)))


@pytest.mark.parametrize("first", [None, 4])
def test_a_mask_of_two_axes_is_no_row_for_each_example(first):
    model, x, mask = Encoder(config(drop_path=0.3), 2), torch.randn(7, 7, 12), causal_mask(7, 7)
    outputs = []
    for each in (mask, mask[None, None]):
        torch.manual_seed(1)
        outputs.append(model(x, each, first=first))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("position", ["none", "rotary", "relative"])
def test_the_first_tokens_alone_are_those_of_the_whole_sequence(order, position):
    model, x = Encoder(config(order=order, position=position), 2).double().eval(), doubles(2, 7, 12)
    mask = padding_mask(torch.tensor([7, 4]), 7)
    assert_close(model(x, mask, first=2), model(x, mask)[:, :2], rtol=0, atol=1e-10)
    square = causal_mask(7, 7)[None, None]
    assert_close(model(x, square, first=3), model(x, square)[:, :3], rtol=0, atol=1e-10)
    model.train()
    model(x, mask, first=2).sum().backward()
    given = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    model(x, mask)[:, :2].sum().backward()
    assert_close(given, [weight.grad for weight in model.parameters()], rtol=0, atol=1e-10)
