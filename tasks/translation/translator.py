"""A trained translator: text in, text out, in the order it came."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.errors import InputError
from tasks.translation.batching import plan_batches
from tasks.translation.model import TranslationModel
from tasks.translation.task import collate, decode, longest_translation, pad_source, reference_nll
from tasks.translation.vocabulary import Vocabulary
from transformer_core.search import SearchConfig

log = logging.getLogger(__name__)


class Translated(NamedTuple):
    """One translation of a sentence."""

    text: str
    score: float
    """What translations are ranked by: the log-probability over its length penalty."""
    log_probability: float
    """Natural logarithm of the probability of this translation, the end of sentence counted."""


class Translator:
    """Translates with one model, or with an ensemble whose probabilities are averaged.

    translator = Translator([model], source_vocabulary, target_vocabulary)
    translator("The meeting is on March 3.")
    """

    def __init__(
        self,
        models: Sequence[TranslationModel],
        source: Vocabulary,
        target: Vocabulary,
        *,
        search: SearchConfig | None = None,
        tokens: int = 4096,
        max_length: int = 256,
    ) -> None:
        self.models = [model.eval() for model in models]
        self.source, self.target = source, target
        self.search = search or SearchConfig()
        self.tokens, self.max_length = tokens, max_length
        self.device = next(models[0].parameters()).device

    def __call__(self, sentence: str) -> str:
        """Translate one sentence."""
        return self.translate([sentence])[0]

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Translate sentences; those of similar length are searched together, and the order stays.

        A sentence of more than `max_length` pieces is cut there, with a warning. An empty one stays empty.
        """
        return [found[0].text for found in self.n_best(sentences)]

    def n_best(self, sentences: Sequence[str], prefixes: Sequence[str] | None = None) -> list[list[Translated]]:
        """Return the `n_best` translations of each sentence, best first; each begins with its prefix, if given.

        Raises InputError where a prefix is longer than its translation may become.
        """
        pieces = [self._cut(*pair) for pair in zip(sentences, self.source.encode_all(sentences), strict=True)]
        forced = [[] for _ in pieces]
        if prefixes is not None:
            forced = self.target.encode_all(prefixes)
            for prefix, begin, source in zip(prefixes, forced, pieces, strict=True):
                if len(begin) > (most := longest_translation(len(source) + 1, self.search)):
                    raise InputError(
                        f"the prefix {prefix!r:.60} has {len(begin)} pieces, and its translation may get {most}: "
                        "shorten it, or raise --search.max_length."
                    )
        results = [[Translated("", 0.0, 0.0)] for _ in pieces]
        for rows in self._batches([row for row, ids in enumerate(pieces) if ids], pieces):
            source, mask = pad_source([pieces[row] for row in rows])
            source, mask = source.to(self.device), None if mask is None else mask.to(self.device)
            found = decode(self.models, source, mask, self.search, rows, [forced[row] for row in rows])
            for row, hypotheses in zip(rows, found, strict=True):
                results[row] = [Translated(self.target.decode(ids), *scores) for ids, *scores in hypotheses]
        return results

    def log_probabilities(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """Return the natural logarithm of the probability of each given translation, the end of sentence counted.

        With several models it is that of the first.
        """
        pieces = self.source.encode_all(list(sources)), self.target.encode_all(list(targets))
        results = [0.0] * len(sources)
        for rows in self._batches(range(len(results)), *pieces):
            batch = collate(rows, *([side[row] for row in rows] for side in pieces))
            nll, _ = reference_nll(self.models[0], batch.to(self.device))
            for row, value in zip(rows, nll, strict=True):
                results[row] = -value
        return results

    def _cut(self, sentence: str, ids: list[int]) -> list[int]:
        if len(ids) > self.max_length:
            log.warning("%.60r has %d pieces: only the first %d are translated", sentence, len(ids), self.max_length)
        return ids[: self.max_length]

    def _batches(self, rows: Sequence[int], *sides: Sequence[list[int]]) -> list[list[int]]:
        """Plan which rows are computed together; both sides of a pair count, if there are two."""
        lengths = [np.array([len(ids) + 1 for ids in side]) for side in sides]
        budget = max([self.tokens, *(int(side.max(initial=0)) for side in lengths)])
        examples = np.array(rows, dtype=np.int64)
        return plan_batches(lengths[0], lengths[-1], examples=examples, tokens=budget, seed=0, epoch=0, shuffle=False)
