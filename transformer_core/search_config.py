"""What one asks of a search and what one gets: SearchConfig and Hypothesis."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformer_core.choices import check_choices

Penalty = Literal["none", "average", "gnmt"]
Stop = Literal["first_k", "best_possible"]


class Hypothesis(NamedTuple):
    """One finished output of a search."""

    ids: list[int]
    """The generated tokens, a forced prefix included, without beginning and end of sentence."""
    score: float
    """The log-probability divided by the length penalty; hypotheses are ranked by it."""
    log_probability: float
    """The sum over `ids` and the end of sentence, under the unchanged distribution of the model."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How an output is chosen: greedily, by beam search or by sampling.

    Raises:
        ValueError: a setting is out of its range, or two do not go together; the message names them.
    """

    beams: int = 5
    """Hypotheses kept alive per sentence; 1 is greedy search. Has no part in sampling."""
    n_best: int = 1
    """Outputs per sentence, best first: at most `beams` in a search, any number of independent draws in sampling."""
    length_penalty: Penalty = "average"
    """What a log-probability is divided by, n being the tokens with the end of sentence: nothing, n^alpha (fairseq), or
    ((5 + n) / 6)^alpha (Wu et al. 2016, equation 14)."""
    alpha: float = 1.0
    """Strength of the length penalty; more asks for longer outputs, 0 for none."""
    stop: Stop = "first_k"
    """When a beam search ends: as soon as `beams` hypotheses are finished (fairseq, OpenNMT), or only when no live one
    can still enter the `n_best`, which is thorough, and slow under a length penalty where `max_length` is generous."""
    min_length: int = 0
    """Tokens before the end of sentence may come; gives way where `no_repeat_ngram` leaves nothing else."""
    max_length: int = 256
    """Tokens after which the end of sentence is forced, and its log-probability counted (fairseq)."""
    no_repeat_ngram: int = 0
    """No sequence of this many tokens occurs twice in an output; 0 allows all."""
    sample: bool = False
    """Draw from the distribution instead of searching for its most probable outputs."""
    temperature: float = 1.0
    """Sampling: divides the log-probabilities; below 1 sharpens."""
    top_k: int = 0
    """Sampling: draw among this many most probable tokens; 0 draws among all."""
    top_p: float = 1.0
    """Sampling: draw among the fewest tokens that hold this probability, after `temperature` and `top_k` (Holtzman et
    al. 2020). Without `top_k` it sorts the whole vocabulary at each step."""
    seed: int = 1
    """Sampling: the draws follow from it, the sentence and the number of the draw, not from the batch."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("beams", "n_best", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--search.{name}={getattr(self, name)} must be at least 1.")
        for name in ("alpha", "min_length", "no_repeat_ngram", "top_k"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--search.{name}={getattr(self, name)} must be 0 or more.")
        if self.temperature <= 0:
            raise ValueError(
                f"--search.temperature={self.temperature} must be above 0: for the likeliest token at every step, set "
                f"--search.sample=false and --search.beams=1."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--search.top_p={self.top_p} must be above 0 and at most 1.")
        if self.min_length > self.max_length:
            raise ValueError(
                f"--search.min_length={self.min_length} is above --search.max_length={self.max_length}: lower it."
            )
        if not self.sample and self.n_best > self.beams:
            raise ValueError(
                f"--search.n_best={self.n_best} hypotheses need at least as many --search.beams={self.beams}: "
                f"set --search.beams={self.n_best} or more."
            )
        for name, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
            if not self.sample and getattr(self, name) != neutral:
                raise ValueError(
                    f"--search.{name}={getattr(self, name)} needs --search.sample=true: add that or drop this."
                )

    @property
    def rows_per_sentence(self) -> int:
        """Count the rows of the decoder state that a sentence takes."""
        return self.n_best if self.sample else self.beams

    def penalty(self, length: int) -> float:
        """Return what the log-probability of `length` tokens, the end of sentence included, is divided by."""
        base = (5 + length) / 6 if self.length_penalty == "gnmt" else length
        return base ** (0.0 if self.length_penalty == "none" else self.alpha)
