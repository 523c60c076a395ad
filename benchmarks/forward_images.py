"""Images a second of Vision Transformers in use, beside the libraries that people use.

    python -m benchmarks.forward_images
    python -m benchmarks.forward_images --shape base --duel.rounds 4

Logits of a batch of noise, without gradients; ours also with its weights laid out for the CPU by
`transformer_core.packing`. How the libraries differ is said in benchmarks/peers/images.py.
"""

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.duel import DuelConfig, duel, in_all_settings
from benchmarks.peers.images import PACKED, PEERS, ImageWork, forward
from benchmarks.tables import publish
from recipes.config import launch

SHAPES = {
    "tiny": ("ViT-Ti/16", ImageWork(224, 16, depth=12, dim=192, num_heads=3, hidden_dim=768, batch=16)),
    "base": ("ViT-B/16", ImageWork(224, 16, depth=12, dim=768, num_heads=12, hidden_dim=3072, batch=8)),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure the forward pass of a Vision Transformer."""

    shape: Literal["tiny", "base"] = "tiny"
    """ViT-Ti/16 on 16 images of 224 pixels, or ViT-B/16 on 8."""
    duel: DuelConfig = field(default_factory=lambda: DuelConfig(steps=5))


def main(recipe: Recipe) -> None:
    """Let all classify the same batch."""
    title, work = SHAPES[recipe.shape]
    needs = {name: package for name, (package, _) in PEERS.items()} | {f"transformer_core{PACKED}": ""}
    contenders = in_all_settings(needs, forward, work, recipe.duel)
    result = duel(f"Forward, {title}, 224 pixels, batch {work.batch}", "images", contenders, recipe.duel)
    publish(result, recipe.duel.out, f"forward_images_{recipe.shape}")


if __name__ == "__main__":
    launch(Recipe, main)
