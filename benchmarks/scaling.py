"""Strong and weak scaling of training over many GPUs, calculated: nothing is measured here.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --cluster.adapters 1 --cluster.mfu 0.4 --images 256

docs/scaling.md explains the formulas and assumptions and shows these tables. An example is an image, or a target token
with a source token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

import recipes
from recipes.config import launch, load_config
from recipes.image_runs import Recipe as Images
from recipes.train_translation import Recipe as Translation
from transformer_core import BlockConfig

VOCABULARY, CLASSES, CHANNELS = 32_000, 1_000, 3
FLOAT32, BF16 = 4, 2
Sheet = tuple[str, list[str], list[list[str]]]  # title, header and rows of a table
Sharded = Literal["no", "node", "all"]
"""Over which GPUs weights, gradients and moments lie: `no` is DDP with float32 gradients, the others FSDP2 in bf16."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines; bandwidths count one direction, GB are 10^9 bytes."""

    peak: float = 989.4
    """Dense bf16 matrix products of a GPU, TFLOP/s. NVIDIA H100 architecture white paper (2022), H100 SXM5."""
    mfu: float = 0.3
    """Share of the peak that one GPU alone reaches (MFU, Chowdhery et al. 2022, section 4.1). Assumption."""
    hbm: float = 3350.0
    """Bandwidth of a GPU's memory, GB/s. NVIDIA H100 data sheet, SXM."""
    node: int = 8
    """GPUs of a node. NVIDIA DGX H100 data sheet."""
    nvlink: float = 370.0
    """GB/s that a ring reaches within a node, of 450: maintainer of NCCL, github NVIDIA/nccl-tests#212 (2024)."""
    adapter: float = 47.0
    """GB/s that an adapter of 400 Gb/s reaches, of 50: 46 to 48, maintainer, github NVIDIA/nccl-tests#290 (2025)."""
    adapters: int = 8
    """Adapters of a node. NVIDIA DGX BasePOD reference architecture, DGX H100: eight ConnectX-7 of 400 Gb/s."""
    start: float = 14.0
    """Microseconds before a collective moves data. NCCL, src/tuning/cost_model.cc (2026), protocol LL128, as below."""
    ring: tuple[float, float] = (1.9, 4.0)
    """Microseconds of a step of a ring within a node and between nodes. cost_model.cc."""
    tree: tuple[float, float] = (1.25, 8.5)
    """Microseconds of a step of a tree within a node and between nodes. cost_model.cc."""
    shares: tuple[float, float] = (0.92, 0.86)
    """Shares of the bandwidth that ring and tree use: 0.92, and 0.92 x 120/128. NCCL, src/tuning/ring.cc, tree.cc."""
    overlap: float = 0.8
    """Share of the backward pass, and if sharded of the forward pass, that can hide communication. Assumption."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Calculate how training scales, on machines and with batches of your own."""

    cluster: Cluster = Cluster()
    presets: tuple[str, ...] = ("base", "big", "vit_small", "vit_base", "vit_large", "vit_huge")
    """Models: files of recipes/presets, Transformers and ViTs."""
    gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    """Numbers of GPUs, whole nodes, rising."""
    images: int = 128
    """Images of a GPU's micro-batch, as in recipes/imagenet1k_vit_s16.yaml; weak scaling gives each GPU one."""
    tokens: int = 4_096
    """Target tokens of a GPU's micro-batch, as in recipes/wmt14_en_de_base.yaml."""
    all_images: int = 4_096
    """Images of an update in strong scaling. Dosovitskiy et al. (2021), table 3."""
    all_tokens: int = 400_000
    """Target tokens of an update in strong scaling, as in recipes/wmt14_en_de_big.yaml. Ott et al. (2018)."""
    critical_images: int = 20_000
    """Critical batch. Assumption: McCandlish et al. (2018), abstract, say tens of thousands for ImageNet."""
    critical_tokens: int = 400_000
    """Critical batch. Assumption: the largest with which Ott et al. (2018) trained on WMT14."""
    length: int = 32
    """Tokens of a sentence, for the small part of the work that grows with its square. Assumption."""
    bucket: float = 25.0
    """MiB of gradients that DDP reduces at a time. PyTorch, torch/nn/parallel/distributed.py."""
    activation: float = 34.0
    """Bytes kept for each feature of a token in an encoder block. Korthikanti et al. (2022), equation 6."""

    def __post_init__(self) -> None:
        if not 0 < self.cluster.mfu <= 1 or not 0 < self.cluster.overlap <= 1:
            raise ValueError("--cluster.mfu and --cluster.overlap are shares: choose more than 0, and at most 1.")
        if not self.gpus or any(count < 1 or count % self.cluster.node for count in self.gpus):
            raise ValueError(f"--gpus {list(self.gpus)}: choose whole nodes of {self.cluster.node}.")


