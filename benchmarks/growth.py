"""How the cost of our training step grows: with length, batch, width, depth, vocabulary and processes, each alone.

    python -m benchmarks.growth
    python -m benchmarks.growth --axes '[length, width]' --rounds 10

A step is forward, backward and fused AdamW of a small encoder stack in float32, for the vocabulary that of the output
layer with its loss. The exponent is the slope of seconds over size on logarithmic scales, at the largest sizes; the
expected one is that of the floating-point operations there, which is where a step stands that only computes. Processes
have one thread each; they share a batch (strong scaling) or have one each (weak scaling).
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.result import command, machine
from benchmarks.tables import Sheet, keep
from recipes.config import launch
from recipes.inspection.flops import flop_counter
from recipes.processes import use_machine
from transformer_core import BlockConfig, Encoder, FactoredLogits, linear_cross_entropy

Axis = Literal["length", "batch", "width", "depth", "vocabulary", "strong_scaling", "weak_scaling"]
SIZES: dict[Axis, list[int]] = {
    "length": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "batch": [1, 4, 16, 64, 256],
    "width": [64, 128, 256, 512, 1024],
    "depth": [1, 2, 4, 8, 16],
    "vocabulary": [1_000, 4_000, 16_000, 64_000],
    "strong_scaling": [1, 2],
    "weak_scaling": [1, 2],
}
WORDS: dict[Axis, str] = {
    "length": "tokens of a sequence; batch 4, width 64, 2 blocks, 1 head",
    "batch": "sequences of 64 tokens; width 128, 2 blocks",
    "width": "features; 4 sequences of 64 tokens, 2 blocks",
    "depth": "blocks; 8 sequences of 64 tokens, width 128",
    "vocabulary": "pieces; 1,024 targets, width 128",
    "strong_scaling": "processes that share 64 sequences of 64 tokens; width 256, 4 blocks",
    "weak_scaling": "processes with 32 sequences of 64 tokens each; width 256, 4 blocks",
}
TOP = 3
"""Largest sizes of an axis that the exponent is fitted to."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure how the training step grows."""

    axes: list[Axis] = field(default_factory=lambda: list(SIZES))
    """What is varied."""
    rounds: int = 5
    """Steps of each size that are timed, by turns."""
    plots: str = "docs"
    """Folder of the pictures."""
    out: str = "benchmarks/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class Curve:
    """The cost of a step over one axis."""

    axis: Axis
    sizes: list[int]
    seconds: list[list[float]]
    """Per size, all steps."""
    flops: list[float]
    """Per size, the operations of a step; where there are several processes, those of each."""

    @property
    def medians(self) -> list[float]:
        """Seconds of a step, per size."""
        return [statistics.median(values) for values in self.seconds]

    @property
    def measured(self) -> float:
        """The exponent of the seconds at the largest sizes."""
        return slope(self.sizes, self.medians)

    @property
    def expected(self) -> float:
        """The exponent of the operations there."""
        return slope(self.sizes, self.flops)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent of a power of the size that the costs of the largest sizes follow."""
    x, y = (list(map(math.log, values[-TOP:])) for values in (sizes, costs))
    return statistics.linear_regression(x, y).slope


def main(recipe: Recipe) -> None:
    """Measure, draw, and write what was found."""
    use_machine(0)
    curves = [
        measure_processes(axis, recipe.rounds) if axis.endswith("scaling") else measure(axis, recipe.rounds)
        for axis in recipe.axes
    ]
    for curve in curves:
        draw(curve, Path(recipe.plots, f"growth_{curve.axis}.png"))
    rows = [
        [
            curve.axis.replace("_", " "),
            WORDS[curve.axis],
            f"{curve.sizes[0]:,} to {curve.sizes[-1]:,}",
            f"{curve.medians[0] * 1000:,.1f} to {curve.medians[-1] * 1000:,.1f}",
            f"{curve.measured:.2f}",
            f"{curve.expected:.2f}",
        ]
        for curve in curves
    ]
    head = ["", "", "sizes", "ms a step", "exponent", "expected"]
    facts = machine()
    note = f"`{command()}`. {facts['processor']}, {facts['cores']} cores, torch {torch.__version__}. Medians of "
    note += f"{recipe.rounds} steps."
    sheet = Sheet("How the cost of a training step grows", head, rows, [note])
    keep(sheet, recipe.out, "growth", curves=[asdict(curve) for curve in curves])


def measure(axis: Axis, rounds: int) -> Curve:
    """Time the steps of all sizes by turns, and count their operations."""
    steps = [make_step(axis, size) for size in SIZES[axis]]
    flops: list[float] = []
    for step in steps:
        with flop_counter() as counter:
            step()  # which also warms up
        flops.append(counter.get_total_flops())
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, values in zip(steps, seconds, strict=True):
            values.append(timed(step))
    return Curve(axis, SIZES[axis], seconds, flops)


def timed(step: Callable[[], None]) -> float:
    """Return the seconds of a step; short ones are repeated until a twentieth of a second is over."""
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < 0.05:
        step()
        count += 1
    return (time.perf_counter() - began) / count


def make_step(axis: Axis, size: int) -> Callable[[], None]:
    """Return the training step of one size."""
    match axis:
        case "length":
            return stack_step(batch=4, length=size, width=64, depth=2)
        case "batch":
            return stack_step(batch=size, length=64, width=128, depth=2)
        case "width":
            return stack_step(batch=4, length=64, width=size, depth=2)
        case "depth":
            return stack_step(batch=8, length=64, width=128, depth=size)
        case "vocabulary":
            return output_step(size, targets=1024, width=128)
        case "strong_scaling":
            return stack_step(batch=64 // size, length=64, width=256, depth=4)
        case "weak_scaling":
            return stack_step(batch=32, length=64, width=256, depth=4)


def stack_step(*, batch: int, length: int, width: int, depth: int) -> Callable[[], None]:
    """Return the training step of an encoder stack with heads of 64 features on noise."""
    block = BlockConfig(dim=width, num_heads=max(1, width // 64), hidden_dim=4 * width, position="none", dropout=0.1)
    model: nn.Module = Encoder(block, depth).train()
    if distributed.is_initialized():
        model = DistributedDataParallel(model)
    x = torch.randn(batch, length, width)
    return update(model, lambda: model(x).square().mean())


def output_step(vocabulary: int, *, targets: int, width: int) -> Callable[[], None]:
    """Return the training step of an output layer and its loss."""
    layer, states = nn.Linear(width, vocabulary, bias=False), torch.randn(targets, width, requires_grad=True)
    labels = torch.randint(vocabulary, (targets,))
    return update(
        layer, lambda: linear_cross_entropy(FactoredLogits(states, layer.weight), labels, smoothing=0.1).smoothed
    )


def update(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that makes one update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_processes(axis: Axis, rounds: int) -> Curve:
    """Time the step of one process and of several."""
    sizes, seconds, flops = SIZES[axis], list[list[float]](), list[float]()
    for size in sizes:
        with TemporaryDirectory() as folder:
            spawn(run_process, (axis, size, rounds, folder), nprocs=size)
            found = json.loads(Path(folder, "found.json").read_text())
        seconds.append(found["seconds"])
        flops.append(found["flops"])
    return Curve(axis, sizes, seconds, flops)


def run_process(rank: int, axis: Axis, size: int, rounds: int, folder: str) -> None:
    """Be one of the processes; the first one writes what it measured to the folder."""
    use_machine(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    step = make_step(axis, size)
    with flop_counter() as counter:
        step()
    seconds: list[float] = []
    for _ in range(rounds):
        distributed.barrier()
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps({"seconds": seconds, "flops": counter.get_total_flops()}))
    distributed.destroy_process_group()


def draw(curve: Curve, path: Path) -> None:
    """Draw seconds over size, with the line that the operations lead one to expect."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    medians = curve.medians
    spread = [
        [median - min(values) for median, values in zip(medians, curve.seconds, strict=True)],
        [max(values) - median for median, values in zip(medians, curve.seconds, strict=True)],
    ]
    axes.errorbar(curve.sizes, medians, yerr=spread, marker="o", capsize=3, label=f"measured, {curve.measured:.2f}")
    expected = [medians[-1] * flops / curve.flops[-1] for flops in curve.flops]
    axes.plot(curve.sizes, expected, "--", color="gray", label=f"operations, {curve.expected:.2f}")
    varied, _, others = WORDS[curve.axis].partition("; ")
    axes.set(xscale="log", yscale="log", xlabel=varied, ylabel="seconds a step", title=others)
    axes.title.set_fontsize(8)
    axes.xaxis.minorticks_off()
    axes.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes], rotation=45, fontsize=8)
    axes.legend(title="exponent at the top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    launch(Recipe, main)
