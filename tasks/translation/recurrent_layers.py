"""Recurrent layers for translation: an encoder, and decoders that differ in what they know of the source."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from transformer_core import Additive, Linear, Score, attention, make_score
from transformer_core.score import ScoreName

Hidden = tuple[Tensor, ...]
"""What recurrent cells carry on, (depth, rows, dim) each: the state, and for LSTM the memory cell as well."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Size and shape of a recurrent model."""

    cell: Literal["gru", "lstm"] = "gru"
    """Gated recurrent units (Cho et al. 2014), or long short-term memory (Hochreiter and Schmidhuber 1997)."""
    context: Literal["every_step", "initial", "attention"] = "attention"
    """What the decoder knows of the source: its last state at every step, that state to begin with, or attention."""
    query: Literal["previous", "new"] = "new"
    """Attention is asked for by the decoder's state before a step, and what is found enters it, or by the state after
    it. The first needs a loop over the target, so it trains more slowly."""
    score: ScoreName = "bilinear"
    """How attention compares queries and keys."""
    bidirectional: bool = True
    """The encoder reads from both ends; each direction has half of `dim`."""
    reverse_source: bool = False
    """The encoder reads from the end to the beginning, so that the first words of both sentences are neighbours."""
    depth: int = 1
    """Layers of the encoder, and of the decoder."""
    dim: int = 256
    """Features of embeddings and of states."""
    dropout: float = 0.1
    """Share of features dropped after the embedding, between layers and before the output; never from step to step."""

    def __post_init__(self) -> None:
        for name in ("depth", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"--model.recurrent.{name} {getattr(self, name)}: choose 1 or more.")
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"--model.recurrent.dropout {self.dropout} is no share: choose 0 or more, and less than 1."
            )
        if self.bidirectional and self.dim % 2:
            raise ValueError(
                f"--model.recurrent.bidirectional gives each direction half of --model.recurrent.dim {self.dim}: "
                "choose an even one."
            )
        if self.bidirectional and self.reverse_source:
            raise ValueError(
                "--model.recurrent.reverse_source changes nothing for an encoder that reads from both ends: give "
                "--model.recurrent.bidirectional false, or leave it out."
            )


class Memory(NamedTuple):
    """What the decoder reads; it never grows."""

    keys: Tensor
    """(sentences, 1, source length, dim), what queries are compared with."""
    values: Tensor
    """(sentences, 1, source length, dim), the encoder's states."""
    mask: Tensor | None
    """(sentences, 1, 1, source length), True at real source positions; None where there is no padding."""
    last: Hidden
    """What the encoder ended with, (depth, sentences, dim) each."""

    def keep(self, sentences: Tensor) -> "Memory":
        """Return the memory of these sentences, (kept,), in this order."""
        mask = None if self.mask is None else self.mask[sentences]
        last = tuple(part[:, sentences] for part in self.last)
        return Memory(self.keys[sentences], self.values[sentences], mask, last)


