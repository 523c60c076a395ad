"""Images a second of a training step of Vision Transformers, beside the libraries that people use.

    python -m benchmarks.training_images
    python -m benchmarks.training_images --shape small_images --duel.rounds 4

Forward, cross-entropy, backward and a fused AdamW step on a batch of noise. How the libraries differ is said in
benchmarks/peers/images.py.
"""

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.duel import DuelConfig, duel, in_all_settings
from benchmarks.peers.images import PEERS, ImageWork, training
from benchmarks.tables import publish
from recipes.config import launch

SHAPES = {
    "tiny": ("ViT-Ti/16, 224 pixels", ImageWork(224, 16, depth=12, dim=192, num_heads=3, hidden_dim=768, batch=16)),
    "small_images": (
        "9 blocks, d 192, 12 heads, patch 4, 32 pixels",
        ImageWork(32, 4, depth=9, dim=192, num_heads=12, hidden_dim=384, batch=256),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure the training step of a Vision Transformer."""

    shape: Literal["tiny", "small_images"] = "tiny"
    """ViT-Ti/16 on 16 images of 224 pixels, or a small model on 256 images of 32 pixels."""
    duel: DuelConfig = field(default_factory=DuelConfig)


def main(recipe: Recipe) -> None:
    """Let all train on the same batch."""
    title, work = SHAPES[recipe.shape]
    needs = {name: package for name, (package, _) in PEERS.items()}
    contenders = in_all_settings(needs, training, work, recipe.duel)
    result = duel(f"Training step, {title}, batch {work.batch}", "images", contenders, recipe.duel)
    publish(result, recipe.duel.out, f"training_images_{recipe.shape}")


if __name__ == "__main__":
    launch(Recipe, main)
