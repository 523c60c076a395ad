"""What an output may not, and what it must continue with: rules on the log-probabilities of a search."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transformer_core.search_config import SearchConfig


class Constraints:
    """The rules of a search for a batch of sentences. What is forced goes before what is banned."""

    def __init__(
        self,
        config: SearchConfig,
        limits: Sequence[int],
        eos_id: int,
        device: torch.device,
        banned: Sequence[int],
        prefix: Sequence[Sequence[int]],
    ) -> None:
        _check(prefix, limits, eos_id)
        longest = max(limits)
        forced = [
            [*tokens, *[-1] * (limit - len(tokens)), *[eos_id] * (longest + 1 - limit)]
            for tokens, limit in zip(prefix, limits, strict=True)
        ]
        self.config, self.eos_id = config, eos_id
        self.banned = torch.tensor(sorted(set(banned)), dtype=torch.long, device=device)
        self.forced = torch.tensor(forced, device=device)
        """(sentences, positions): the token that must come, or -1."""
        self.forcing = [max(column) >= 0 for column in zip(*forced, strict=True)]
        """Positions where anything is forced, known to the host."""

    def apply(
        self, log_probs: Float[Tensor, "rows vocabulary"], history: Int[Tensor, "sentences rows_per_sentence length"]
    ) -> None:
        """Set what must not follow `history` to -inf, in place."""
        position = history.size(2)
        if not self.forcing[position]:
            self._ban(log_probs, history)
            return
        forced = self.forced[:, position].repeat_interleave(history.size(1)).unsqueeze(1)
        must, tokens = forced >= 0, forced.clamp(min=0)
        given = log_probs.gather(1, tokens)
        self._ban(log_probs, history)
        log_probs.masked_fill_(must, -torch.inf)
        log_probs.scatter_(1, tokens, given.where(must, log_probs.gather(1, tokens)))

    def _ban(
        self, log_probs: Float[Tensor, "rows vocabulary"], history: Int[Tensor, "sentences rows_per_sentence length"]
    ) -> None:
        log_probs.index_fill_(1, self.banned, -torch.inf)
        too_short, end = history.size(2) < self.config.min_length, log_probs[:, self.eos_id].clone()
        if too_short:
            log_probs[:, self.eos_id] = -torch.inf
        if self.config.no_repeat_ngram:
            _ban_repetition(log_probs, history.flatten(0, 1), self.config.no_repeat_ngram)
            if too_short:
                stuck = log_probs.amax(dim=1) == -torch.inf
                log_probs[:, self.eos_id] = end.masked_fill(~stuck, -torch.inf)

    def keep(self, sentences: Int[Tensor, "kept"]) -> None:
        """Go on with these sentences only."""
        self.forced = self.forced[sentences]


def _ban_repetition(
    log_probs: Float[Tensor, "rows vocabulary"], history: Int[Tensor, "rows length"], size: int
) -> None:
    """Ban every token that has followed the last `size` - 1 tokens before."""
    length = history.size(1)
    if length < size:
        return
    ngrams = history.unfold(1, size, 1)
    same = (ngrams[:, :, :-1] == history[:, length - size + 1 :].unsqueeze(1)).all(dim=2)
    ban = torch.full_like(same, torch.inf, dtype=log_probs.dtype).masked_fill(same, -torch.inf)
    log_probs.scatter_reduce_(1, ngrams[:, :, -1], ban, "amin")


def _check(prefix: Sequence[Sequence[int]], limits: Sequence[int], eos_id: int) -> None:
    if len(prefix) != len(limits):
        raise ValueError(f"{len(prefix)} prefixes for {len(limits)} sentences: give one for each, empty for none.")
    for place, (tokens, limit) in enumerate(zip(prefix, limits, strict=True)):
        if len(tokens) > limit:
            raise ValueError(f"The prefix of sentence {place} has {len(tokens)} tokens, but its max length is {limit}.")
        if eos_id in tokens:
            raise ValueError(f"The prefix of sentence {place} holds the end of sentence ({eos_id}): leave it out.")
