"""Translation as the training loop sees it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from tasks.errors import InputError
from tasks.task import Loss, Split, Task
from tasks.translation.evaluate import Score, ScoreConfig, behaviour, make_metrics, score
from tasks.translation.model import EncoderDecoder, TranslationConfig, make_model
from tasks.translation.pairs import PairData, TextPairs
from tasks.translation.shortlist import Shortlist
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK
from transformer_core import FactoredLogits, linear_cross_entropy, padding_mask
from transformer_core.loss import log_likelihood
from transformer_core.search import Ensemble, Hypothesis, SearchConfig, search

log = logging.getLogger(__name__)
LENGTH_FACTOR, LENGTH_EXTRA = 2, 20
UNSPACED = {"ja", "km", "lo", "my", "th", "zh"}
"""Languages that put no spaces between words."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    smoothing: float = 0.1
    """Label smoothing: share of the target's probability that is spread over the whole vocabulary."""
    r_drop: float = 0.0
    """Weight of R-Drop (Liang et al. 2021): two passes with different dropout should agree; costs a second pass."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"--loss.smoothing={self.smoothing} is no share: choose 0 or more, and less than 1.")
        if not self.r_drop >= 0:
            raise ValueError(f"--loss.r_drop={self.r_drop} must be 0 or more: 0 is off, 5 is usual.")


class Batch(NamedTuple):
    """A micro-batch, padded on the right; `labels` has one entry per real target position and none for padding."""

    rows: list[int]
    """The examples, by their row in the split."""
    source: Tensor
    """(batch, source length) pieces and an end mark."""
    mask: Tensor | None
    """(batch, 1, 1, source length), True at real pieces; None where nothing is padded."""
    target: Tensor
    """(batch, target length) a begin mark and pieces."""
    positions: Tensor
    """(tokens,) places of the real positions in the flattened target."""
    labels: Tensor
    """(tokens,) the piece that follows each of them."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device; without waiting for it, if asked and pinned."""
        parts = {
            name: part.to(device, non_blocking=non_blocking)
            for name, part in self._asdict().items()
            if isinstance(part, Tensor)
        }
        return self._replace(**parts)


class Output(NamedTuple):
    """What the model makes of one example."""

    hypothesis: str
    nll: float
    """Negative log-likelihood of the reference in nats, end mark counted, without label smoothing."""
    tokens: int
    """Pieces of the reference and an end mark."""


def check_positions(data: TextPairs, model: TranslationConfig, search: SearchConfig) -> None:
    """Raise InputError where sentences or translations may become longer than there are learned positions."""
    longest = max(data.filter.max_length, search.max_length) + 1
    learned = model.kind == "transformer" and model.block.position == "learned"
    if learned and model.block.max_length < longest:
        raise InputError(
            f"--model.block.max_length {model.block.max_length} learned positions are too few for "
            f"--data.filter.max_length {data.filter.max_length} and --search.max_length {search.max_length} pieces "
            f"and a mark: give {longest} or more, or lower those."
        )


