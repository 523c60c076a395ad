"""What a search over a Transformer decoder carries from step to step."""

from collections.abc import Iterable, Iterator

from jaxtyping import Float, Int
from torch import Tensor, nn

from transformer_core.decoder import Decoder, Memory
from transformer_core.embedding import TokenEmbedding
from transformer_core.linear import Linear
from transformer_core.multihead import MultiHeadAttention
from transformer_core.packing import PackedLinear
from transformer_core.position import Learned, PositionBias, PositionTable
from transformer_core.replay import Replay


class CachedState:
    """The memory of each sentence and the cache of each hypothesis: a `DecoderState` for `search`.

    A sentence is whatever `memory` has a row for: a text, an image. `pieces`, (candidates,) ascending, are the only
    tokens that may follow; tokens and logits then count among them. With `replayed`, by default on a GPU where that can
    be done, a step is recorded and replayed; logits are then written over by the next step of any state, and all
    searches on one device belong to one thread.

    Raises:
        ValueError: `replayed` is asked for, and the decoder is not `replayable`.
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
        replayed: bool | None = None,
    ) -> None:
        self.decoder, self.embedding, self.pieces = decoder, embedding, pieces
        self.output = output if pieces is None else output.take(pieces)
        self.memory = memory.for_steps()
        if replayed is None:
            replayed = memory.keys_values[0].key.device.type == "cuda" and replayable(decoder)
        elif replayed and not replayable(decoder):
            raise ValueError("steps of this decoder differ from position to position: pass replayed=False.")
        if replayed and isinstance(embedding.position, Learned):  # a GPU cannot say politely that a row is missing
            capacity = min(capacity, len(embedding.position.weight))
        self.cache = decoder.new_cache(self.memory, capacity, beams=beams, replayed=replayed)
        self.replay = Replay() if replayed else None
        self.steps = self.reserved = 0
        # Held, because a recorded step goes on reading where a table was, also when another state has let it grow.
        self.tables = list(reserved_tables((embedding, decoder), capacity)) if replayed else []

    def step(self, tokens: Int[Tensor, "rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token to each hypothesis and return the logits of the next one.

        Raises:
            ValueError: the capacity is used up, or there are not `beams` tokens for each sentence.
        """
        sentences, beams = len(self.memory.keys_values[0].key), self.cache.beams
        if len(tokens) != sentences * beams:
            raise ValueError(
                f"{len(tokens)} tokens for {sentences} sentences of beams={beams}: build the state with the "
                "rows_per_sentence of the search, and a new one for each search."
            )
        if self.replay is None:
            return self._step(tokens)
        self.steps += 1
        if self.steps > self.reserved:
            self.reserved = self.cache.reserve(self.steps)
            self.replay.forget()
        return self.replay(self._step, tokens)

    def _step(self, tokens: Tensor) -> Tensor:
        tokens = tokens if self.pieces is None else self.pieces[tokens]
        x = self.embedding(tokens[:, None], offset=self.cache.length)
        return self.output(self.decoder(x, self.memory, self.cache)[:, 0])

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Let hypothesis i go on from hypothesis `parents[i]` of the same sentence."""
        self.cache.reorder(parents)

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences, in this order, and with their hypotheses."""
        if self.replay is not None:
            self.replay.forget()
        self.memory = self.memory.keep(sentences)
        self.cache.keep(sentences)


def reserved_tables(parts: Iterable[nn.Module], capacity: int) -> Iterator[Tensor]:
    """Let all tables of positions have so many rows, and yield them."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, PositionTable):
                module.reserve(capacity)
                yield module.table


def replayable(decoder: Decoder) -> bool:
    """Say whether a step is the same operations at every position: no biases by distance, no weights to be shown."""
    layers = [layer for layer in decoder.modules() if isinstance(layer, MultiHeadAttention)]
    return not any(isinstance(layer.position, PositionBias) or layer.record is not None for layer in layers)
