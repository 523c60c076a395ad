"""Which model classifies the images, and how large it is."""

from dataclasses import dataclass, field, replace
from typing import Literal

from tasks.image_classification.swin import SwinConfig, SwinTransformer
from tasks.image_classification.vit import VisionTransformer, VitConfig, patch_grid
from transformer_core import BlockConfig


def vision_block() -> BlockConfig:
    """Return the block of ViT-Ti (Touvron et al. 2021), with the norm and activation that all ViTs share."""
    return BlockConfig(
        dim=192,
        num_heads=3,
        hidden_dim=768,
        activation="gelu",
        position="learned",
        order="pre",
        norm_eps=1e-6,
        dropout=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class ImageModelConfig:
    """Size and shape of the model."""

    kind: Literal["vit", "swin"] = "vit"
    """Patches that all see each other, or windows that are merged stage by stage."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that images are brought to."""
    block: BlockConfig = field(default_factory=vision_block)
    """Every encoder block; for a Swin Transformer those of the first stage, with `position: relative`."""
    vit: VitConfig = field(default_factory=VitConfig)
    """What only a ViT has."""
    swin: SwinConfig = field(default_factory=SwinConfig)
    """What only a Swin Transformer has."""

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size={list(self.image_size)}: give height and width in pixels.")


def build_model(config: ImageModelConfig, num_classes: int, *, channels: int) -> VisionTransformer | SwinTransformer:
    """Return a fresh model. Raises ValueError where the settings do not go together."""
    if config.kind == "swin":
        return SwinTransformer(config.swin, config.block, num_classes, channels=channels)
    return VisionTransformer(config.vit, config.block, num_classes, channels=channels, image_size=config.image_size)


def without_dropout(config: ImageModelConfig) -> ImageModelConfig:
    """Return the configuration of a model that computes in training what it does in evaluation."""
    block = replace(config.block, dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0, drop_path=0.0)
    return replace(config, block=block, vit=replace(config.vit, patch_dropout=0.0))


def patch_pixels(config: ImageModelConfig) -> tuple[int, int]:
    """Return height and width of what one token sees of the image."""
    if config.kind == "swin":
        return config.swin.patch_size
    rows, columns = patch_grid(config.vit, config.image_size)
    return config.image_size[0] // rows, config.image_size[1] // columns
