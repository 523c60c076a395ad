"""Recurrent encoder-decoders for translation: the designs that led to the Transformer, as one family.

The decoder knows of the source sentence by

- `context: every_step`: the encoder's last state, an input of each step and of the output (Cho et al. 2014);
- `context: initial`: the state that it begins with, and no more; best of a source that is read from its end to its
  beginning, `reverse_source` (Sutskever et al. 2014);
- `context: attention`, `query: previous`: attention by the state before a step, an input of that step (Bahdanau et al.
  2015, with `score: additive`);
- `context: attention`, `query: new`: attention by the state after it, which joins that state (Luong et al. 2015,
  global attention, with `score: bilinear` or `dot`, without input feeding).

In all of them the decoder begins with the encoder's last states, layer by layer, without a layer between.
"""

from torch import Tensor, nn

from tasks.translation.embeddings import Tie, make_embeddings, make_output
from tasks.translation.recurrent_layers import Encoder, Memory, RecurrentConfig, make_decoder
from transformer_core import BlockConfig, Dropout, FactoredLogits, Linear
from transformer_core.packing import PackedLinear


class RecurrentModel(nn.Module):
    """Source tokens in, for each target position the factors of its logits out."""

    def __init__(
        self, config: RecurrentConfig, source_vocabulary: int, target_vocabulary: int, *, tie: Tie, pad_id: int
    ) -> None:
        super().__init__()
        # Of the block only what an embedding asks for; order comes with the recurrence.
        block = BlockConfig(dim=config.dim, num_heads=1, position="none", dropout=config.dropout)
        self.target_embedding, self.source_embedding = make_embeddings(
            block, source_vocabulary, target_vocabulary, tie, pad_id=pad_id
        )
        self.encoder = Encoder(config)
        self.decoder = make_decoder(config)
        self.dropout = Dropout(config.dropout)
        self.output = make_output(self.target_embedding, tie)

    def read(self, source: Tensor, mask: Tensor | None) -> Memory:
        """Encode source tokens (batch, source length); `mask`, (batch, 1, 1, source length), is True at real ones."""
        states, last = self.encoder(self.source_embedding(source), mask)
        return Memory(self.decoder.keys(states)[:, None], states[:, None], mask, last)

    def start(
        self, source: Tensor, mask: Tensor | None, *, beams: int, capacity: int, pieces: Tensor | None = None
    ) -> "RecurrentState":
        """Return the state of a search for translations of `source`, with `beams` hypotheses of each sentence.

        `source` and `mask` are those of `read`; `pieces`, (candidates,) ascending, are the only ones that may follow,
        and are then what tokens and logits count. Nothing grows with the length, so any `capacity` is the same.
        """
        return RecurrentState(self, self.read(source, mask), beams=beams, pieces=pieces)

    def forward(self, source: Tensor, mask: Tensor | None, target: Tensor, positions: Tensor) -> FactoredLogits:
        """Return the factors of the logits at some positions of the target, usually the real ones.

        Args:
            source: (batch, source length) tokens, padded on the right.
            mask: (batch, 1, 1, source length), True at real tokens; None where nothing is padded.
            target: (batch, target length) tokens that each step has seen, beginning with bos, padded on the right.
            positions: (rows,) places in the flattened target whose next token is asked for.
        """
        memory = self.read(source, mask)
        features, _ = self.decoder(self.target_embedding(target), memory, memory.last)
        return FactoredLogits(self.dropout(features.flatten(0, 1)[positions]), self.output.weight)


class RecurrentState:
    """The memory of each sentence and the hidden state of each hypothesis: a `DecoderState` for `search`."""

    def __init__(self, model: RecurrentModel, memory: Memory, *, beams: int, pieces: Tensor | None = None) -> None:
        self.decoder, self.embedding, self.pieces = model.decoder, model.target_embedding, pieces
        self.output: Linear | PackedLinear = model.output if pieces is None else model.output.take(pieces)
        self.memory, self.beams = memory, beams
        self.hidden = tuple(part.repeat_interleave(beams, 1) for part in memory.last)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each hypothesis, (rows,), and return the logits of the next, (rows, vocabulary)."""
        tokens = tokens if self.pieces is None else self.pieces[tokens]
        features, self.hidden = self.decoder(self.embedding(tokens[:, None]), self.memory, self.hidden)
        return self.output(features[:, 0])

    def reorder(self, parents: Tensor) -> None:
        """Let hypothesis i go on from hypothesis `parents[i]` of the same sentence."""
        self.hidden = tuple(part[:, parents] for part in self.hidden)

    def keep(self, sentences: Tensor) -> None:
        """Go on with these sentences, in this order, and with their hypotheses."""
        self.memory = self.memory.keep(sentences)
        self.hidden = tuple(part.unflatten(1, (-1, self.beams))[:, sentences].flatten(1, 2) for part in self.hidden)
