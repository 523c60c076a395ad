"""Weights of other libraries, or of a model with other classes or another resolution, made to fit one of ours."""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks.errors import InputError, one_line
from tasks.image_classification.layouts import detect_layout
from tasks.image_classification.vit import VisionTransformer
from transformer_core import WindowBias, resize_grid

DERIVED = re.compile(r"(relative_position_index|attn_mask|mask_token|^(vit\.|deit\.)?pooler\..*)$")
"""Tensors that follow from the sizes, or serve another task."""


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """Weights to start from, and how far they may move."""

    path: str = ""
    """A .safetensors or .pth file of timm, torchvision, Hugging Face or one of our runs, or a folder with a
    `model.safetensors`; empty: start at random."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches that it was trained on, where they were not a square."""
    layer_decay: float = 1.0
    """What the learning rate is multiplied by for each block further from the head (Clark et al. 2020); 1: the same."""
    freeze: bool = False
    """Train the head alone (linear probe), on features as they are in evaluation: without dropout of any kind."""

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: choose more than 0 and at most 1; 0.65 to 0.9 is usual.")


class Fitted(NamedTuple):
    """What became of the tensors of a file."""

    tensors: dict[str, Tensor]
    """All that the model needs, under its names."""
    said: list[str]
    """What was changed on the way, a line each."""


def fit_pretrained(model: nn.Module, tensors: Mapping[str, Tensor], *, grid: tuple[int, int] | None = None) -> Fitted:
    """Rename and reshape tensors of any known layout for `model`; no tensor is left out silently.

    Heads for other classes stay as they are in `model`, at zero. Positions of another grid are stretched; `grid` is
    theirs, square unless given. Raises InputError that names what is missing, unknown or of another shape.
    """
    named, own, said = rename(tensors), model.state_dict(), []
    for name in [name for name in own if name.split(".")[0] in ("head", "distillation_head")]:
        if name not in named or named[name].shape != own[name].shape:
            found = list(named[name].shape) if name in named else "no such tensor"
            said.append(f"{name} starts at zero: the file has {found}, the model {list(own[name].shape)}")
            named[name] = own[name]
    if "position" in named and isinstance(model, VisionTransformer) and "position" in own:
        foreign = bool(detect_layout(tensors))
        named["position"] = _positions(model, named["position"], grid, foreign, said)
    named |= _window_tables(model, named, said)
    problems = [f"{name} is missing" for name in own if name not in named]
    problems += [f"{name} is not in the model" for name in named if name not in own]
    problems += [
        f"{name} is {list(named[name].shape)}, the model has {list(own[name].shape)}"
        for name in own
        if name in named and named[name].shape != own[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise InputError(f"the pretrained weights do not fit the model: {'; '.join(problems[:6])}{more}")
    return Fitted({name: named[name].to(own[name].dtype) for name in own}, said)


def rate_factors(model: nn.Module, config: PretrainedConfig) -> dict[str, float]:
    """Return the factor of the learning rate of each weight by its name; 0 where it stays as it is.

    Blocks are counted from the head, which has a factor of 1, to what comes before the first, which has the smallest
    (Bao et al. 2022, BEiT, appendix).
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = [block for block, _ in model.named_modules() if re.fullmatch(r"(encoder\.blocks|stages\.\d+)\.\d+", block)]
    places = {f"{block}.": place for place, block in enumerate(blocks, 1)}
    last = len(blocks) + 1

    def place(name: str) -> int:
        if found := next((place for block, place in places.items() if name.startswith(block)), 0):
            return found
        if merging := re.match(r"mergings\.(\d+)\.", name):  # goes with the stage before it
            return max(place for block, place in places.items() if block.startswith(f"stages.{merging[1]}."))
        first = name.startswith(("patches.", "patch_norm.", "stem.", "prefix", "position"))
        return 0 if first else last

    if config.freeze:
        return {name: float("head" in name.split(".")[0]) for name in names}
    return {name: config.layer_decay ** (last - place(name)) for name in names}


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of a known layout our names, and join parts; tensors that have our names keep them."""
    layout = detect_layout(tensors)
    named: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if DERIVED.search(name):
            continue
        for pattern, replacement in layout:
            name = re.sub(pattern, replacement, name)
        name, _, part = name.partition("#")
        tensor = tensor[0] if name in ("prefix", "position", "pool.query") and tensor.dim() == 3 else tensor
        if part:
            parts.setdefault(name, {})[part] = tensor
        else:
            named[name] = tensor
    for name, found in parts.items():
        named[name] = torch.cat([found[part] for part in sorted(found)])
    return named


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read .safetensors, or the state dict in a file of torch.save; no pickled code is run.

    Raises InputError where the file is missing or holds something else.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"--pretrained.path {path} is no file: name a .safetensors or .pth file of weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "it is no file of torch.save, or holds more than tensors; save the model's state_dict() alone"
        raise InputError(f"--pretrained.path {path} cannot be read as weights: {reason}.") from None
    except Exception as error:  # of many kinds, KeyError and IndexError among them; all of them concern the file
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"--pretrained.path {path} cannot be read as weights: {reason}") from None
    for key in ("state_dict", "model", "model_ema"):
        saved = saved.get(key, saved) if isinstance(saved, dict) else saved
    named: dict[str, Tensor] = saved if isinstance(saved, dict) else {}
    whole = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in named.items())
    if not isinstance(saved, dict) or not whole:
        raise InputError(f"--pretrained.path {path} holds no state dict: save the model's state_dict() alone.")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in named.items()}


