"""Packed models compute what the plain ones do; the reference is the plain model in float64, or torch itself."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from transformer_core import BlockConfig, Decoder, Encoder, Linear, packing, padding_mask
from transformer_core.packing import PackedLinear, has_bfloat16, has_vnni, pack

ERRORS = {"fp32": 1e-6, "bf16": 1e-2, "int8": 3e-2}
"""Largest error of a product, as a share of its largest number."""

PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")),
    "int8",
]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().amax() / exact.abs().amax()).item()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (1, 1), (0, 4)])
@pytest.mark.parametrize("rows", [None, slice(5), slice(5, None), slice(3, 11)])
@torch.inference_mode()
def test_a_packed_layer_multiplies_as_torch_does(precision, bias, shape, rows):
    layer, x = Linear(24, 40, bias=bias), torch.randn(*shape, 24)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    exact = exact if rows is None else exact[..., rows]
    assert_close(layer(x, rows).double(), exact, rtol=1e-4, atol=1e-5)
    packed = PackedLinear(layer, precision)
    for _ in range(2):  # the second call finds the weight packed
        found = packed(x, rows)
        assert found.dtype == torch.float32 and found.shape == exact.shape
        assert not exact.numel() or error(found, exact) < ERRORS[precision]
    if precision != "fp32" and exact.numel():
        assert error(found, exact) > 1e-4  # it does round: nothing fell back to float32


@torch.inference_mode()
def test_int8_is_exact_where_weights_and_inputs_are_steps():
    layer = Linear(16, 9)
    layer.weight.copy_(torch.randint(-127, 128, (9, 16)))
    layer.weight[:, 0] = 127
    low, high = (-127, 127) if has_vnni() else (-63, 64)
    x = torch.randint(low, high + 1, (5, 16)).float()
    x[0, 0], x[0, 1] = high, low
    assert_close(PackedLinear(layer, "int8")(x), layer(x), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_a_packed_encoder_and_decoder_follow_the_plain_ones(precision, beams):
    config = BlockConfig(dim=32, num_heads=4, num_kv_heads=2, hidden_dim=48, position="rotary")
    encoder, decoder = Encoder(config, 2).eval(), Decoder(config, 2).eval()
    source, target, mask = torch.randn(2, 6, 32), torch.randn(2 * beams, 4, 32), padding_mask(torch.tensor([6, 3]), 6)

    def run(encoder: Encoder, decoder: Decoder, dtype: torch.dtype) -> Tensor:
        memory = decoder.read(encoder(source.to(dtype), mask), mask)
        cache = decoder.new_cache(memory, 4, beams=beams)
        return torch.cat([decoder(step, memory, cache) for step in target.to(dtype).split(1, 1)], 1)

    exact = run(copy.deepcopy(encoder).double(), copy.deepcopy(decoder).double(), torch.float64)
    assert error(run(pack(encoder, precision), pack(decoder, precision), torch.float32), exact) < 5 * ERRORS[precision]


def test_a_packed_model_shares_its_weights_and_leaves_the_original_alone():
    encoder = Encoder(BlockConfig(dim=16, num_heads=2, hidden_dim=24), 1)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    packed = pack(encoder, "int8")
    assert not packed.training and encoder.training
    assert {id(weight) for weight in packed.parameters()} == {id(weight) for weight in encoder.parameters()}
    assert_close(encoder.state_dict(), before, rtol=0, atol=0)
    assert not any(isinstance(module, PackedLinear) for module in encoder.modules())
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 4


@torch.inference_mode()
def test_a_layer_alone_is_packed_and_goes_to_another_process():
    layer, x = Linear(24, 40), torch.randn(3, 24)
    packed = pack(layer, "int8")
    assert isinstance(packed, PackedLinear)
    expected = packed(x)
    assert_close(pickle.loads(pickle.dumps(packed))(x), expected, rtol=0, atol=0)
    assert_close(copy.deepcopy(packed)(x), expected, rtol=0, atol=0)


def test_what_cannot_be_packed_is_refused():
    encoder = Encoder(BlockConfig(dim=16, num_heads=2, hidden_dim=24), 1)
    with pytest.raises(ValueError, match="float32 on a CPU"):
        pack(encoder.double(), "fp32")


def test_bfloat16_is_refused_where_the_cpu_has_none(monkeypatch):
    monkeypatch.setattr(packing, "has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="choose precision fp32 or int8"):
        pack(Encoder(BlockConfig(dim=16, num_heads=2, hidden_dim=24), 1), "bf16")