class Shape(NamedTuple):
    """What the closed forms need of a model and its batches."""

    name: str
    block: BlockConfig
    encoder: int
    decoder: int
    """Blocks; a ViT has no decoder."""
    tokens: int
    """Length of a sequence."""
    patch: int
    """Numbers of a patch; 0 for text."""
    micro: int
    """Examples of a micro-batch, of an update in strong scaling, and of the critical batch."""
    batch: int
    critical: int

    @property
    def blocks(self) -> int:
        """Encoder and decoder blocks."""
        return self.encoder + self.decoder

    @property
    def parameters(self) -> int:
        """Numbers that are learned."""
        dim, hidden = self.block.dim, self.block.hidden_dim
        attention, norm = 4 * dim * (dim + 1), 2 * dim
        feed_forward = dim * (hidden + 1) + hidden * (dim + 1)
        blocks = self.blocks * (attention + feed_forward + 2 * norm) + self.decoder * (attention + norm)
        if not self.patch:
            return blocks + VOCABULARY * dim
        return blocks + norm + dim * (self.patch + 1) + dim + self.tokens * dim + CLASSES * (dim + 1)

    @property
    def forward(self) -> float:
        """Operations of a forward pass over an example, two a multiplication; what a causal mask hides is counted."""
        dim, hidden, length = self.block.dim, self.block.hidden_dim, self.tokens
        attention = 8 * dim * dim * length + 4 * dim * length**2
        blocks = self.blocks * (attention + 4 * dim * hidden * length) + self.decoder * attention
        if not self.patch:
            return blocks / length + 2 * dim * VOCABULARY
        unread = 4 * dim * (dim + hidden + length)  # of a token in the last block, where only the class token is read
        return blocks + (2 * dim * self.patch - unread) * (length - 1) + 2 * dim * CLASSES

    def work(self, cluster: Cluster) -> float:
        """Seconds of the forward (a third) and backward pass (two thirds) over an example on one GPU."""
        return 3 * self.forward / (cluster.peak * 1e12 * cluster.mfu)


def shapes(recipe: Recipe) -> list[Shape]:
    """Read the presets."""
    folder, found = Path(recipes.__file__).parent / "presets", []
    for name in recipe.presets:
        path = folder / f"{name}.yaml"
        if name.startswith("vit"):
            model = load_config(Images, path).model
            (height, width), (rows, columns) = model.image_size, model.vit.patch_size
            sizes = model.vit.depth, 0, 1 + height // rows * (width // columns), CHANNELS * rows * columns
            batches = recipe.images, recipe.all_images, recipe.critical_images
        else:
            model = load_config(Translation, path).model
            sizes = model.encoder_depth, model.decoder_depth, recipe.length, 0
            batches = recipe.tokens, recipe.all_tokens, recipe.critical_tokens
        found.append(Shape(name, model.block, *sizes, *batches))
    return found


