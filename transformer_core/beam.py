"""Beam search as tensors: the live and the finished hypotheses of a batch of sentences.

Source: Graves (2012); Sutskever et al. (2014). Of the 2 * beams best continuations of a sentence, those among the
first `beams` that end are finished; the best `beams` that do not end live on. A finished hypothesis is never continued.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transformer_core.search_config import Hypothesis, SearchConfig


class Beams:
    """The hypotheses of a beam search, in tensors of (sentences, beams); nothing here waits for the device."""

    def __init__(self, config: SearchConfig, limits: Sequence[int], eos_id: int, device: torch.device) -> None:
        shape = (len(limits), config.beams)
        self.config, self.eos_id = config, eos_id
        self.last_penalty = torch.tensor([config.penalty(limit + 1) for limit in limits], device=device)
        """(sentences,): the length penalty of the longest possible hypothesis."""
        self.history = torch.empty(*shape, 0, dtype=torch.long, device=device)
        self.log_probabilities = torch.full(shape, -torch.inf, device=device)
        self.log_probabilities[:, 0] = 0.0  # one live beam to branch from: equal ones would give equal hypotheses
        self.stopped = torch.zeros(shape[0], dtype=torch.bool, device=device)
        """Sentences whose hypotheses no longer change, though their rows may stay in the batch for a while."""
        self.finished_ids = self.history
        self.finished_scores = self.finished_log_probabilities = torch.full(shape, -torch.inf, device=device)

    def advance(
        self, log_probs: Float[Tensor, "rows vocabulary"]
    ) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"] | None]:
        """Extend every hypothesis by a token; return the tokens and the rows they continue, None if nobody moved."""
        sentences, beams = self.log_probabilities.shape
        values, tokens = best(log_probs, 2 * beams)
        totals = (self.log_probabilities.flatten().unsqueeze(1) + values).view(sentences, -1)
        totals, order = totals.sort(dim=1, descending=True, stable=True)  # equal ones: the lower beam first
        totals, order = totals[:, : 2 * beams], order[:, : 2 * beams]
        tokens, parents = tokens.view(sentences, -1).gather(1, order), order // values.size(1)
        ends = tokens == self.eos_id
        self._finish(totals[:, :beams].masked_fill(~ends[:, :beams], -torch.inf), parents[:, :beams])
        totals, order = totals.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True)
        order = order[:, :beams]
        tokens, parents = tokens.gather(1, order), parents.gather(1, order)
        self.log_probabilities = totals[:, :beams]
        self.history = torch.cat([_take(self.history, parents), tokens.unsqueeze(2)], dim=2)
        self.stopped = self.stopped | self._nothing_to_gain()
        rows = torch.arange(sentences * beams, device=parents.device)
        parents = (rows.view(sentences, beams)[:, :1] + parents).flatten()
        moved = parents.device.type != "cpu" or not torch.equal(parents, rows)  # elsewhere the question costs a wait
        return tokens.flatten(), parents if moved else None

    def _finish(
        self, log_probabilities: Float[Tensor, "sentences beams"], parents: Int[Tensor, "sentences beams"]
    ) -> None:
        """Merge hypotheses that have just ended (-inf: has not) into the best finished ones, the earlier first."""
        length = self.history.size(2) + 1
        log_probabilities = log_probabilities.masked_fill(self.stopped.unsqueeze(1), -torch.inf)
        scores = torch.cat([self.finished_scores, log_probabilities / self.config.penalty(length)], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, : self.config.beams]
        self.finished_scores = scores[:, : self.config.beams]
        totals = torch.cat([self.finished_log_probabilities, log_probabilities], dim=1)
        self.finished_log_probabilities = totals.gather(1, order)
        ids = torch.cat([self.finished_ids, _take(self.history, parents)], dim=1)
        self.finished_ids = F.pad(_take(ids, order), (0, 1), value=self.eos_id)

    def _nothing_to_gain(self) -> Bool[Tensor, "sentences"]:
        """Say for which sentences the stop rule holds, or no hypothesis is alive."""
        top = self.log_probabilities[:, 0]
        if self.config.stop == "first_k":
            return (self.finished_scores[:, -1] > -torch.inf) | (top == -torch.inf)
        # Log-probabilities only fall and are negative: the best that can come is to lose nothing up to the full length.
        attainable = top / self.last_penalty
        return self.finished_scores[:, self.config.n_best - 1] >= attainable

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences only."""
        self.last_penalty, self.stopped = self.last_penalty[sentences], self.stopped[sentences]
        self.history, self.log_probabilities = self.history[sentences], self.log_probabilities[sentences]
        self.finished_ids, self.finished_scores = self.finished_ids[sentences], self.finished_scores[sentences]
        self.finished_log_probabilities = self.finished_log_probabilities[sentences]

    def hypotheses(self, sentences: Sequence[int]) -> list[list[Hypothesis]]:
        """Return the best finished hypotheses of some sentences, the best first."""
        n_best = self.config.n_best
        ids: list[list[list[int]]] = self.finished_ids[sentences, :n_best].tolist()
        scores: list[list[float]] = self.finished_scores[sentences, :n_best].tolist()
        log_probabilities: list[list[float]] = self.finished_log_probabilities[sentences, :n_best].tolist()
        return [
            [
                Hypothesis(tokens[: tokens.index(self.eos_id)], score, log_probability)
                for tokens, score, log_probability in zip(*sentence, strict=True)
                if score != -torch.inf
            ]
            for sentence in zip(ids, scores, log_probabilities, strict=True)
        ]


def best(
    scores: Float[Tensor, "rows vocabulary"], count: int
) -> tuple[Float[Tensor, "rows found"], Int[Tensor, "rows found"]]:
    """Return the `count` highest scores of each row, or all if there are fewer, and where they are; highest first.

    Looks for the best groups first, then inside them and in what is left over: exact, and two or three times as fast as
    `topk` on a CPU.
    """
    size, group = scores.size(1), 64
    if size < 4 * group * count:
        return scores.topk(min(count, size))
    rest = size % group
    grouped = scores[:, : size - rest].unflatten(1, (-1, group))
    groups = grouped.amax(2).topk(count, sorted=False).indices
    chosen = grouped.gather(1, groups.unsqueeze(2).expand(-1, -1, group)).flatten(1)
    values, order = torch.cat([chosen, scores[:, size - rest :]], 1).topk(count)
    inside = groups.gather(1, (order // group).clamp_(max=count - 1)) * group + order % group
    return values, torch.where(order < count * group, inside, order + (size - rest - count * group))


def _take(
    hypotheses: Int[Tensor, "sentences old length"], parents: Int[Tensor, "sentences new"]
) -> Int[Tensor, "sentences new length"]:
    return hypotheses.gather(1, parents.unsqueeze(2).expand(-1, -1, hypotheses.size(2)))