class Encoder(nn.Module):
    """Recurrent layers over the source; padding is not read."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.reverse, self.depth = config.reverse_source, config.depth
        width = config.dim // 2 if config.bidirectional else config.dim
        self.cells = make_cells(config, config.dim, width, bidirectional=config.bidirectional)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Hidden]:
        """Return the states of the last layer, (batch, source length, dim), and what all layers end with.

        Args:
            x: (batch, source length, dim) embedded tokens, padded on the right.
            mask: (batch, 1, 1, source length), True at real tokens; None where nothing is padded. A GPU is waited for,
                once, because it has to be told the lengths.
        """
        if self.reverse:
            x = reverse(x, mask)
        if mask is None:
            states, hidden = self.cells(x)
        else:
            lengths = mask.sum((1, 2, 3)).cpu()
            packed, hidden = self.cells(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            states, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.size(1))
        parts = hidden if isinstance(hidden, tuple) else (hidden,)
        # Of each layer one direction after the other; side by side they are a state of the decoder.
        return states, tuple(part.unflatten(0, (self.depth, -1)).transpose(1, 2).flatten(2) for part in parts)


class InitialDecoder(nn.Module):
    """Knows of the source by the state it begins with (Sutskever et al. 2014, section 2)."""

    def __init__(self, config: RecurrentConfig, *, input_dim: int | None = None) -> None:
        super().__init__()
        self.cells = make_cells(config, input_dim or config.dim, config.dim)

    def keys(self, states: Tensor) -> Tensor:
        """Return what queries are compared with, made once of the encoder's states; both (..., source length, dim)."""
        return states

    def forward(self, x: Tensor, memory: Memory, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Decode embedded tokens that follow those of which `hidden` has come.

        Args:
            x: (rows, length, dim); `rows` may be a multiple of the sentences of the memory, sentence by sentence.
            memory: what was read.
            hidden: (depth, rows, dim) each.

        Returns:
            Features for the output layer, (rows, length, dim), and the hidden state after the last token.
        """
        return run_cells(self.cells, x, hidden)


class EveryStepDecoder(InitialDecoder):
    """Sees the encoder's last state at each step and in the output (Cho et al. 2014, section 2.2 and appendix A.1)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config, input_dim=2 * config.dim)
        self.combine = Maxout(3 * config.dim, config.dim)

    def forward(self, x: Tensor, memory: Memory, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Decode as `InitialDecoder` says."""
        last = memory.last[0][-1]
        context = last.repeat_interleave(len(x) // len(last), 0)[:, None].expand_as(x)
        states, hidden = run_cells(self.cells, torch.cat([x, context], -1), hidden)
        return self.combine(states, x, context), hidden


class AttentionDecoder(InitialDecoder):
    """Attends by the state after a step, and joins what it finds with that state (Luong et al. 2015, section 3.1)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.score = make_projected_score(config)
        self.combine = Linear(2 * config.dim, config.dim, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """Project the keys where the score does."""
        return project_keys(self.score, states)

    def forward(self, x: Tensor, memory: Memory, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Decode as `InitialDecoder` says."""
        states, hidden = run_cells(self.cells, x, hidden)
        context = attend(states, memory, self.score)
        return torch.tanh(self.combine(torch.cat([context, states], -1))), hidden


class RecurrentAttentionDecoder(InitialDecoder):
    """Attends by the state before a step; what it finds enters the step (Bahdanau et al. 2015, appendix A.2.2)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config, input_dim=2 * config.dim)
        self.score = make_projected_score(config)
        self.combine = Maxout(3 * config.dim, config.dim)

    def keys(self, states: Tensor) -> Tensor:
        """Project the keys where the score does."""
        return project_keys(self.score, states)

    def forward(self, x: Tensor, memory: Memory, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Decode as `InitialDecoder` says, one token after the other."""
        states: list[Tensor] = []
        contexts: list[Tensor] = []
        for token in x.split(1, dim=1):
            context = attend(hidden[0][-1][:, None], memory, self.score)
            state, hidden = run_cells(self.cells, torch.cat([token, context], -1), hidden)
            states.append(state)
            contexts.append(context)
        return self.combine(torch.cat(states, 1), x, torch.cat(contexts, 1)), hidden


class Maxout(nn.Module):
    """The larger one of each pair of features (Goodfellow et al. 2013) of all that the output depends on."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.pairs = Linear(input_dim, 2 * dim)

    def forward(self, *parts: Tensor) -> Tensor:
        """Join parts, (..., input_dim) together, and return (..., dim)."""
        return self.pairs(torch.cat(parts, -1)).unflatten(-1, (-1, 2)).amax(-1)


class ProjectedAdditive(Score):
    """The additive score for keys that are already projected: that is done once, however many steps ask."""

    def __init__(self, additive: Additive) -> None:
        super().__init__()
        self.additive, self.pair_width = additive, additive.pair_width

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Compare queries (batch, heads, queries, width) with projected keys (batch, heads, keys, hidden features)."""
        hidden = torch.tanh(self.additive.query(query)[..., :, None, :] + key[..., None, :, :])
        return self.additive.weight(hidden).squeeze(-1)


def make_cells(config: RecurrentConfig, input_dim: int, dim: int, *, bidirectional: bool = False) -> nn.GRU | nn.LSTM:
    """Build recurrent layers, the first one of `input_dim` features; PyTorch's GRU resets after its product."""
    kind = nn.LSTM if config.cell == "lstm" else nn.GRU
    dropout = config.dropout if config.depth > 1 else 0.0
    return kind(input_dim, dim, config.depth, batch_first=True, dropout=dropout, bidirectional=bidirectional)


def run_cells(cells: nn.GRU | nn.LSTM, x: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
    """Return the states of the last layer for x, (rows, length, features), and what all layers end with."""
    if isinstance(cells, nn.LSTM):
        states, (state, cell) = cells(x, (hidden[0], hidden[1]))
        return states, (state, cell)
    states, state = cells(x, hidden[0])
    return states, (state,)


def make_decoder(config: RecurrentConfig) -> InitialDecoder:
    """Build the decoder that a configuration names."""
    match config.context:
        case "initial":
            return InitialDecoder(config)
        case "every_step":
            return EveryStepDecoder(config)
        case "attention":
            return RecurrentAttentionDecoder(config) if config.query == "previous" else AttentionDecoder(config)


def make_projected_score(config: RecurrentConfig) -> Score:
    """Build the score of attention, for keys that `project_keys` has made."""
    score = make_score(config.score, config.dim)
    return ProjectedAdditive(score) if isinstance(score, Additive) else score


def project_keys(score: Score, states: Tensor) -> Tensor:
    """Do what a score does to keys alone, (..., keys, width), where that is worth doing once."""
    return score.additive.key(states) if isinstance(score, ProjectedAdditive) else states


def attend(query: Tensor, memory: Memory, score: Score) -> Tensor:
    """Return what each query finds in its sentence; queries (rows, length, dim), found values likewise.

    The rows of a sentence, one after the other, are queries of its one memory.
    """
    queries = query.reshape(len(memory.keys), 1, -1, query.size(-1))
    return attention(queries, memory.keys, memory.values, score=score, mask=memory.mask).view_as(query)


def reverse(x: Tensor, mask: Tensor | None) -> Tensor:
    """Turn round what is real of each sequence, (batch, length, features), padded on the right as `mask` says."""
    if mask is None:
        return x.flip(1)
    places = torch.arange(x.size(1), device=x.device)
    mirrored = mask.sum((1, 2, 3))[:, None] - 1 - places
    return x.gather(1, mirrored.where(mirrored >= 0, places)[..., None].expand_as(x))
