"""Tensors without numbers, beside PyTorch's fake tensors and real ones."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from recipes.inspection.shapes import ShapeMode, ShapeTensor, storage_id


def learn():
    """Use what models use, from convolution to loss, and return what is known of gradients and outputs."""
    model = nn.ModuleDict(
        {
            "convolution": nn.Conv2d(3, 16, 4, stride=4),
            "embedding": nn.Embedding(7, 16),
            "gru": nn.GRU(16, 16, batch_first=True),
            "lstm": nn.LSTM(16, 16, batch_first=True, bidirectional=True),
            "block": nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1),
            "output": nn.Linear(16, 7),
        }
    )
    image, ids = torch.randn(2, 3, 8, 12), torch.arange(7).expand(2, 7)
    with torch.autocast("cpu", torch.bfloat16):
        x = model["convolution"](image).flatten(2).transpose(1, 2)
        x = torch.cat((x, model["embedding"](ids)), dim=1)[:, 1:]
        with torch.autocast("cpu", enabled=False):
            x = model["gru"](x.float())[0] + model["lstm"](x.float())[0][..., 16:]
        for half in model["block"](x).chunk(2, dim=1):
            logits = model["output"](half)
            nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, :6]).backward(retain_graph=True)
    found = {name: weight.grad for name, weight in model.named_parameters()} | {"x": x, "logits": logits}
    return {name: (each.shape, each.stride(), each.dtype, each.device) for name, each in found.items()}


def test_a_model_learns_with_the_layouts_of_real_and_of_fake_tensors():
    real = learn()
    with FakeTensorMode():
        assert learn() == real
    with ShapeMode():
        assert learn() == real


def test_all_that_is_new_is_without_numbers():
    with ShapeMode():
        made = [torch.zeros(2, device="cpu"), torch.tensor([1, 2]), torch.randn(3), *torch.rand(4).topk(2)]
    assert all(type(each) is ShapeTensor and each.inner.is_meta and each.device.type == "cpu" for each in made)


def test_views_share_memory_and_changes_in_place_return_what_was_changed():
    with ShapeMode():
        x = torch.zeros(4, 6)
        assert storage_id(x) == storage_id(x[1:].t()) == storage_id(x.detach()) != storage_id(x.clone())
        for view in (torch.ops.aten._unsafe_view(x, [24]), x.unsafe_split(2)[1]):  # views by memory, not by schema
            assert storage_id(view) == storage_id(x)
        assert x.add_(1) is x
        assert x.transpose_(0, 1) is x and x.shape == x.inner.shape == (6, 4) and x.stride() == x.inner.stride()
        assert torch.add(x, 1, out=(out := torch.empty(6, 4))) is out


@pytest.mark.parametrize("number", [True, 1, 1.0])
def test_equal_numbers_of_different_types_are_told_apart(number):
    expected = (torch.ones(2, dtype=torch.bool) + number).dtype
    with ShapeMode():
        assert (torch.ones(2, dtype=torch.bool) + number).dtype == expected


def test_numbers_are_answered_without_looking():
    with ShapeMode():
        assert not torch.ones(3).gt(0).any()
        assert torch.ones(()).item() == 0.5 and torch.ones((), dtype=torch.int64).item() == 0


def test_the_default_type_is_not_remembered():
    with ShapeMode():
        assert torch.zeros(2).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.zeros(2).dtype == (torch.arange(3) / 2).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.zeros(2).dtype == (torch.arange(3) / 2).dtype == torch.float32


def test_what_goes_around_operators_is_refused():
    with ShapeMode():
        x, layer = torch.zeros(2, 3), nn.Linear(3, 4)
        layer.bfloat16()
        with pytest.raises(RuntimeError, match="was changed without an operator"):
            layer(x)
