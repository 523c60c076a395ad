"""Between models, optimizers and the named tensors that a file holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipes import checkpoint
from tasks.errors import InputError


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Split the state dict of an optimizer into tensors for a file and the rest, which JSON can say.

    Both go by where they stood: `state.0.exp_avg`, `param_groups.0`.
    """
    places = {f"state.{index}": values for index, values in state["state"].items()}
    places |= {f"param_groups.{index}": values for index, values in enumerate(state["param_groups"])}
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for place, values in places.items():
        tensors |= {f"{place}.{name}": value for name, value in values.items() if isinstance(value, Tensor)}
        rest[place] = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    return tensors, rest


def unflatten_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put together again what `flatten_optimizer` split, also after a trip through JSON."""
    places = {place: {name: _as_tuple(name, value) for name, value in rest[place].items()} for place in rest}
    for key, tensor in tensors.items():
        kind, index, name = key.split(".", 2)
        places[f"{kind}.{index}"][name] = tensor
    state, groups = {}, []
    for place, values in places.items():
        kind, index = place.split(".")
        if kind == "state":
            state[int(index)] = values
        else:
            groups.append(values)
    return {"state": state, "param_groups": groups}


def load_tensors_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model that has exactly these names, shapes and types.

    Raises InputError that names the tensors that do not fit, with both shapes.
    """
    wanted = model.state_dict()
    reasons = [f"{name} is missing" for name in wanted if name not in tensors]
    reasons += [f"{name} is not in the model" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        given, own = _kind(tensors[name]), _kind(wanted[name])
        if given != own:
            reasons.append(f"{name} is {given}, the model has {own}")
    if reasons:
        more = f"; and {len(reasons) - 8} more" if len(reasons) > 8 else ""
        raise InputError(f"the checkpoint does not fit the model: {'; '.join(reasons[:8])}{more}")
    model.load_state_dict(dict(tensors))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file or a checkpoint folder, whose moving average is taken where it has one.

    Raises InputError where there is no such thing, or it holds the weights of another model.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: the run has not ended; name one that has, or one of its checkpoints.")
    if path.is_dir():
        saved = checkpoint.load(path).tensors
        tensors = saved.get("ema", saved["model"])
    else:
        tensors = checkpoint.read_tensors(path)
    try:
        load_tensors_into(model, tensors)
    except InputError as error:
        raise InputError(f"{path} does not hold the weights of this model: {error}") from None


def _as_tuple(name: str, value: Any) -> Any:
    """JSON has no tuples: `betas` of Adam are one, while the parameters of a group are a list."""
    return tuple(value) if isinstance(value, list) and name not in ("params", "param_names") else value


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