class Translation(Task[Batch]):
    """Translate sentences: data, model, loss, search and scores."""

    falling = frozenset({"loss", "perplexity", "ter", "empty", "repetition", "copy"})
    unit = "tokens"

    def __init__(
        self,
        data: TextPairs,
        model: TranslationConfig,
        loss: LossConfig,
        search: SearchConfig,
        scores: ScoreConfig,
    ) -> None:
        if model.tie == "all" and not data.vocabulary.joint:
            raise InputError(
                "--model.tie all shares one matrix between both languages, and --data.vocabulary.joint false gives "
                "them different pieces: choose --model.tie target, or a joint vocabulary."
            )
        check_positions(data, model, search)
        self.data, self.model, self.loss_config, self.search, self.scores = data, model, loss, search, scores
        self.last_scores: list[Score] = []

    def prepare(self, folder: Path) -> None:
        """Read the text, train the vocabulary unless the run has one, cut the text into pieces."""
        make_metrics(self.scores)  # tells now what they lack
        if self.data.target.split("_")[0] in UNSPACED and self.scores.tokenize == "13a":
            log.warning(
                "scores.tokenize=13a splits text at spaces, which %s has not: see its choices", self.data.target
            )
        self.pairs = PairData(self.data, folder)

    def digest(self) -> str:
        """Return hashes of the text to train and validate on."""
        return "-".join(self.pairs.splits[split].digest for split in ("train", "valid"))

    def tables(self) -> list[Table | str]:
        """Return what the filter dropped, and what is evaluated in part."""
        return [self.pairs.report.table(), *self.pairs.cut()]

    def build(self) -> EncoderDecoder:
        """Return a fresh model for the vocabularies of the run."""
        return make_model(self.model, len(self.pairs.source), len(self.pairs.target), pad_id=PAD)

    def plan(self, split: Split, epoch: int) -> list[list[int]]:
        """Gather sentences of similar length under the token budget; evaluation has the same plan in every epoch."""
        return self.pairs.plan(split, epoch)

    def batch(self, split: Split, indices: Sequence[int], epoch: int) -> Batch:
        """Collate the pieces of some rows."""
        source, target = zip(*self.pairs.ids(split, indices, epoch), strict=True)
        return collate(list(indices), source, target)

    def targets(self, batch: Batch) -> int:
        """Count target pieces and end marks."""
        return len(batch.labels)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum the label-smoothed cross-entropy of the target; `nll` is the one without smoothing."""
        config = self.loss_config
        if not config.r_drop:
            logits = FactoredLogits(*model(batch.source, batch.mask, batch.target, batch.positions))
            entropy = linear_cross_entropy(logits, batch.labels, smoothing=config.smoothing)
            return Loss(entropy.smoothed, {"nll": entropy.plain})
        mask = None if batch.mask is None else torch.cat([batch.mask] * 2)
        positions = torch.cat([batch.positions, batch.positions + batch.target.numel()])
        logits = FactoredLogits(*model(torch.cat([batch.source] * 2), mask, torch.cat([batch.target] * 2), positions))
        entropy = linear_cross_entropy(
            logits, torch.cat([batch.labels] * 2), smoothing=config.smoothing, consistency=config.r_drop
        )
        return Loss(entropy.smoothed / 2, {"nll": entropy.plain / 2})

    def predict(self, split: Split, model: nn.Module, batch: Batch) -> list[tuple[int, Output]]:
        """Translate and score the reference; greedily on `valid`, as `search` says on any other split."""
        assert isinstance(model, EncoderDecoder)
        config = SearchConfig(beams=1, max_length=self.search.max_length) if split == "valid" else self.search
        nll, tokens = reference_nll(model, batch)
        found = decode([model], batch.source, batch.mask, config, batch.rows, scores=False)
        texts = (self.pairs.target.decode(hypotheses[0].ids) for hypotheses in found)
        return list(zip(batch.rows, map(Output, texts, nll, tokens), strict=True))

    def measure(self, split: Split, outputs: Sequence[Output]) -> dict[str, float]:
        """Score free-running translations by BLEU, chrF and TER, and the model by its perplexity."""
        text = self.pairs.splits[split].text
        hypotheses, references = [output.hypothesis for output in outputs], list(text["target"])
        nll = sum(output.nll for output in outputs) / max(1, sum(output.tokens for output in outputs))
        self.last_scores = score(hypotheses, references, self.scores)
        metrics = {"loss": nll, "perplexity": float(torch.tensor(nll).exp())}
        metrics |= {result.name.lower(): result.value for result in self.last_scores}
        return metrics | behaviour(hypotheses, references, list(text["source"]))

    def samples(self, split: Split, outputs: Sequence[Output]) -> list[str]:
        """Return the scores with their signatures, and a few translations under source and reference."""
        lines = [str(result) for result in self.last_scores]
        text = self.pairs.splits[split].text
        for row in range(0, len(outputs), max(1, len(outputs) // 3))[:3]:
            lines += [f"  source     {text[row]['source']}", f"  reference  {text[row]['target']}"]
            lines += [f"  hypothesis {outputs[row].hypothesis}"]
        return lines


def collate(rows: list[int], source: Sequence[list[int]], target: Sequence[list[int]]) -> Batch:
    """Pad pieces to a batch and add the marks: source pieces and eos; bos and target pieces; target pieces and eos."""
    lengths = torch.tensor([len(ids) + 1 for ids in target])
    longest = int(lengths.max())
    real = torch.arange(longest) < lengths[:, None]
    return Batch(
        rows,
        *pad_source(source),
        pad([[BOS, *ids] for ids in target]),
        real.flatten().nonzero()[:, 0],
        pad([[*ids, EOS] for ids in target])[real],
    )


def pad_source(source: Sequence[list[int]]) -> tuple[Tensor, Tensor | None]:
    """Return source pieces with an end mark, (batch, length), and their mask, None where nothing is padded."""
    lengths = [len(ids) + 1 for ids in source]
    mask = padding_mask(torch.tensor(lengths), max(lengths)) if min(lengths) < max(lengths) else None
    return pad([[*ids, EOS] for ids in source]), mask


def pad(rows: Sequence[list[int]]) -> Tensor:
    """Return (rows, longest) ids, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in rows])