def move(cluster: Cluster, size: float, gpus: int, passes: int) -> float:
    """Seconds of a collective over `size` bytes: an all-reduce makes 2 passes, all-gather and reduce-scatter 1.

    All-reduce is the faster of ring and tree, of which NCCL chooses; the others are rings.
    """
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / cluster.node)
    speed = 1e9 * (cluster.nvlink if nodes == 1 else min(cluster.nvlink, cluster.adapters * cluster.adapter))
    steps = (gpus - nodes) * cluster.ring[0] + (nodes - 1) * cluster.ring[1]
    ring = (cluster.start + passes * steps) / 1e6 + passes * size * (gpus - 1) / gpus / (speed * cluster.shares[0])
    steps = (min(gpus, cluster.node) - 1) * cluster.tree[0] + math.log2(nodes) * cluster.tree[1]
    tree = (cluster.start + 2 * steps) / 1e6 + 2 * size / (speed * cluster.shares[1])
    return ring if passes == 1 else min(ring, tree)


def reduction(recipe: Recipe, shape: Shape, gpus: int, width: int = FLOAT32) -> tuple[float, float]:
    """Seconds to all-reduce all gradients of `width` bytes, and those of the last bucket, which nothing hides."""
    size, bucket = width * shape.parameters, recipe.bucket * 2**20
    last = move(recipe.cluster, min(size, bucket), gpus, 2)
    return max(1.0, size / bucket) * last, last


