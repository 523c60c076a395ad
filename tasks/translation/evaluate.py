"""Scores of translations by sacrebleu, whether one system beats another, and how a model misbehaves.

Text goes in as people read it, and every value comes back with the signature without which it cannot be compared.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

from rich.table import Table
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from tasks.errors import InputError, one_line

References = Sequence[str] | Sequence[Sequence[str]]
"""One reference per hypothesis, or several lists of that kind (not one list of alternatives per hypothesis)."""

FEWEST_RESAMPLES = 40
"""Fewer leave nothing to cut off at either end of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How translations are scored; the defaults are those of sacrebleu, so that its command prints the same numbers."""

    tokenize: Literal["13a", "none", "intl", "char", "zh", "ja-mecab", "ko-mecab", "flores101", "flores200"] = "13a"
    """How BLEU splits text into words. `none` is for tokenised text, and comparable only with its like; `zh`,
    `ja-mecab` and `ko-mecab` are for languages that `13a` cannot split, the latter two with further packages
    (`sacrebleu[ja]`, `sacrebleu[ko]`); `flores` is a vocabulary that sacrebleu fetches."""
    lowercase: bool = False
    """Ignore case in BLEU and chrF; TER always ignores it."""
    bootstrap: int = 0
    """Resamples for 95 % intervals and p-values, 0 for none; each takes about 100 bytes of memory per line."""
    seed: int = 12345
    """Seed of the resamples; it is part of the signature."""

    def __post_init__(self):
        if self.bootstrap != 0 and self.bootstrap < FEWEST_RESAMPLES:
            raise ValueError(
                f"bootstrap={self.bootstrap} is too few for a 95 % interval: "
                f"choose 0 for none, or at least {FEWEST_RESAMPLES}; 1000 is usual."
            )
        if self.seed < 1:  # the paired test of sacrebleu takes 0 for no seed at all, and still prints seed:0
            raise ValueError(f"seed={self.seed} cannot be used: choose 1 or more.")


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval from bootstrap resamples (Koehn 2004)."""

    mean: float
    half_width: float

    def __str__(self):
        return f"{self.mean:.2f} ± {self.half_width:.2f}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric over a whole corpus, in percent; as a string the line to quote, as sacrebleu's own command has it."""

    name: str
    """As sacrebleu prints it, with what the signature leaves out: `chrF2` is chrF with beta 2."""
    value: float
    signature: str
    interval: Interval | None = None

    def __str__(self):
        interval = f" ({self.interval})" if self.interval else ""
        return f"{self.name}|{self.signature} = {self.value:.2f}{interval}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric over two systems that translated the same sentences."""

    a: Score
    b: Score
    p_value: float
    """As sacrebleu computes it, which is near a one-sided test: 1 in 10 pairs of equal systems falls below 0.05."""

    @property
    def difference(self) -> float:
        """Return by how much B exceeds A."""
        return self.b.value - self.a.value


def score(hypotheses: Sequence[str], references: References, config: ScoreConfig) -> list[Score]:
    """Return BLEU, chrF2 and TER of a corpus, exactly as sacrebleu prints them (Post 2018).

    Raises InputError where there are no lines, or a list has more lines than another.
    """
    streams = _streams(references)
    check_aligned({"hypotheses": hypotheses, **_numbered(streams)})
    return [_score(metric, hypotheses, streams, config) for metric in make_metrics(config)]


def compare(a: Sequence[str], b: Sequence[str], references: References, config: ScoreConfig) -> list[Comparison]:
    """Ask by paired bootstrap (Koehn 2004) whether two systems differ in BLEU, chrF2 and TER.

    Raises InputError as `score` does, and where `config` asks for no resamples.
    """
    if config.bootstrap == 0:
        raise InputError(
            f"bootstrap=0 leaves nothing to compare by: choose at least {FEWEST_RESAMPLES}; 1000 is usual."
        )
    streams = _streams(references)
    check_aligned({"a": a, "b": b, **_numbered(streams)})
    metrics = {type(metric).__name__: metric for metric in make_metrics(config)}
    with _sacrebleu_seed(config.seed):
        test = PairedTest([("a", a), ("b", b)], metrics, streams, test_type="bs", n_samples=config.bootstrap)
        signatures, results = test()
    return [_comparison(name, str(signatures[name]), *results[name]) for name in signatures]


