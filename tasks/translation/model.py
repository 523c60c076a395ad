"""The encoder-decoder Transformer for translation (Vaswani et al. 2017), and the choice of a model."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from tasks.translation.embeddings import Tie, make_embeddings, make_output
from tasks.translation.recurrent import RecurrentModel
from tasks.translation.recurrent_layers import RecurrentConfig
from transformer_core import BlockConfig, CachedState, Decoder, Encoder, FactoredLogits, Memory


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """Size and shape of the model."""

    kind: Literal["transformer", "recurrent"] = "transformer"
    """Attention alone, of `block` and the two depths, or recurrent layers, of `recurrent`."""
    block: BlockConfig = field(default_factory=BlockConfig)
    """Every encoder and decoder block."""
    encoder_depth: int = 3
    """Encoder blocks; they are cheap at translation time, because they see each sentence once."""
    decoder_depth: int = 3
    """Decoder blocks; they run once per token of the translation."""
    tie: Tie = "all"
    """Share one matrix between the target embedding and the output layer, or with the source embedding as well.

    "all" needs a joint vocabulary (Press and Wolf 2017)."""
    recurrent: RecurrentConfig = field(default_factory=RecurrentConfig)
    """What a recurrent model has in place of blocks."""

    def __post_init__(self) -> None:
        for name in ("encoder_depth", "decoder_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} leaves no block: choose 1 or more.")


class TranslationModel(nn.Module):
    """Source tokens in, for each target position the factors of its logits out."""

    def __init__(
        self, config: TranslationConfig, source_vocabulary: int, target_vocabulary: int, *, pad_id: int
    ) -> None:
        super().__init__()
        self.target_embedding, self.source_embedding = make_embeddings(
            config.block, source_vocabulary, target_vocabulary, config.tie, pad_id=pad_id
        )
        self.encoder = Encoder(config.block, config.encoder_depth)
        self.decoder = Decoder(config.block, config.decoder_depth)
        self.output = make_output(self.target_embedding, config.tie)

    def read(self, source: Tensor, mask: Tensor | None) -> Memory:
        """Encode source tokens (batch, source length) and project them for the decoder; `mask` is True at real ones."""
        return self.decoder.read(self.encoder(self.source_embedding(source), mask), mask)

    def start(
        self, source: Tensor, mask: Tensor | None, *, beams: int, capacity: int, pieces: Tensor | None = None
    ) -> CachedState:
        """Return the state of a search for translations of `source`, of up to `capacity` pieces, as `CachedState` says.

        `source` and `mask` are those of `read`.
        """
        memory = self.read(source, mask)
        given = self.decoder, self.target_embedding, self.output, memory
        return CachedState(*given, beams=beams, capacity=capacity, pieces=pieces)

    def forward(self, source: Tensor, mask: Tensor | None, target: Tensor, positions: Tensor) -> FactoredLogits:
        """Return the factors of the logits at some positions of the target, usually the real ones.

        Args:
            source: (batch, source length) tokens, padded on the right.
            mask: (batch, 1, 1, source length), True at real tokens; None where nothing is padded.
            target: (batch, target length) tokens that each step has seen, beginning with bos, padded on the right.
            positions: (rows,) places in the flattened target whose next token is asked for.
        """
        states = self.decoder(self.target_embedding(target), self.read(source, mask))
        return FactoredLogits(states.flatten(0, 1)[positions], self.output.weight)


EncoderDecoder = TranslationModel | RecurrentModel
"""A model that translates: called for the factors of the logits of a known target, started for a search."""


def make_model(
    config: TranslationConfig, source_vocabulary: int, target_vocabulary: int, *, pad_id: int
) -> EncoderDecoder:
    """Return a fresh model of the kind that is asked for. Raises ValueError where the settings do not go together."""
    sizes = source_vocabulary, target_vocabulary
    if config.kind == "recurrent":
        return RecurrentModel(config.recurrent, *sizes, tie=config.tie, pad_id=pad_id)
    return TranslationModel(config, *sizes, pad_id=pad_id)
