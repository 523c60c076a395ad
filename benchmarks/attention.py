"""Calls a second of attention, forward and backward: our module beside others, our function beside the bare kernel.

python -m benchmarks.attention
"""

from dataclasses import dataclass, field

from benchmarks.duel import DuelConfig, duel, in_all_settings
from benchmarks.peers.attention import FUNCTIONS, MODULES, AttentionWork, function, module
from benchmarks.tables import publish
from recipes.config import launch


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure attention alone."""

    batch: int = 8
    heads: int = 8
    length: int = 1024
    """Tokens of a sequence."""
    width: int = 64
    """Features of a head."""
    duel: DuelConfig = field(default_factory=DuelConfig)


def main(recipe: Recipe) -> None:
    """Run both duels."""
    work = AttentionWork(recipe.batch, recipe.heads, recipe.length, recipe.width)
    shape = f"batch {work.batch}, {work.heads} heads of {work.width}, length {work.length}"
    for title, names, make, file in (
        ("Attention with projections", MODULES, module, "attention_module"),
        ("Attention without projections", FUNCTIONS, function, "attention_function"),
    ):
        needs = {name: "timm" if name == "timm" else "" for name in names}
        contenders = in_all_settings(needs, make, work, recipe.duel)
        result = duel(f"{title}, forward and backward, {shape}", "calls", contenders, recipe.duel)
        publish(result, recipe.duel.out, file)


if __name__ == "__main__":
    launch(Recipe, main)