@torch.inference_mode()
def reference_nll(model: EncoderDecoder, batch: Batch) -> tuple[list[float], list[int]]:
    """Return the negative log-likelihood in nats of each reference and its number of tokens, end mark counted."""
    logits = FactoredLogits(*model(batch.source, batch.mask, batch.target, batch.positions))
    nll = torch.zeros(len(batch.rows), dtype=torch.float64, device=batch.labels.device)
    sentence = batch.positions // batch.target.size(1)
    nll.index_add_(0, sentence, -log_likelihood(logits, batch.labels).double())
    return nll.tolist(), torch.bincount(sentence, minlength=len(batch.rows)).tolist()


def longest_translation(source_length: int, config: SearchConfig) -> int:
    """Return how many pieces a translation may get; `source_length` counts the end mark."""
    return min(LENGTH_FACTOR * source_length + LENGTH_EXTRA, config.max_length)


def decode(
    models: Sequence[EncoderDecoder],
    source: Tensor,
    mask: Tensor | None,
    config: SearchConfig,
    sentence_ids: Sequence[int],
    prefix: Sequence[Sequence[int]] | None = None,
    *,
    scores: bool = True,
    shortlist: Shortlist | None = None,
) -> list[list[Hypothesis]]:
    """Search for translations of a padded batch with one model, or with several whose probabilities are averaged.

    A translation has at most as many pieces as `longest_translation` says of its own source. Without `scores` a greedy
    search is quicker, and scores are nan. With a `shortlist` only its candidates for the batch, and what the prefixes
    hold, have a probability.
    """
    lengths = [source.size(1)] * len(source) if mask is None else mask.sum((1, 2, 3)).tolist()
    limits = [longest_translation(length, config) for length in lengths]
    forced = [list(ids) for ids in prefix or [()] * len(source)]
    pieces = None if shortlist is None else shortlist.pieces(source, also=[id for ids in forced for id in ids])
    names: list[int] = [] if pieces is None else pieces.tolist()
    places = range(models[0].output.weight.size(0)) if pieces is None else {id: at for at, id in enumerate(names)}
    with torch.inference_mode():
        beams, capacity = config.rows_per_sentence, max(limits) + 1
        states = [each.start(source, mask, beams=beams, capacity=capacity, pieces=pieces) for each in models]
        found = search(
            Ensemble(states) if len(states) > 1 else states[0],
            config,
            max_lengths=torch.tensor(limits, device=source.device),
            bos_id=places[BOS],
            eos_id=places[EOS],
            banned=[places[id] for id in (PAD, UNK, BOS)],
            prefix=[[places[id] for id in ids] for ids in forced],
            sentence_ids=sentence_ids,
            scores=scores,
        )
    if pieces is None:
        return found
    return [[one._replace(ids=[names[id] for id in one.ids]) for one in hypotheses] for hypotheses in found]
