import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from recipes import average
from recipes.checkpoint import load, save
from recipes.optimizer import make_optimizer
from recipes.state import State
from recipes.train_config import TrainConfig
from recipes.weights import flatten_optimizer, load_tensors_into, load_weights, unflatten_optimizer
from tasks.errors import InputError

OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98)),
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "AdamW amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, amsgrad=True),
    "AdamW with a tensor as rate": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "SGD with momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
}


def new_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def new_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    return OPTIMIZERS[name]([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(tmp_path, name):
    whole = new_model()
    whole_optimizer = new_optimizer(name, whole)
    train(whole, whole_optimizer, range(11))

    first = new_model()
    first_optimizer = new_optimizer(name, first)
    train(first, first_optimizer, range(5))
    tensors, rest = flatten_optimizer(first_optimizer.state_dict())
    path = save(tmp_path, 5, {"model": first.state_dict(), "optimizer": tensors}, {"optimizer": rest})

    second = new_model()
    second_optimizer = new_optimizer(name, second)
    checkpoint = load(path)
    load_tensors_into(second, checkpoint.tensors["model"])
    second_optimizer.load_state_dict(
        unflatten_optimizer(checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    )
    assert_close(second_optimizer.state_dict(), first_optimizer.state_dict(), rtol=0, atol=0)
    train(second, second_optimizer, range(5, 11))
    assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert_close(second_optimizer.state_dict(), whole_optimizer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_is_the_same_after_a_trip_through_json(name, steps):
    model = new_model()
    optimizer = new_optimizer(name, model)
    train(model, optimizer, range(steps))
    before = optimizer.state_dict()
    tensors, rest = flatten_optimizer(before)
    after = unflatten_optimizer(tensors, json.loads(json.dumps(rest)))
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for index, values in before["state"].items():
        assert after["state"][index].keys() == values.keys()
        for key, value in values.items():
            assert after["state"][index][key] is value


def test_more_than_ten_groups_keep_their_order():
    parameters = [torch.zeros(size, requires_grad=True) for size in range(1, 13)]
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 0.1 * parameter.numel()} for parameter in parameters])
    before = optimizer.state_dict()
    assert unflatten_optimizer(*flatten_optimizer(before)) == before


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_the_optimizer_is_the_one_that_was_named_with_its_eps(kind):
    optimizer = make_optimizer(new_model(), TrainConfig(optimizer=kind.lower(), eps=1e-5), {})
    assert type(optimizer) is getattr(torch.optim, kind)
    assert kind == "SGD" or {group["eps"] for group in optimizer.param_groups} == {1e-5}


def test_tied_weights_stay_tied(tmp_path):
    tied = new_model()
    tied[2].weight = nn.Parameter(torch.randn(7, 5))
    tied[0].weight = tied[2].weight
    load_tensors_into(tied, load(save(tmp_path, 1, {"model": tied.state_dict()}, {})).tensors["model"])
    assert tied[0].weight is tied[2].weight


def test_of_a_checkpoint_the_moving_average_is_taken_where_it_has_one(tmp_path):
    raw, average, model = (nn.Linear(3, 2) for _ in range(3))
    load_weights(model, save(tmp_path, 1, {"model": raw.state_dict(), "ema": average.state_dict()}, {}))
    assert_close(model.state_dict(), average.state_dict(), rtol=0, atol=0)
    load_weights(model, save(tmp_path, 2, {"model": raw.state_dict()}, {}))
    assert_close(model.state_dict(), raw.state_dict(), rtol=0, atol=0)


def test_tensors_that_do_not_fit_are_named_with_both_shapes():
    model = new_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    del tensors["0.bias"]
    tensors["9.bias"] = torch.zeros(2)
    tensors["0.weight"] = torch.zeros(7, 6)
    tensors["2.bias"] = tensors["2.bias"].double()
    with pytest.raises(InputError) as caught:
        load_tensors_into(model, tensors)
    message = str(caught.value)
    for part in (
        "0.bias is missing",
        "9.bias is not in the model",
        "0.weight is (7, 6) float32, the model has (7, 5) float32",
        "2.bias is (3,) float64, the model has (3,) float32",
    ):
        assert part in message
    assert "\n" not in message
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_wholly_different_model_is_told_in_one_line():
    with pytest.raises(InputError, match=r"; and 12 more$"):
        load_tensors_into(new_model(), {f"layer{index}": torch.zeros(1) for index in range(16)})


def test_a_checkpoint_whose_optimizer_holds_other_weights_together_is_named(tmp_path):
    model = new_model()
    path = State(model, new_optimizer("AdamW", model), None).save(tmp_path)
    names = list(model.parameters())
    other = torch.optim.AdamW([{"params": names[:1]}, {"params": names[1:]}])
    with pytest.raises(InputError, match=f"{path} is of another version, whose optimizer holds other weights together"):
        State(model, other, None).load(path)


def test_an_average_is_of_checkpoints_alone(tmp_path):
    for step in (1, 2):
        save(tmp_path / "checkpoints", step, {"model": {"weight": torch.full((2,), float(step))}}, {})
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", tmp_path / "checkpoints" / "step-00000001.old")
    average.main(average.Recipe(run=str(tmp_path), output=str(tmp_path / "mean.safetensors")))
    assert_close(load_file(tmp_path / "mean.safetensors")["weight"], torch.full((2,), 1.5))
