"""A model that reads an image and writes a text: the encoder of patches, the decoder of tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from transformer_core import (
    BlockConfig,
    CachedState,
    Decoder,
    Derived,
    Encoder,
    FactoredLogits,
    Linear,
    Memory,
    PatchEmbedding,
    TokenEmbedding,
    sinusoidal_grid,
)

PAD, BOS, EOS, UNKNOWN = range(4)


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Size and shape of the model."""

    block: BlockConfig = field(default_factory=BlockConfig)
    """Every encoder and decoder block."""
    encoder_depth: int = 4
    """Blocks that look at the patches."""
    decoder_depth: int = 2
    """Blocks that write the text."""
    patch_size: tuple[int, int] = (32, 4)
    """Height and width of a patch in pixels."""

    def __post_init__(self) -> None:
        if min(self.encoder_depth, self.decoder_depth, *self.patch_size) < 1:
            raise ValueError("--model.encoder_depth, decoder_depth and both sides of patch_size are 1 or more.")


class Reader(Derived):
    """An image in, for each position of its text the factors of the logits out."""

    def __init__(self, config: ReaderConfig, vocabulary: int, *, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        block = config.block
        self.grid = size[0] // config.patch_size[0], size[1] // config.patch_size[1]
        self.patches = PatchEmbedding(channels, block.dim, config.patch_size)
        self.register_buffer("places", torch.empty(self.grid[0] * self.grid[1], block.dim), persistent=False)
        self.derive()
        self.encoder, self.decoder = Encoder(block, config.encoder_depth), Decoder(block, config.decoder_depth)
        self.embedding = TokenEmbedding(vocabulary, block, pad_id=PAD)
        self.output = Linear(block.dim, vocabulary, bias=False)
        self.output.weight = self.embedding.tokens.weight

    places: Tensor

    def derive(self) -> None:
        """Write where the patches stand."""
        self.places.copy_(sinusoidal_grid(*self.grid, self.places.size(1)))

    def read(self, images: Tensor) -> Memory:
        """Encode images, (batch, channels, height, width) uint8, for the decoder."""
        patches = self.patches(images / 127.5 - 1).flatten(1, 2)
        return self.decoder.read(self.encoder(patches + self.places))

    def start(self, images: Tensor, *, beams: int, capacity: int) -> CachedState:
        """Return the state of a search for the text of each image."""
        given = self.decoder, self.embedding, self.output, self.read(images)
        return CachedState(*given, beams=beams, capacity=capacity)

    def forward(self, images: Tensor, target: Tensor, positions: Tensor) -> FactoredLogits:
        """Return the factors of the logits at `positions`, (tokens,), of the flattened target, (batch, length)."""
        states = self.decoder(self.embedding(target), self.read(images))
        return FactoredLogits(states.flatten(0, 1)[positions], self.output.weight)
