"""A trained translator: text in, text out, in the order it came."""

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tasks.errors import InputError
from tasks.forks import Forks, default_workers
from tasks.translation.batching import plan_batches
from tasks.translation.model import EncoderDecoder
from tasks.translation.shortlist import Shortlist
from tasks.translation.task import collate, decode, longest_translation, pad_source, reference_nll
from tasks.translation.vocabulary import Vocabulary
from transformer_core.packing import Precision, pack
from transformer_core.search import Hypothesis, SearchConfig

log = logging.getLogger(__name__)


class Translated(NamedTuple):
    """One translation of a sentence."""

    text: str
    score: float
    """What translations are ranked by: the log-probability over its length penalty."""
    log_probability: float
    """Natural logarithm of the probability of this translation, the end of sentence counted."""


class _Batch(NamedTuple):
    """Sentences that are searched together, and how."""

    rows: list[int]
    sources: list[list[int]]
    prefixes: list[list[int]]
    search: SearchConfig
    scores: bool


class Translator:
    """Translates with one model, or with an ensemble whose probabilities are averaged.

    translator = Translator([model], source_vocabulary, target_vocabulary)
    translator("The meeting is on March 3.")
    """

    def __init__(
        self,
        models: Sequence[EncoderDecoder],
        source: Vocabulary,
        target: Vocabulary,
        *,
        search: SearchConfig | None = None,
        tokens: int = 4096,
        max_length: int = 256,
        precision: Precision = "fp32",
        workers: int = 1,
        shortlist: Shortlist | None = None,
    ) -> None:
        """Take trained models that share their vocabularies.

        Args:
            models: on one device.
            source: their source vocabulary.
            target: their target vocabulary.
            search: how translations are searched for.
            tokens: pieces that are translated together, padding counted.
            max_length: pieces of a sentence that are read; what follows is cut off.
            precision: of the matrix products, on a GPU of all numbers but sums. int8 is for CPUs.
            workers: processes that each translate their own sentences on a CPU, one core each; 0: one a core, where the
                system can fork. They are forks of the first call: not for a program that has threads of its own.
            shortlist: target pieces that are considered; None: all.

        Raises:
            ValueError: int8 is asked for on another device than a CPU, or weights cannot be packed as `pack` says.
        """
        self.models = [model.eval() for model in models]
        self.source, self.target = source, target
        self.search = search or SearchConfig()
        self.tokens, self.max_length = tokens, max_length
        self.device = next(models[0].parameters()).device
        self.precision: Precision = precision
        self.shortlist = shortlist
        self.forks: Forks[_Batch, list[list[Hypothesis]]] | None = None
        self.workers = workers or default_workers()
        self.searched = [self._made_fast(model) for model in self.models]

    def __call__(self, sentence: str) -> str:
        """Translate one sentence."""
        return self.translate([sentence])[0]

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Translate sentences; those of similar length are searched together, and the order stays.

        A sentence of more than `max_length` pieces is cut there, with a warning. An empty one stays empty.
        """
        return [found[0].text for found in self.n_best(sentences, scores=False)]

    def n_best(
        self, sentences: Sequence[str], prefixes: Sequence[str] | None = None, *, scores: bool = True
    ) -> list[list[Translated]]:
        """Return the `n_best` translations of each sentence, best first; each begins with its prefix, if given.

        Without `scores` greedy search is quicker, and its scores are nan.

        Raises InputError where a prefix is longer than its translation may become.
        """
        if isinstance(sentences, str):
            raise ValueError(
                "one sentence is given where several are expected: call the translator itself, or pass a list."
            )
        if prefixes is not None and len(prefixes) != len(sentences):
            raise ValueError(f"{len(prefixes)} prefixes for {len(sentences)} sentences: give one for each, or none.")
        pieces = [self._cut(*pair) for pair in zip(sentences, self.source.encode_all(sentences), strict=True)]
        forced = [[] for _ in pieces]
        if prefixes is not None:
            forced = self.target.encode_all(prefixes)
            for prefix, begin, source in zip(prefixes, forced, pieces, strict=True):
                if len(begin) > (most := longest_translation(len(source) + 1, self.search)):
                    remedy = ", or raise --search.max_length" if most == self.search.max_length else ""
                    raise InputError(
                        f"the prefix {prefix!r:.60} has {len(begin)} pieces, and its translation may get {most}: "
                        f"shorten it{remedy}."
                    )
        return [
            [Translated(self.target.decode(ids), *scores) for ids, *scores in hypotheses]
            for hypotheses in self.search_ids(pieces, forced, scores=scores)
        ]

    def search_ids(
        self, sources: Sequence[list[int]], prefixes: Sequence[list[int]] | None = None, *, scores: bool = True
    ) -> list[list[Hypothesis]]:
        """Return the `n_best` outputs for each source, pieces in and pieces out; an empty source stays empty.

        Each output begins with its prefix, if given. Sources of similar length are searched together.
        """
        results = [[Hypothesis([], 0.0, 0.0)] for _ in sources]
        prefixes = [[] for _ in sources] if prefixes is None else prefixes
        batches = self._batches([row for row, ids in enumerate(sources) if ids], sources)
        sharing = self.device.type == "cpu" and min(self.workers, len(batches)) > 1
        batches = deal_last(batches, self.workers) if sharing else batches
        given = [
            _Batch(rows, [sources[row] for row in rows], [prefixes[row] for row in rows], self.search, scores)
            for rows in batches
        ]
        found = self._share(given) if sharing else map(self._translate, given)
        for rows, hypotheses in zip(batches, found, strict=True):
            for row, own in zip(rows, hypotheses, strict=True):
                results[row] = own
        return results

    def _translate(self, batch: "_Batch") -> list[list[Hypothesis]]:
        source, mask = pad_source(batch.sources)
        source, mask = source.to(self.device), None if mask is None else mask.to(self.device)
        given = self.searched, source, mask, batch.search, batch.rows, batch.prefixes
        return decode(*given, scores=batch.scores, shortlist=self.shortlist)

    def _share(self, batches: list["_Batch"]) -> list[list[list[Hypothesis]]]:
        if self.forks is None:
            last = batches[-1]  # packs what the forks will share
            self._translate(last._replace(rows=last.rows[:1], sources=last.sources[:1], prefixes=last.prefixes[:1]))
            self.forks = Forks(self._translate, self.workers)
        return self.forks.map(batches)

    def _made_fast(self, model: EncoderDecoder) -> EncoderDecoder:
        """Return the model with its weights laid out for the device, where they can be."""
        if self.device.type == "cpu":
            packable = torch.backends.mkldnn.is_available() and next(model.parameters()).dtype == torch.float32
            if packable or self.precision != "fp32":
                return pack(model, self.precision)
        elif self.precision == "int8":
            raise ValueError(f"precision=int8 is for CPUs, and the model is on {self.device}: choose bf16 or fp32.")
        elif self.precision == "bf16":
            model = copy.deepcopy(model)
            for weight in model.parameters():  # tables of positions stay in float32
                weight.data = weight.data.bfloat16()
            for layer in model.modules():
                if isinstance(layer, nn.RNNBase):
                    layer.flatten_parameters()
        return model

    def log_probabilities(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """Return the natural logarithm of the probability of each given translation, the end of sentence counted.

        With several models it is that of the first.
        """
        if len(sources) != len(targets):
            raise ValueError(f"{len(targets)} translations of {len(sources)} sentences: give as many.")
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


def deal_last(batches: list[list[int]], workers: int) -> list[list[int]]:
    """Deal the rows of the last batches, where they are too few for all workers, so that nobody waits for another.

    Batches come with the longest sentences first, and the last hold the shortest.
    """
    whole = len(batches) // workers * workers
    rest = [row for batch in batches[whole:] for row in batch]
    return [*batches[:whole], *(rest[worker::workers] for worker in range(min(workers, len(rest))))]