def behaviour(
    hypotheses: Sequence[str], references: References, sources: Sequence[str] | None = None
) -> dict[str, float]:
    """Return what a score hides: the ways in which a model of good likelihood still translates badly.

    `length_ratio` is the characters of the hypotheses over those of the references (their mean where several).
    The rest are shares of the hypotheses: `exact` equal a reference; `empty` have no text, `repetition` hold some
    three words in a row twice, and `copy` equal their source (only with `sources`), each though no reference does so.
    """
    streams = _streams(references)
    check_aligned({"hypotheses": hypotheses, **_numbered(streams), **({} if sources is None else {"sources": sources})})
    hypotheses = [line.strip() for line in hypotheses]
    alternatives = [[line.strip() for line in lines] for lines in zip(*streams, strict=True)]
    wanted = sum(map(len, (line for lines in alternatives for line in lines))) / len(streams)
    pairs = list(zip(hypotheses, alternatives, strict=True))
    result = {
        "length_ratio": sum(map(len, hypotheses)) / max(wanted, 1),
        "exact": _share(line in lines for line, lines in pairs),
        "empty": _share(not line and all(lines) for line, lines in pairs),
        "repetition": _share(_repeats(line) and not any(map(_repeats, lines)) for line, lines in pairs),
    }
    if sources is not None:
        copies = zip(pairs, (line.strip() for line in sources), strict=True)
        result["copy"] = _share(line == source and source not in lines for (line, lines), source in copies)
    return result


def table(scores: Sequence[Score]) -> Table:
    """Lay out scores with their intervals for people."""
    result = Table("Metric", "Score", "95 % interval")
    for each in scores:
        result.add_row(label(each.name), f"{each.value:.2f}", str(each.interval or "-"))
    return result


def label(name: str) -> str:
    """Name a metric for people, who expect more to be better."""
    return f"{name} (less is better)" if name == "TER" else name


def check_aligned(texts: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError unless all texts, by name, have the same number of lines and at least one.

    sacrebleu silently scores as many lines as the shortest of them has.
    """
    for name, lines in texts.items():
        if not lines:
            raise InputError(f"{name}: there are no lines to score: give one line per sentence.")
    (first, expected), *others = ((name, len(lines)) for name, lines in texts.items())
    for name, count in others:
        if count != expected:
            raise InputError(
                f"{first} has {expected} lines and {name} has {count}: give files of the same sentences, line by line."
            )


def make_metrics(config: ScoreConfig) -> list[Metric]:
    """Return fresh metrics: a metric keeps the count of references and resamples that its signature prints.

    Raises InputError where sacrebleu lacks what its tokeniser needs.
    """
    tokenised = config.tokenize == "none"
    try:
        # The warning about text that looks tokenised is wanted, except where tokenised text is what was asked for.
        bleu = BLEU(tokenize=config.tokenize, lowercase=config.lowercase, force=tokenised)
    except Exception as error:  # of many kinds: a package is missing, or a vocabulary cannot be fetched
        raise InputError(f"scores.tokenize={config.tokenize}: {one_line(error)}") from None
    return [bleu, CHRF(lowercase=config.lowercase), TER()]


def _score(metric: Metric, hypotheses: Sequence[str], streams: list[Sequence[str]], config: ScoreConfig) -> Score:
    with _sacrebleu_seed(config.seed):
        result = metric.corpus_score(hypotheses, streams, n_bootstrap=config.bootstrap)
    interval = Interval(float(result._mean), float(result._ci)) if config.bootstrap else None
    signature = str(metric.get_signature())
    return Score(name=result.name, value=float(result.score), signature=signature, interval=interval)


def _comparison(name: str, signature: str, a: Any, b: Any) -> Comparison:
    def of(result: Any) -> Score:
        interval = Interval(float(result.mean), float(result.ci))
        return Score(name=name, value=float(result.score), signature=signature, interval=interval)

    # sacrebleu counts only resamples that differ more than the systems do. Those of a system and itself never do, which
    # would make their difference of 0 the most significant of all.
    p_value = 1.0 if a.score == b.score else float(b.p_value)
    return Comparison(a=of(a), b=of(b), p_value=p_value)


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """Seed the resamples of sacrebleu, which reads its seed from the environment and takes it in no other way."""
    name = "SACREBLEU_SEED"
    before = os.environ.get(name)
    os.environ[name] = str(seed)
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _streams(references: References) -> list[Sequence[str]]:
    if not references or isinstance(references[0], str):
        return [cast(Sequence[str], references)]
    return list(references)


def _numbered(streams: list[Sequence[str]]) -> dict[str, Sequence[str]]:
    return {f"references {number}": lines for number, lines in enumerate(streams, start=1)}


def _share(cases: Iterable[bool]) -> float:
    outcomes = list(cases)
    return sum(outcomes) / len(outcomes)


def _repeats(text: str) -> bool:
    words = text.split()
    return max(Counter(zip(words, words[1:], words[2:], strict=False)).values(), default=0) > 1
