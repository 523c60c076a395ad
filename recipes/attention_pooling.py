"""Fit a noisy curve by attention: the mean of all points, a Gaussian kernel of width 1, and one that learned its width.

    python -m recipes.attention_pooling --output docs/attention_pooling.png

Prints the errors of the three and draws them with their attention; docs/attention_pooling.md explains.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor
from torch.nn.functional import mse_loss

from recipes.config import launch
from recipes.pictures import save_picture
from recipes.tracking import console
from transformer_core import KernelPooling

Points = Float[Tensor, "1 points 1"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fit y = 2 sin x + x^0.8 on [0, 5] from noisy points by attention pooling."""

    points: int = 50
    """Points to learn from, at random places."""
    noise: float = 0.5
    """Standard deviation of what is added to each."""
    steps: int = 150
    """Updates of the width."""
    lr: float = 0.05
    """Learning rate of Adam on the logarithm of the width."""
    seed: int = 1
    """Places and noise."""
    output: str = "attention_pooling.png"
    """Picture to write; the ending chooses its kind: .png, .svg, .pdf."""

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"--points {self.points}: a point is predicted from the others, so choose 2 or more.")


def main(recipe: Recipe) -> None:
    """Fit, print and draw."""
    draws = torch.Generator().manual_seed(recipe.seed)
    x = 5 * torch.rand(1, recipe.points, 1, generator=draws).sort(1).values
    y = curve(x) + recipe.noise * torch.randn(x.shape, generator=draws)
    pools = {
        "average": KernelPooling(math.inf),
        "fixed": KernelPooling(1.0),
        "learned": KernelPooling(1.0, learned=True),
    }
    learn(pools["learned"], x, y, steps=recipe.steps, lr=recipe.lr)
    places = torch.linspace(0, 5, 101)[None, :, None]
    table = Table("", "width", "error at points left out", "distance from the curve", title="Mean squared errors")
    for name, pool in pools.items():
        with torch.no_grad():
            errors = left_out_error(pool, x, y), mse_loss(pool(places, x, y), curve(places))
        table.add_row(name, f"{pool.width:.3f}", *(f"{error:.4f}" for error in errors))
    console().print(table)
    save_picture(draw(pools, x, y, places), recipe.output, dpi=120)


def curve(x: Points) -> Points:
    """Return what the points would be without noise."""
    return 2 * x.sin() + x**0.8


def left_out_error(pool: KernelPooling, x: Points, y: Points) -> Float[Tensor, ""]:
    """Return the mean squared error of predicting each point from all others."""
    return mse_loss(pool(x, x, y, mask=~torch.eye(x.size(1), dtype=torch.bool)), y)


def learn(pool: KernelPooling, x: Points, y: Points, *, steps: int, lr: float) -> None:
    """Learn the width that predicts points best from the others."""
    optimizer = torch.optim.Adam(pool.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        left_out_error(pool, x, y).backward()
        optimizer.step()


@torch.no_grad()
def draw(pools: dict[str, KernelPooling], x: Points, y: Points, places: Points) -> Figure:
    """Draw the fits, and the attention of those that have a width: a row for each place, a column for each point."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    fits, *maps = figure.subplots(1, 3, width_ratios=[1.4, 1, 1])
    fits.plot(x.flatten(), y.flatten(), "o", color="gray", alpha=0.5, label="points")
    fits.plot(places.flatten(), curve(places).flatten(), "k--", label="without noise")
    for name, pool in pools.items():
        fits.plot(places.flatten(), pool(places, x, y).flatten(), label=name)
    fits.set(xlabel="x", ylabel="y")
    fits.legend()
    for axes, (name, pool) in zip(maps, list(pools.items())[1:], strict=True):
        weights = axes.imshow(
            pool.weights(places, x)[0].numpy(), aspect="auto", origin="lower", extent=(0, x.size(1), 0, 5)
        )
        axes.set(title=f"attention at width {pool.width:.2f} ({name})", xlabel="points, from left to right", ylabel="x")
        figure.colorbar(weights, ax=axes)
    return figure


if __name__ == "__main__":
    launch(Recipe, main)