def waiting(recipe: Recipe, shape: Shape, gpus: int, examples: float, sharded: Sharded) -> float:
    """Seconds of an update in which a GPU with so many examples waits for communication.

    DDP reduces once an update, behind the backward pass of the last micro-batch. FSDP2 gathers each block, one ahead,
    before both passes of every micro-batch, and reduces the gradients of the last.
    """
    cluster, micros = recipe.cluster, math.ceil(examples / shape.micro)
    hides = examples / micros * shape.work(cluster) / 3 * cluster.overlap
    counting = move(cluster, 4, gpus, 2)  # the targets of the update, before its first micro-batch
    if sharded == "no":
        total, last = reduction(recipe, shape, gpus)
        return counting + max(total - 2 * hides, last)
    group, units = gpus if sharded == "all" else cluster.node, shape.blocks + 1  # a unit for what is no block
    size = BF16 * shape.parameters / units
    # Between nodes, the shards of a node are reduced side by side, each GPU with its part of the adapters.
    alone = replace(cluster, node=1, adapters=1, adapter=cluster.adapter * cluster.adapters / cluster.node)
    gather = move(cluster, size, group, 1)
    reduce = gather + move(alone, size / group, gpus // group, 2)
    forward, backward = max(units * gather - hides, gather), max(units * gather - 2 * hides, 0.0)
    last = max(units * (gather + reduce) - 2 * hides, reduce)
    return counting + micros * forward + (micros - 1) * backward + last


def update(recipe: Recipe, shape: Shape, gpus: int, examples: float, sharded: Sharded = "no") -> float:
    """Seconds of an update in which each GPU has so many examples."""
    shards = {"no": 1, "node": recipe.cluster.node, "all": gpus}[sharded]
    adam = 28 * shape.parameters / shards / (recipe.cluster.hbm * 1e9)  # reads 4 numbers of each weight, writes 3
    waits = waiting(recipe, shape, gpus, examples, sharded) if gpus > 1 else 0.0
    return examples * shape.work(recipe.cluster) + adam + waits


def weak(recipe: Recipe, shape: Shape, gpus: int, sharded: Sharded = "no") -> float:
    """Time of an update with a micro-batch on one GPU, over that with a micro-batch on each GPU."""
    return update(recipe, shape, 1, shape.micro) / update(recipe, shape, gpus, shape.micro, sharded)


def strong(recipe: Recipe, shape: Shape, gpus: int) -> float:
    """Time of an update on one GPU, over the sum of the times of all GPUs that share its batch."""
    return update(recipe, shape, 1, shape.batch) / (gpus * update(recipe, shape, gpus, shape.batch / gpus))


def hidden_from(recipe: Recipe, shape: Shape, gpus: int) -> float:
    """Examples of a micro-batch from which on the backward pass hides the whole reduction of DDP."""
    return reduction(recipe, shape, gpus)[0] / (shape.work(recipe.cluster) * 2 / 3 * recipe.cluster.overlap)


def memory(recipe: Recipe, shape: Shape, shards: int, *, recompute: bool) -> float:
    """Bytes of a GPU for a micro-batch: weights, gradients and moments in float32, bf16 weights, activations.

    A decoder block keeps 13/34 more, for a second attention (11) and norm (2). Recomputing keeps the float32 inputs of
    all blocks, for the decoder with keys and values of the memory, and everything of one block at a time.
    """
    tokens = shape.micro * (shape.tokens if shape.patch else 1)
    kept = recipe.activation * (shape.blocks + shape.decoder * 13 / 34)
    if recompute:
        kept = 4 * (shape.blocks + shape.decoder) + recipe.activation * (1 + bool(shape.decoder) * 13 / 34)
    casts = 2 * shape.parameters * (1 if shards == 1 else 2 / (shape.blocks + 1))
    return 16 * shape.parameters / shards + casts + tokens * shape.block.dim * kept


def sheets(recipe: Recipe) -> list[Sheet]:
    """Calculate all tables."""
    counts, models = recipe.gpus, shapes(recipe)
    few = counts[0], counts[len(counts) // 2], counts[-1]

    def sheet(title: str, gpus: Sequence[int], cell: Callable[[Shape, int], str]) -> Sheet:
        rows = [[each.name, *(cell(each, count) for count in gpus)] for each in models]
        return title, ["GPUs", *(f"{count:,}" for count in gpus)], rows

    def percent(title: str, share: Callable[[Shape, int], float]) -> Sheet:
        return sheet(title, counts, lambda each, gpus: f"{share(each, gpus):.0%}")

    def worth(each: Shape, gpus: int) -> float:
        return weak(recipe, each, gpus) / (1 + gpus * each.micro / each.critical)

    def reducing(each: Shape, gpus: int) -> str:
        return " / ".join(f"{1e3 * reduction(recipe, each, gpus, width)[0]:.1f}" for width in (FLOAT32, BF16))

    sizes, space = [], []
    for each in models:
        sent = (f"{passes * each.parameters / 1e6:,.0f}" for passes in (2 * FLOAT32, 2 * BF16, 3 * BF16))
        milliseconds = f"{1e3 * each.micro * each.work(recipe.cluster):.1f}"
        sizes.append([each.name, f"{each.parameters:,}", f"{each.forward / 1e9:.3g}", milliseconds, *sent])
        kept = (memory(recipe, each, shards, recompute=again) for shards in (1, 8) for again in (False, True))
        space.append([each.name, *(f"{count / 1e9:.1f}" for count in kept)])
    size = ["model", "parameters", "GFLOP forward", "ms a micro-batch", "DDP float32", "DDP bf16", "FSDP2 bf16"]
    return [
        ("Models, and MB a GPU sends in an update, to be multiplied by (N-1)/N", size, sizes),
        ("GB with a micro-batch", ["model", "DDP", "DDP, recompute", "FSDP2 over 8", "over 8, recompute"], space),
        sheet("Milliseconds to reduce all gradients, float32 / bf16", few, reducing),
        percent("Weak scaling, DDP, float32", partial(weak, recipe)),
        percent("Weak scaling, FSDP2 over all GPUs, bf16", partial(weak, recipe, sharded="all")),
        percent("Weak scaling, FSDP2 over the GPUs of a node, bf16", partial(weak, recipe, sharded="node")),
        percent("Weak scaling, DDP, float32, times what an example is worth", worth),
        percent("Strong scaling, DDP, float32", partial(strong, recipe)),
        sheet("Micro-batch that hides DDP, examples", few, lambda each, n: f"{hidden_from(recipe, each, n):,.0f}"),
    ]


def main(recipe: Recipe) -> None:
    """Print all tables."""
    for title, header, rows in sheets(recipe):
        table = Table(header[0], title=title, title_justify="left", box=box.MARKDOWN)
        for name in header[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        Console(width=120).print(table)


if __name__ == "__main__":
    launch(Recipe, main)
