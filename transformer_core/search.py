"""Search over any decoder: greedy, beam, sampling; ids in, ids out, no knowledge of text.

A decoder takes part by the three methods of DecoderState. Outputs do not depend on the batch a sentence sits in,
beyond the rounding of the decoder itself.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transformer_core.beam import Beams
from transformer_core.cache import round_up
from transformer_core.constraints import Constraints
from transformer_core.draws import Draws
from transformer_core.search_config import Hypothesis, SearchConfig

__all__ = ["DecoderState", "Ensemble", "Hypothesis", "SearchConfig", "search"]


@runtime_checkable
class DecoderState(Protocol):
    """The state of `sentences x rows_per_sentence` hypotheses; the rows of a sentence lie together."""

    def step(self, tokens: Int[Tensor, "rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Read the last token of each hypothesis; return the logits of the next one, which the search may write over.

        Called once per position, at most one time more than the longest output has tokens.
        """
        ...

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Let each row go on from the row `parents` names, always one of the same sentence."""
        ...

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with the sentences at these positions, in this order; their rows follow, and most keep their places."""
        ...


class Ensemble:
    """Several decoders as one: the mean of their probabilities. They share a vocabulary, not a state.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, states: Sequence[DecoderState]) -> None:
        if not states:
            raise ValueError("An ensemble needs at least one decoder.")
        self.states = states

    def step(self, tokens: Int[Tensor, "rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Return the logarithm of the mean probability."""
        members = torch.stack([_log_softmax(state.step(tokens)) for state in self.states])
        return members.logsumexp(dim=0) - math.log(len(self.states))

    def reorder(self, parents: Int[Tensor, "rows"]) -> None:
        """Reorder every member."""
        for state in self.states:
            state.reorder(parents)

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Keep the same sentences in every member."""
        for state in self.states:
            state.keep(sentences)


@torch.inference_mode()
def search(
    state: DecoderState,
    config: SearchConfig,
    *,
    max_lengths: Int[Tensor, "sentences"],
    bos_id: int,
    eos_id: int,
    banned: Sequence[int] = (),
    prefix: Sequence[Sequence[int]] | None = None,
    sentence_ids: Sequence[int] | None = None,
    scores: bool = True,
) -> list[list[Hypothesis]]:
    """Return up to `n_best` hypotheses per sentence, best first; fewer only where fewer exist.

    `state` is fresh and has `config.rows_per_sentence` rows per sentence. `max_lengths` says how many tokens each
    sentence may get before its end, `config.max_length` at most; the search runs on its device. `banned` are
    never generated, but still hold probability; a `prefix` may hold them. A prefix is forced upon its sentence and its
    log-probability is counted. Draws follow `sentence_ids`, by default the positions in the batch. Without `scores` a
    greedy search goes by the logits as they are, which is quicker, and its hypotheses have scores of nan.

    Raises:
        ValueError: the prefixes do not fit, or ids are none of the decoder's.
        FloatingPointError: the decoder gives NaN.
    """
    sentences, rows, device = len(max_lengths), config.rows_per_sentence, max_lengths.device
    if sentences == 0:
        return []
    limits: list[int] = max_lengths.clamp(max=config.max_length).tolist()
    prefix = [()] * sentences if prefix is None else prefix
    constraints = Constraints(config, limits, eos_id, device, banned, prefix)
    if config.sample or config.beams == 1:
        sentence_ids = range(sentences) if sentence_ids is None else sentence_ids
        if len(sentence_ids) != sentences:
            raise ValueError(f"{len(sentence_ids)} sentence_ids for {sentences} sentences: give one each.")
        frontier = Draws(config, limits, eos_id, device, sentence_ids)
    else:
        frontier = Beams(config, limits, eos_id, device)
    plain = not scores and config.beams == 1 and not config.sample
    found: dict[int, list[Hypothesis]] = {}
    places = list(range(sentences))  # in the batch of the caller, of the sentences still searched
    tokens = torch.full((sentences * rows,), bos_id, device=device)
    patience = 1 if device.type == "cpu" else 4  # steps between two questions to the device: each waits for it
    for step in range(1, max(limits) + 2):
        logits = state.step(tokens)
        if step == 1 and not all(0 <= id < logits.size(1) for id in (eos_id, *banned)):
            raise ValueError(f"eos_id={eos_id} or banned={list(banned)} is no id of {logits.size(1)} tokens.")
        log_probs = logits if plain else _log_softmax(logits)
        constraints.apply(log_probs, frontier.history)
        tokens, parents = frontier.advance(log_probs)
        stopped: list[bool] = frontier.stopped.tolist() if step % patience == 0 else [False]
        if all(stopped):
            break
        if parents is not None:
            state.reorder(parents)
        size = batch_size(stopped.count(False), device)
        if size < len(stopped):
            # Those that go on move from behind into the places of the stopped; others stay where they are.
            behind = iter([i for i in range(size, len(stopped)) if not stopped[i]])
            staying = [next(behind, i) if stopped[i] else i for i in range(size)]
            leaving = sorted(set(range(len(stopped))).difference(staying))
            found.update(zip([places[i] for i in leaving], frontier.hypotheses(leaving), strict=True))
            kept = torch.tensor(staying, device=device)
            for part in (state, constraints, frontier):
                part.keep(kept)
            tokens = tokens.view(-1, rows)[kept].flatten()
            places = [places[i] for i in staying]
    found.update(zip(places, frontier.hypotheses(list(range(len(places)))), strict=True))
    if any(math.isnan(hypothesis.score) for hypotheses in found.values() for hypothesis in hypotheses):
        raise FloatingPointError("The decoder returned NaN: its weights or its input are broken.")
    if plain:
        return [[Hypothesis(found[place][0].ids, math.nan, math.nan)] for place in range(sentences)]
    return [found[place] for place in range(sentences)]


def batch_size(alive: int, device: torch.device) -> int:
    """Return how many sentences to go on with where so many are alive: few sizes, so that kernels are made for few.

    oneDNN makes a kernel for each shape, which takes longer than a step of a small model. So does a step that is
    recorded anew on a GPU, and there few sentences take as long as 64.
    """
    if device.type != "cpu":
        return max(64, 1 << (alive - 1).bit_length())
    return round_up(alive, 16) if alive > 8 else 1 << (alive - 1).bit_length()


def _log_softmax(logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
    return logits.log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
