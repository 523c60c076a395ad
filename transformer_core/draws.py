"""Greedy search and sampling: rows that grow on their own, without a choice between them."""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transformer_core.beam import best
from transformer_core.search_config import Hypothesis, SearchConfig


class Draws:
    """The hypotheses of a greedy search or of sampling, in tensors of (sentences, rows per sentence)."""

    def __init__(
        self,
        config: SearchConfig,
        limits: Sequence[int],
        eos_id: int,
        device: torch.device,
        sentence_ids: Sequence[int],
    ) -> None:
        shape = (len(limits), config.rows_per_sentence)
        self.config, self.eos_id = config, eos_id
        self.history = torch.empty(*shape, 0, dtype=torch.long, device=device)
        self.log_probabilities = torch.zeros(shape, device=device)
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self.noise = _noise(config, sentence_ids, max(limits) + 1).to(device) if config.sample else None

    @property
    def stopped(self) -> Bool[Tensor, "sentences"]:
        """Say which sentences have all their rows ended, though these may stay in the batch for a while."""
        return self.ended.all(dim=1)

    def advance(self, log_probs: Float[Tensor, "rows vocabulary"]) -> tuple[Int[Tensor, "rows"], None]:
        """Extend every row by a token, ended ones by the end of sentence again; no row ever moves."""
        if self.noise is None:
            values, tokens = best(log_probs, 1)
        else:
            tokens = sample(log_probs, self.noise[:, :, self.history.size(2)].flatten(), self.config).unsqueeze(1)
            values = log_probs.gather(1, tokens)
        tokens = tokens.view(self.ended.shape).masked_fill(self.ended, self.eos_id)
        values = values.view(self.ended.shape).masked_fill(self.ended, 0.0)
        self.log_probabilities = self.log_probabilities + values
        self.history = torch.cat([self.history, tokens.unsqueeze(2)], dim=2)
        self.ended = tokens == self.eos_id
        return tokens.flatten(), None

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences only."""
        self.history, self.ended = self.history[sentences], self.ended[sentences]
        self.log_probabilities = self.log_probabilities[sentences]
        self.noise = None if self.noise is None else self.noise[sentences]

    def hypotheses(self, sentences: Sequence[int]) -> list[list[Hypothesis]]:
        """Return the hypotheses of some sentences, the best first; to be read when they have stopped."""
        ids: list[list[list[int]]] = self.history[sentences].tolist()
        log_probabilities: list[list[float]] = self.log_probabilities[sentences].tolist()
        return [
            sorted(map(self._hypothesis, *sentence), key=lambda hypothesis: hypothesis.score, reverse=True)
            for sentence in zip(ids, log_probabilities, strict=True)
        ]

    def _hypothesis(self, ids: list[int], log_probability: float) -> Hypothesis:
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return Hypothesis(ids, log_probability / self.config.penalty(len(ids) + 1), log_probability)


def sample(
    log_probs: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, "rows"], config: SearchConfig
) -> Int[Tensor, "rows"]:
    """Draw a token per row by inverting the cumulative distribution at `uniform`, from 0 to 1."""
    scores, tokens = log_probs / config.temperature, None
    if config.top_k:
        scores, tokens = best(scores, config.top_k)
    elif config.top_p < 1:
        scores, tokens = scores.sort(dim=1, descending=True)
    probabilities = scores.softmax(dim=1)
    if config.top_p < 1:
        before = probabilities.cumsum(dim=1) - probabilities
        probabilities = probabilities.masked_fill(before >= config.top_p, 0.0)
    cumulative = probabilities.cumsum(dim=1)
    drawn = torch.searchsorted(cumulative, uniform.unsqueeze(1) * cumulative[:, -1:], right=True)
    drawn = drawn.clamp_(max=cumulative.size(1) - 1)
    # A parallel sum need not be monotone in its last bit: never let rounding draw what has no probability.
    drawn = drawn.where(probabilities.gather(1, drawn) > 0, probabilities.argmax(dim=1, keepdim=True))
    return (drawn if tokens is None else tokens.gather(1, drawn)).squeeze(1)


def _noise(
    config: SearchConfig, sentence_ids: Sequence[int], positions: int
) -> Float[Tensor, "sentences draws positions"]:
    """Return uniform numbers from a stream of its own for every draw, so that the batch has no part in them."""

    def stream(sentence: int, draw: int) -> list[float]:
        generator = random.Random(f"{config.seed}-{sentence}-{draw}")
        return [generator.random() for _ in range(positions)]

    return torch.tensor([[stream(sentence, draw) for draw in range(config.n_best)] for sentence in sentence_ids])
