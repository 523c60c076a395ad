"""What a search over a Transformer decoder carries from step to step."""

from jaxtyping import Float, Int
from torch import Tensor

from transformer_core.decoder import Decoder, Memory
from transformer_core.embedding import TokenEmbedding
from transformer_core.linear import Linear
from transformer_core.packing import PackedLinear


class CachedState:
    """The memory of each sentence and the cache of each hypothesis: a `DecoderState` for `search`.

    A sentence is whatever `memory` has a row for: a text, an image. `pieces`, (candidates,) ascending, are the only
    tokens that may follow; tokens and logits then count among them.
    """

    def __init__(
        self,
        decoder: Decoder,
        embedding: TokenEmbedding,
        output: Linear | PackedLinear,
        memory: Memory,
        *,
        beams: int,
        capacity: int,
        pieces: Int[Tensor, "candidates"] | None = None,
    ) -> None:
        self.decoder, self.embedding, self.pieces = decoder, embedding, pieces
        self.output = output if pieces is None else output.take(pieces)
        self.memory = memory.for_steps()
        self.cache = decoder.new_cache(self.memory, capacity, beams=beams)

    def step(self, tokens: Int[Tensor, "rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token to each hypothesis and return the logits of the next one."""
        tokens = tokens if self.pieces is None else self.pieces[tokens]
        x = self.embedding(tokens[:, None], offset=self.cache.length)
        return self.output(self.decoder(x, self.memory, self.cache)[:, 0])

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Let hypothesis i go on from hypothesis `parents[i]` of the same sentence."""
        self.cache.reorder(parents)

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences, in this order, and with their hypotheses."""
        self.memory = self.memory.keep(sentences)
        self.cache.keep(sentences)
