"""Vision Transformers of several libraries in one shape: a training step, or a forward pass.

All have a class token, learned positions, the norm first, GELU, no dropout, and a linear head. What differs:

- vit-pytorch norms each patch before and after its projection, has no biases for queries, keys and values, and computes
  attention step by step; the others call the fused kernel of PyTorch.
- transformers and torchvision project queries, keys and values as their libraries do, the former by three products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

from benchmarks.peers.steps import ForwardStep, TrainingStep, compile_blocks
from benchmarks.worker import Setting, Step
from recipes.compiling import compiled
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.vit import VitConfig
from transformer_core import BlockConfig
from transformer_core.packing import pack

Model = Callable[[Tensor], Tensor]
"""Images in, logits out."""


@dataclass(frozen=True)
class ImageWork:
    """The shape of a Vision Transformer, and the batch it gets."""

    size: int
    """Pixels of a side."""
    patch: int
    """Pixels of a side of a patch."""
    depth: int
    dim: int
    num_heads: int
    hidden_dim: int
    batch: int
    """Images of a step."""
    classes: int = 1000
    recompute: bool = False
    """Whether ours computes the activations of its blocks again in the backward pass."""
    device: str = "cpu"
    compiled: bool = False
    """Whether its blocks go through torch.compile, or the whole model where it has none in a list."""

    def images(self) -> Tensor:
        """Return (batch, 3, size, size) noise, the same for everybody."""
        drawn = torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))
        return drawn.to(self.device)

    def labels(self) -> Tensor:
        """Return (batch,) classes."""
        return torch.randint(self.classes, (self.batch,), generator=torch.Generator().manual_seed(2)).to(self.device)


def ours(work: ImageWork) -> nn.Module:
    """Build the Vision Transformer of this project."""
    config = ImageModelConfig(
        image_size=(work.size, work.size),
        block=BlockConfig(
            dim=work.dim,
            num_heads=work.num_heads,
            hidden_dim=work.hidden_dim,
            activation="gelu",
            position="learned",
            order="pre",
            norm_eps=1e-6,
            dropout=0.0,
            recompute=work.recompute,
        ),
        vit=VitConfig(depth=work.depth, patch_size=(work.patch, work.patch)),
    )
    return build_model(config, work.classes, channels=3)


def timm(work: ImageWork) -> nn.Module:
    """Build that of timm."""
    return import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=work.size,
        patch_size=work.patch,
        num_classes=work.classes,
        embed_dim=work.dim,
        depth=work.depth,
        num_heads=work.num_heads,
        mlp_ratio=work.hidden_dim / work.dim,
    )


def torchvision(work: ImageWork) -> nn.Module:
    """Build that of torchvision."""
    return TorchvisionViT(
        image_size=work.size,
        patch_size=work.patch,
        num_layers=work.depth,
        num_heads=work.num_heads,
        hidden_dim=work.dim,
        mlp_dim=work.hidden_dim,
        num_classes=work.classes,
    )


class TransformersViT(nn.Module):
    """That of transformers, with logits for its output."""

    def __init__(self, work: ImageWork) -> None:
        super().__init__()
        library = import_module("transformers")
        config = library.ViTConfig(
            hidden_size=work.dim,
            num_hidden_layers=work.depth,
            num_attention_heads=work.num_heads,
            intermediate_size=work.hidden_dim,
            image_size=work.size,
            patch_size=work.patch,
            num_labels=work.classes,
            attn_implementation="sdpa",
        )
        self.model = library.ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(images).logits


def vit_pytorch(work: ImageWork) -> nn.Module:
    """Build that of vit-pytorch."""
    return import_module("vit_pytorch").ViT(
        image_size=work.size,
        patch_size=work.patch,
        num_classes=work.classes,
        dim=work.dim,
        depth=work.depth,
        heads=work.num_heads,
        dim_head=work.dim // work.num_heads,
        mlp_dim=work.hidden_dim,
    )


PEERS: dict[str, tuple[str, Callable[[ImageWork], nn.Module]]] = {
    "transformer_core": ("", ours),
    "timm": ("timm", timm),
    "torchvision": ("torchvision", torchvision),
    "transformers": ("transformers", TransformersViT),
    "vit-pytorch": ("vit_pytorch", vit_pytorch),
}
"""The package that each needs, and what builds its model."""
PACKED = ", packed"
"""Ends the name of a contender whose weights are packed."""


def training(setting: Setting, name: str, work: ImageWork) -> Step:
    """Train a model on one batch: cross-entropy."""
    model = PEERS[name][1](work).to(work.device)
    if work.compiled:
        model = compiled(model, ragged=False) if PEERS[name][1] is ours else compile_blocks(model)
    images, labels = work.images(), work.labels()

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(model(images).float(), labels, reduction="sum")

    return TrainingStep(setting, model, loss, [images], len)


def forward(setting: Setting, name: str, work: ImageWork) -> Step:
    """Compute the logits of one batch; "packed" with the weights laid out for the CPU."""
    model = PEERS[name.removesuffix(PACKED)][1](work).eval()
    if name.endswith(PACKED):
        model = pack(model, "bf16" if setting == "bf16" else "fp32")
    return ForwardStep(setting, model, work.images())
