"""Know a model before it is trained: its layers, FLOPs, memory, the largest batch, the time of a run.

python -m recipes.inspect_model --recipe wmt14_en_de_big
python -m recipes.inspect_model --recipe vit_huge --memory_gb 24 --throughput 500 --examples 1281167
python -m recipes.inspect_model --recipe base,my_corpus.yaml --model.block.dim 640 --device cpu

Nothing is computed and no data are read. Flags with a dot are settings of the recipe.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from recipes.config import launch
from recipes.inspection.closed_form import Flops
from recipes.inspection.dry_run import Device
from recipes.inspection.layers import Layer, layers
from recipes.inspection.memory import Memory, largest_batch, training
from recipes.inspection.subject import Subject, read_subject
from recipes.inspection.survey import Kind, survey
from tasks.errors import InputError

GB = 1024**3
"""Bytes of a gigabyte as the memory of GPUs is counted."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Inspect the model of a recipe without data; flags with a dot, as --model.block.dim 512, change the recipe."""

    recipe: str
    """Name of a recipe or preset, or path of a YAML file; several with commas, the last one wins."""
    device: Device = "cuda"
    """Device to count for, which need not be there; they differ in the kernels of attention, and in what those keep."""
    batch: int = 0
    """Sentence pairs or images of a micro-batch; 0: as many as the recipe says."""
    length: int = 32
    """Pieces of a sentence with its mark, on both sides."""
    classes: int = 1000
    """Classes of images, which otherwise the data say."""
    characters: int = 100
    """Characters and marks that a reader of text knows, which otherwise the data say."""
    depth: int = 3
    """Names of a layer in the table, as in encoder.blocks.0; more show its parts."""
    memory_gb: float = 0.0
    """Memory for which to find the largest micro-batch, in units of 1024^3 bytes; 0: not asked."""
    throughput: float = 0.0
    """Target tokens or images a second, for the time of the run; 0: not asked."""
    examples: int = 0
    """Sentence pairs or images of the training data, for the number of epochs; 0: not asked."""

    def __post_init__(self) -> None:
        for name in ("batch", "memory_gb", "throughput", "examples"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: choose 0 or more.")
        for name in ("length", "classes", "characters", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: choose 1 or more.")


def main(recipe: Recipe, settings: Sequence[str] = ()) -> None:
    """Print all tables; `settings` are flags of the recipe that is inspected."""
    paths = [find(name) for name in recipe.recipe.split(",")]
    sizes = {"length": recipe.length, "classes": recipe.classes, "characters": recipe.characters}
    subject = read_subject(paths, settings, **sizes)
    batch = recipe.batch or subject.examples
    console = Console()
    found = survey(subject, batch, recipe.device)
    rows = layers(subject, {**found.shapes, **subject.logits(batch)}, depth=recipe.depth)
    formula = None if subject.closed_form is None else subject.closed_form(batch)
    title = f"{recipe.recipe}: {batch} {_examples(subject)}, {subject.said}"
    console.print(layer_table(rows, title), parts_table(rows, formula))
    console.print(flops_table((found.forward, found.step), formula))
    console.print(
        memory_table(found.memory, f"GB on {recipe.device}", f"{subject.train.optimizer}, {batch} {_examples(subject)}")
    )
    peak = found.memory[subject.train.precision, subject.recompute].peak
    for line in lines(subject, recipe, batch, found.step, peak):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def find(name: str) -> Path:
    """Return the path of a recipe or preset. Raises InputError naming the nearest ones."""
    if Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in sorted(Path(__file__).parent.rglob("*.yaml"))}
    if name in known:
        return known[name]
    near = get_close_matches(Path(name).stem, known, cutoff=0.0)
    raise InputError(f"--recipe {name} is neither a file nor a recipe or preset; the nearest are {', '.join(near)}.")


def layer_table(found: Sequence[Layer], title: str) -> Table:
    """Lay out the layers, a row each."""
    table = Table("layer", "class", "output", title=title)
    table.add_column("parameters", justify="right")
    for layer in found:
        count = "as above" if layer.shared and not layer.parameters else f"{layer.parameters:,}"
        table.add_row(layer.name, layer.kind, " x ".join(f"{size:,}" for size in layer.shape), count)
    return table


def parts_table(found: Sequence[Layer], formula: tuple[int, Flops] | None) -> Table:
    """Lay out the parameters of each part; weights that are shared count where they come first."""
    table = Table("part", title="Parameters")
    table.add_column("number", justify="right")
    for part in dict.fromkeys(layer.part for layer in found):
        number = sum(layer.parameters for layer in found if layer.part == part)
        table.add_row(part, f"{number:,}" if number else "shared")
    table.add_row("all", f"{sum(layer.parameters for layer in found):,}", style="bold")
    if formula is not None:
        table.add_row("by formula: 12 h^2 + 13 h a layer, ...", f"{formula[0]:,}")
    return table


def flops_table(counted: tuple[Flops, Flops], formula: tuple[int, Flops] | None) -> Table:
    """Lay out the FLOPs of a forward pass and of a training step on one micro-batch, and those of the formula."""
    source = "formula: Narayanan et al. (2021), 24 b s h^2 + 4 b s^2 h a layer"
    table = Table("GFLOPs of a micro-batch", caption=source if formula else None)
    columns = [*counted, *([formula[1]] if formula else [])]
    for name, _ in zip(("forward", "forward and backward", "forward by formula"), columns, strict=False):
        table.add_column(name, justify="right")
    names = ("patches", "attention products", "projections and feed-forward", "logits")
    for name, *numbers in zip(names, *columns, strict=True):
        if any(numbers):
            table.add_row(name, *(f"{number / 1e9:,.2f}" for number in numbers))
    table.add_row("all", *(f"{each.total / 1e9:,.2f}" for each in columns), style="bold")
    return table


def memory_table(found: Mapping[Kind, Memory], corner: str, of: str) -> Table:
    """Lay out the memory of each precision, at inference and in training."""
    table = Table(
        corner,
        title=f"Memory: {of}",
        caption="At once: gradients come as activations go. Under bf16 weights and gradients stay in float32, "
        "4 + 4 + 8 bytes a parameter with Adam, and matrices have copies of 2; mixed precision usually counts as 20.",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for precision, recompute in found:
        name = f"inference\n{precision}" if recompute is None else f"training\n{precision}"
        table.add_column(f"{name}\nrecompute" if recompute else name, justify="right")
    names = ("weights", "gradients", "optimizer", "average", "bf16 copies", "activations", "at once")
    for name, *numbers in zip(names, *found.values(), strict=True):
        table.add_row(name, *(f"{number / GB:,.2f}" if number else "" for number in numbers))
    return table


def lines(subject: Subject, recipe: Recipe, batch: int, step: Flops, peak: int) -> list[str]:
    """Answer what was asked: the largest batch, the time of the run, the number of epochs.

    `step` and `peak` are FLOPs and bytes of a micro-batch.
    """
    config, said = subject.train, []
    unit, kind = subject.task.unit, _examples(subject)
    if recipe.memory_gb:
        counted = {batch: peak}
        largest = largest_batch(
            recipe.memory_gb * GB, lambda size: counted.get(size) or _peak(subject, size, recipe.device), batch
        )
        tokens = f", {largest * subject.units:,} {unit} of target" if subject.units > 1 else ""
        said.append(
            f"largest micro-batch in {recipe.memory_gb:g} GB, {config.precision}: {largest:,} {kind}{tokens}; what a "
            "driver keeps for itself and gaps between blocks come on top"
        )
    update = batch * subject.units * config.accumulate
    said.append(f"the run: {config.steps:,} updates of {update:,} {unit}, {config.steps * update:,} in all")
    if recipe.examples:
        epochs = config.steps * batch * config.accumulate / recipe.examples
        said.append(f"that is {epochs:,.1f} epochs of {recipe.examples:,} {kind}")
    if recipe.throughput:
        hours = config.steps * update / recipe.throughput / 3600
        speed = step.total / (batch * subject.units) * recipe.throughput / 1e12
        said.append(f"at {recipe.throughput:,.0f} {unit} a second: {hours:,.1f} hours, {speed:,.1f} TFLOP/s")
    return said


def _peak(subject: Subject, examples: int, device: Device) -> int:
    return training(subject, examples, device, subject.train.precision, recompute=None).peak


def _examples(subject: Subject) -> str:
    return "sentence pairs" if subject.task.unit == "tokens" else "images"


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part what this program is told from the settings of the recipe, which have a dot in their name."""
    own: list[str] = []
    settings: list[str] = []
    into = own
    for argument in arguments:
        if argument.startswith("--"):
            into = settings if "." in argument.partition("=")[0] else own
        into.append(argument)
    return own, settings


if __name__ == "__main__":
    gc.disable()  # all that is imported and counted lives to the end: to look for garbage in it would only take time
    own, settings = split(sys.argv[1:])
    launch(Recipe, lambda recipe: main(recipe, settings), own)