def _positions(
    model: VisionTransformer, table: Tensor, grid: tuple[int, int] | None, foreign: bool, said: list[str]
) -> Tensor:
    """Stretch learned positions to the grid of the model; those of the tokens before the patches stay.

    A grid that is not given is square where that can be; of our own models it is that of the model, if as large.
    """
    prefix = model.config.prefix * model.config.position_of_prefix
    places = len(table) - prefix
    side, fits = math.isqrt(places), places == model.grid[0] * model.grid[1]
    old = grid or (model.grid if fits and not (foreign and side**2 == places) else (side, side))
    if old == model.grid and fits:
        return table
    if old[0] * old[1] != places:
        raise InputError(
            f"the pretrained weights have {len(table)} positions, not {prefix} and a grid of {list(old)}: give the "
            f"grid they were trained on, --pretrained.grid, or as many tokens as theirs before the patches: the model "
            f"has {prefix} (--model.vit.class_token, distillation_token, position_of_prefix)."
        )
    said.append(f"positions stretched from a grid of {list(old)} to {list(model.grid)}")
    return resize_grid(table, old, model.grid, prefix=prefix)


def _window_tables(model: nn.Module, named: Mapping[str, Tensor], said: list[str]) -> dict[str, Tensor]:
    """Return the relative positions of square windows for the windows of the model, where those are others.

    Where some tables of a file fit and others are smaller, these are of stages that were smaller than their windows:
    they know fewer offsets, which stay what they are, and further ones begin at zero. Otherwise tables are stretched.
    """
    modules = {f"{name}.weight": part for name, part in model.named_modules() if isinstance(part, WindowBias)}
    squares = {name: part for name, part in modules.items() if name in named and part.window[0] == part.window[1]}
    cut = any(len(named[name]) == len(part.weight) for name, part in squares.items())
    fitted: dict[str, Tensor] = {}
    for name, part in squares.items():
        table, old, new = named[name], math.isqrt(len(named[name])), 2 * part.window[0] - 1
        if old == new or old**2 != len(table):
            continue
        centred = cut and old < new
        said.append(f"{name} {'centred' if centred else 'stretched'} from {old} x {old} offsets to {new} x {new}")
        if centred:
            grid = table.view(old, old, -1).permute(2, 0, 1)
            fitted[name] = F.pad(grid, [(new - old) // 2] * 4).permute(1, 2, 0).flatten(0, 1)
        else:
            fitted[name] = resize_grid(table, (old, old), (new, new))
    return fitted
