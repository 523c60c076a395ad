"""Random segmentations of training text into subwords.

sentencepiece draws them too, but mixes something of its own into the seed, so that no other process draws the same.
A run that is killed and continued has to; the segmentations here depend on the given generator alone. The text is what
sentencepiece makes of it before it cuts (`normalize`), the scores are those of its pieces.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from math import exp, inf, log
from random import Random
from typing import Protocol

# What sentencepiece takes off the lowest score for a character that is no piece.
UNKNOWN_PENALTY = 10.0

WORD_MARK = "\u2581"
WORDS = re.compile(f"{WORD_MARK}?[^{WORD_MARK}]+|{WORD_MARK}")


class Segmenter(Protocol):
    """Cuts a text at random into pieces that join to it; a character that is no piece stands alone."""

    def sample(self, text: str, strength: float, random: Random) -> list[str]:
        """Cut the text; what `strength` means is the segmenter's own."""
        ...


class MergeDropout:
    """Byte pair encoding that leaves out merges at random, a share `strength` of them.

    Source: BPE-dropout, Provilkov et al. (2020), as sentencepiece does it: a merge is drawn for when its turn comes,
    and once left out, it stays out until one of its two parts is merged with something else.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.ranks = {piece: -score for piece, score in scores.items()}
        self.across_words = any(WORD_MARK in piece[1:] for piece in scores)

    def sample(self, text: str, strength: float, random: Random) -> list[str]:
        """Cut the text; strength 0 is plain byte pair encoding, 1 leaves characters."""
        words = [text] if self.across_words else WORDS.findall(text)  # merging takes the square of the length
        return [piece for word in words for piece in self._merge(word, strength, random)]

    def _merge(self, word: str, strength: float, random: Random) -> list[str]:
        rank = self.ranks.get
        pieces = list(word)
        waiting = [rank(left + right, inf) for left, right in pairwise(pieces)]
        while waiting and (best := min(waiting)) < inf:
            at = waiting.index(best)
            if random.random() < strength:
                waiting[at] = inf
                continue
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            del waiting[at]
            if at > 0:
                waiting[at - 1] = rank(pieces[at - 1] + pieces[at], inf)
            if at < len(waiting):
                waiting[at] = rank(pieces[at] + pieces[at + 1], inf)
        return pieces


class SubwordRegularization:
    """A unigram model's segmentations, each with its probability to the power `strength`, over all there are.

    Source: Kudo (2018), section 3, by forward filtering and backward sampling.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self.scores = scores
        self.longest = max(map(len, scores))
        self.unknown = min(scores.values()) - UNKNOWN_PENALTY

    def sample(self, text: str, strength: float, random: Random) -> list[str]:
        """Cut the text; the larger the strength, the surer the best segmentation, and near 0 all are alike."""
        total = [0.0]  # log of the summed weights of all ways to cut the text before here
        arrivals: list[dict[int, float]] = [{}]  # where the last piece may begin, and its log weight
        for end in range(1, len(text) + 1):
            weights = {end - 1: total[end - 1] + strength * self.scores.get(text[end - 1], self.unknown)}
            for begin in range(max(0, end - self.longest), end - 1):
                if (score := self.scores.get(text[begin:end])) is not None:
                    weights[begin] = total[begin] + strength * score
            largest = max(weights.values())
            total.append(largest + log(sum(exp(weight - largest) for weight in weights.values())))
            arrivals.append(weights)

        pieces = []
        end = len(text)
        while end > 0:
            chances = [exp(weight - total[end]) for weight in arrivals[end].values()]
            [begin] = random.choices(list(arrivals[end]), chances)
            pieces.append(text[begin:end])
            end = begin
        return pieces[::-1]
