"""Search against exhaustive enumeration and a plain beam search, over small random decoders in float64."""

import itertools
import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from transformer_core import Decoder, padding_mask
from transformer_core.beam import best
from transformer_core.search import Ensemble, Hypothesis, SearchConfig, batch_size, search

BOS, EOS = 0, 3
PENALTIES = {
    "none": lambda length, alpha: 1.0,
    "average": lambda length, alpha: length**alpha,
    "gnmt": lambda length, alpha: (5 + length) ** alpha / 6**alpha,
}


class Recurrent(NamedTuple):
    """A random language model whose next token depends on the sentence and on all tokens before."""

    cell: nn.GRUCell
    start: Tensor
    embedding: Tensor
    output: Tensor
    bias: Tensor

    @classmethod
    def random(cls, seed: int, *, vocabulary: int = 7, end: float = 0.0, sharpness: float = 4.0) -> "Recurrent":
        torch.manual_seed(seed)
        cell = nn.GRUCell(5, 6).double().requires_grad_(False)
        for weight in cell.parameters():
            nn.init.normal_(weight)
        bias = torch.zeros(vocabulary, dtype=torch.double)
        bias[EOS] = end
        start, embedding, output = (
            torch.randn(size, dtype=torch.double) for size in [(11, 6), (vocabulary, 5), (vocabulary, 6)]
        )
        return cls(cell, start, embedding, sharpness * output / 6**0.5, bias)

    def log_probs(self, sentence: int, ids: list[int]) -> list[float]:
        """The definition: run over everything from the start."""
        hidden = self.start[sentence]
        for token in [BOS, *ids]:
            hidden = self.cell(self.embedding[token], hidden)
        return (self.output @ hidden + self.bias).log_softmax(0).tolist()

    def log_probability(self, sentence: int, ids: list[int]) -> float:
        return sum(self.log_probs(sentence, ids[:i])[token] for i, token in enumerate([*ids, EOS]))


class State:
    """Incremental decoding of a Recurrent; counts the rows it is asked for."""

    def __init__(self, model: Recurrent, sentences: list[int], rows: int) -> None:
        self.model, self.rows, self.seen = model, rows, []
        self.hidden = model.start[sentences].repeat_interleave(rows, 0)

    def step(self, tokens: Tensor) -> Tensor:
        self.seen.append(len(tokens))
        self.hidden = self.model.cell(self.model.embedding[tokens], self.hidden)
        return self.hidden @ self.model.output.T + self.model.bias

    def reorder(self, parents: Tensor) -> None:
        assert torch.equal(parents // self.rows, torch.arange(len(parents), device=parents.device) // self.rows)
        self.hidden = self.hidden[parents]

    def keep(self, sentences: Tensor) -> None:
        assert len(sentences.unique()) == len(sentences)
        self.hidden = self.hidden.unflatten(0, (-1, self.rows))[sentences].flatten(0, 1)


class Table:
    """Logits that depend on the position only; the last ones stay."""

    def __init__(self, logits: list[list[float]], dtype: torch.dtype = torch.double) -> None:
        self.logits, self.position = torch.tensor(logits, dtype=dtype), -1

    def step(self, tokens: Tensor) -> Tensor:
        self.position = min(self.position + 1, len(self.logits) - 1)
        return self.logits[self.position].repeat(len(tokens), 1)

    def reorder(self, parents: Tensor) -> None: ...

    def keep(self, sentences: Tensor) -> None: ...


class Cached:
    """A Transformer decoder that keeps what it has computed; the embedding is also the output."""

    def __init__(self, decoder: Decoder, embedding: Tensor, states: Tensor, lengths: Tensor, rows: int) -> None:
        self.decoder, self.embedding, self.rows = decoder, embedding, rows
        self.memory = decoder.read(states, padding_mask(lengths, states.size(1)))
        self.cache = decoder.new_cache(self.memory, capacity=10, beams=rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.embedding[tokens].unsqueeze(1), self.memory, self.cache)[:, 0] @ self.embedding.T

    def reorder(self, parents: Tensor) -> None:
        self.cache.reorder(parents)

    def keep(self, sentences: Tensor) -> None:
        self.memory = self.memory.keep(sentences)
        self.cache.keep(sentences)


def run(model: Recurrent, config: SearchConfig, sentences: list[int], limits: list[int], **options):
    state = State(model, sentences, config.rows_per_sentence)
    return search(state, config, max_lengths=torch.tensor(limits, dtype=torch.long), bos_id=BOS, eos_id=EOS, **options)


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[hypothesis.ids for hypothesis in group] for group in found] == [
        [hypothesis.ids for hypothesis in group] for group in expected
    ]
    assert_close(numbers(found), numbers(expected), rtol=1e-10, atol=0)


def numbers(found: list[list[Hypothesis]]) -> Tensor:
    return torch.tensor([(h.score, h.log_probability) for group in found for h in group], dtype=torch.double)


def plain_beam_search(model: Recurrent, config: SearchConfig, sentence: int, limit: int) -> list[Hypothesis]:
    def penalty(length: int) -> float:
        return PENALTIES[config.length_penalty](length, config.alpha)

    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[Hypothesis] = []
    while live:
        candidates = []
        for total, ids in live:
            for token, log_prob in enumerate(model.log_probs(sentence, ids)):
                if len(ids) < limit or token == EOS:
                    candidates.append((total + log_prob, ids, token))
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * config.beams]
        for total, ids, token in candidates[: config.beams]:
            if token == EOS:
                done.append(Hypothesis(ids, total / penalty(len(ids) + 1), total))
        live = [(total, [*ids, token]) for total, ids, token in candidates if token != EOS][: config.beams]
        done.sort(key=lambda hypothesis: -hypothesis.score)
        if config.stop == "first_k" and len(done) >= config.beams:
            break
        if config.stop == "best_possible" and len(done) >= config.n_best:
            lengths = range(len(live[0][1]) + 1, limit + 2) if live else []
            attainable = [total / penalty(length) for total, _ in live for length in lengths]
            if max(attainable, default=-math.inf) <= done[config.n_best - 1].score:
                break
    return done[: config.n_best]


def exhaustive_search(model: Recurrent, config: SearchConfig, sentence: int, limit: int) -> list[Hypothesis]:
    tokens = [token for token in range(len(model.bias)) if token != EOS]
    every = [list(ids) for length in range(limit + 1) for ids in itertools.product(tokens, repeat=length)]
    found = []
    for ids in every:
        total = model.log_probability(sentence, ids)
        found.append(Hypothesis(ids, total / PENALTIES[config.length_penalty](len(ids) + 1, config.alpha), total))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)[: config.n_best]


@pytest.mark.parametrize("n_best", [1, 7])
@pytest.mark.parametrize(("penalty", "alpha"), [("none", 1.0), ("average", 1.0), ("average", 1.7), ("gnmt", 1.3)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wide_beam_that_stops_at_the_best_possible_finds_what_exhaustive_search_finds(seed, penalty, alpha, n_best):
    model = Recurrent.random(seed, vocabulary=4, end=1.0, sharpness=2.0)
    config = SearchConfig(beams=121, n_best=n_best, length_penalty=penalty, alpha=alpha, stop="best_possible")
    expected = [exhaustive_search(model, config, sentence, limit) for sentence, limit in [(0, 4), (5, 4), (7, 2)]]
    assert_same(run(model, config, [0, 5, 7], [4, 4, 2]), expected)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_greedy_search_without_scores_finds_the_same(seed):
    model, config = Recurrent.random(seed, vocabulary=9, end=0.5), SearchConfig(beams=1, min_length=2)
    plain, scored = (run(model, config, [0, 5, 7], [8, 4, 2], banned=[3], scores=scores) for scores in (False, True))
    assert [found[0].ids for found in plain] == [found[0].ids for found in scored]
    assert all(math.isnan(found[0].score) and math.isnan(found[0].log_probability) for found in plain)


@pytest.mark.parametrize("penalty", ["none", "average", "gnmt"])
def test_the_best_possible_rule_ends_the_search_before_the_maximal_length(penalty):
    model = Recurrent.random(1, end=8.0)
    config = SearchConfig(beams=3, length_penalty=penalty, alpha=0.5, stop="best_possible")
    state = State(model, [0, 1], 3)
    search(state, config, max_lengths=torch.tensor([60, 60]), bos_id=BOS, eos_id=EOS)
    assert len(state.seen) < 61


@pytest.mark.parametrize(("penalty", "length"), [("average", 9), ("gnmt", 9), ("none", 0)])
def test_the_best_possible_rule_waits_for_a_score_that_still_rises(penalty, length):
    # Either the end at once, or a less likely token, and then no doubt until the end.
    logits = [[-9.0, -0.53, -9.0, 0.0], *[[-9.0, 9.0, -9.0, -9.0]] * 8, [-9.0, -9.0, -9.0, 9.0]]
    config = SearchConfig(beams=2, length_penalty=penalty, stop="best_possible", max_length=9)
    (found,) = search(Table(logits), config, max_lengths=torch.tensor([99]), bos_id=BOS, eos_id=EOS)
    assert found[0].ids == [1] * length


@pytest.mark.parametrize("stop", ["first_k", "best_possible"])
@pytest.mark.parametrize(("penalty", "alpha"), [("none", 1.0), ("average", 0.6), ("average", 1.0), ("gnmt", 0.8)])
@pytest.mark.parametrize(("beams", "n_best"), [(2, 1), (3, 3), (5, 2)])
def test_beam_search_equals_a_plain_beam_search(beams, n_best, penalty, alpha, stop):
    model = Recurrent.random(beams, end=0.5)
    config = SearchConfig(beams=beams, n_best=n_best, length_penalty=penalty, alpha=alpha, stop=stop)
    sentences, limits = [0, 3, 4, 8, 9], [11, 5, 7, 0, 13]
    expected = [plain_beam_search(model, config, *pair) for pair in zip(sentences, limits, strict=True)]
    assert_same(run(model, config, sentences, limits), expected)


@pytest.mark.parametrize("penalty", ["average", "gnmt"])
def test_a_larger_alpha_never_gives_a_shorter_output(penalty):
    def lengths(alpha: float) -> list[int]:
        config = SearchConfig(beams=121, length_penalty=penalty, alpha=alpha, stop="best_possible")
        return [len(group[0].ids) for group in run(model, config, list(range(11)), [4] * 11)]

    model = Recurrent.random(4, vocabulary=4, end=1.0, sharpness=2.0)
    by_alpha = [lengths(alpha) for alpha in (0.0, 0.5, 1.0, 2.0, 4.0)]
    for shorter, longer in itertools.pairwise(by_alpha):
        assert all(a <= b for a, b in zip(shorter, longer, strict=True))
    assert sum(by_alpha[0]) < sum(by_alpha[-1])


CONFIGS = {
    "greedy": SearchConfig(beams=1),
    "beam": SearchConfig(beams=4, n_best=3),
    "best_possible": SearchConfig(beams=4, n_best=2, stop="best_possible", length_penalty="gnmt"),
    "no_repeat": SearchConfig(beams=3, n_best=3, no_repeat_ngram=2),
    "min_length": SearchConfig(beams=3, n_best=2, min_length=4),
    "sample": SearchConfig(sample=True, n_best=3),
    "top_k": SearchConfig(sample=True, n_best=2, top_k=3, temperature=1.5),
    "top_p": SearchConfig(sample=True, n_best=2, top_p=0.8, min_length=2),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
PREFIXES = [[5, 1], [], [2], [4, 4, 4, 4, 6], [], [EOS + 1], [], [1]]


@every_config
@pytest.mark.parametrize("prefix", [None, PREFIXES], ids=["free", "prefix"])
def test_outputs_do_not_depend_on_the_batch(config, prefix):
    model, limits = Recurrent.random(22, end=-1.0), [13, 7, 5, 11, 3, 17, 2, 9]
    together = run(model, config, list(range(8)), limits, prefix=prefix)
    order = [6, 3, 7, 0, 1, 5, 2, 4]
    shuffled = run(
        model,
        config,
        order,
        [limits[i] for i in order],
        prefix=prefix and [prefix[i] for i in order],
        sentence_ids=order,
    )
    assert_same(shuffled, [together[i] for i in order])
    for i in range(8):
        alone = run(model, config, [i], [limits[i]], prefix=prefix and [prefix[i]], sentence_ids=[i])
        assert_same(alone, [together[i]])


@every_config
def test_the_score_is_that_of_forced_decoding(config):
    model = Recurrent.random(7)
    for sentence, group in enumerate(run(model, config, list(range(8)), [9] * 8, prefix=PREFIXES)):
        assert len(group) == config.n_best
        for hypothesis in group:
            total = model.log_probability(sentence, hypothesis.ids)
            divisor = PENALTIES[config.length_penalty](len(hypothesis.ids) + 1, config.alpha)
            assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-10)
            assert math.isclose(hypothesis.score, total / divisor, rel_tol=1e-10)


@every_config
def test_a_forced_prefix_holds_and_lengths_stay_within_bounds(config):
    model, limits = Recurrent.random(8, end=-2.0), [5, 7, 9, 6, 4, 8, 5, 10]
    found = run(model, config, list(range(8)), limits, prefix=PREFIXES)
    lengths = [len(hypothesis.ids) for group in found for hypothesis in group]
    for prefix, limit, group in zip(PREFIXES, limits, found, strict=True):
        for hypothesis in group:
            assert hypothesis.ids[: len(prefix)] == prefix
            assert config.min_length <= len(hypothesis.ids) <= limit
    assert max(lengths) == 10


@every_config
def test_n_best_is_sorted_and_a_search_gives_no_output_twice(config):
    for group in run(Recurrent.random(9), config, list(range(8)), [9] * 8):
        assert [hypothesis.score for hypothesis in group] == sorted((h.score for h in group), reverse=True)
        assert config.sample or len({tuple(hypothesis.ids) for hypothesis in group}) == config.n_best


def test_one_beam_is_greedy_search():
    model, config, limits = Recurrent.random(10, end=-0.5), SearchConfig(beams=1), [13, 7, 5, 11, 3]
    expected = [plain_beam_search(model, config, *pair) for pair in enumerate(limits)]
    assert_same(run(model, config, list(range(5)), limits), expected)
    for sentence, (hypothesis,) in enumerate(expected):
        for i, token in enumerate(hypothesis.ids):
            log_probs = model.log_probs(sentence, hypothesis.ids[:i])
            assert log_probs[token] == max(log_probs)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("sample", [False, True])
def test_no_ngram_occurs_twice(size, sample):
    model, free = Recurrent.random(11, end=-3.0), SearchConfig(beams=3, n_best=3, sample=sample)
    config = SearchConfig(beams=3, n_best=3, sample=sample, no_repeat_ngram=size)

    def repeats(config: SearchConfig) -> int:
        found = run(model, config, list(range(8)), [15] * 8)
        ngrams = [
            Counter(itertools.pairwise(h.ids) if size == 2 else zip(*(h.ids[i:] for i in range(size)), strict=False))
            for group in found
            for h in group
        ]
        return sum(count > 1 for counter in ngrams for count in counter.values())

    assert repeats(free) > 0
    assert repeats(config) == 0


def test_min_length_gives_way_where_no_repeat_ngram_leaves_nothing():
    for config in [
        SearchConfig(beams=1, min_length=5, no_repeat_ngram=1),
        SearchConfig(min_length=5, no_repeat_ngram=1),
    ]:
        model = Recurrent.random(12, vocabulary=4)
        for (hypothesis,) in run(model, config, [0, 1, 2], [8, 8, 8], banned=[0]):
            assert sorted(hypothesis.ids) == [1, 2]


def test_banned_tokens_are_not_generated_and_keep_their_probability():
    model, config = Recurrent.random(13, end=-1.0), SearchConfig(beams=3, n_best=3)
    assert any({1, 4} & set(group[0].ids) for group in run(model, config, list(range(8)), [9] * 8))
    for sentence, group in enumerate(run(model, config, list(range(8)), [9] * 8, banned=[1, 4])):
        for hypothesis in group:
            assert not {1, 4} & set(hypothesis.ids)
            assert math.isclose(hypothesis.log_probability, model.log_probability(sentence, hypothesis.ids))
    assert run(model, config, [0], [9], banned=[1, 4], prefix=[[1]])[0][0].ids[0] == 1


LOGITS = [0.3, -0.4, 1.1, -3.0, 0.9, -1.2, 2.0, 0.0, -0.7]


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, 9),
        ({"temperature": 0.6}, 9),
        ({"top_k": 4}, 4),
        ({"top_k": 100}, 9),
        ({"top_p": 0.7}, 3),
        ({"top_k": 5, "top_p": 0.9, "temperature": 2.0}, 5),
        ({"top_p": 0.01}, 1),
    ],
    ids=str,
)
def test_frequencies_of_samples_match_the_renormalised_distribution(options, allowed):
    config, sentences = SearchConfig(sample=True, n_best=2, max_length=1, seed=3, **options), 3001
    found = search(Table([LOGITS]), config, max_lengths=torch.ones(sentences).long(), bos_id=BOS, eos_id=EOS)
    drawn = Counter(hypothesis.ids[0] if hypothesis.ids else EOS for group in found for hypothesis in group)
    ranked = sorted(range(9), key=lambda token: -LOGITS[token])[:allowed]
    weights = {token: math.exp(LOGITS[token] / options.get("temperature", 1.0)) for token in ranked}
    assert set(drawn) == set(ranked)
    expected = {token: 2 * sentences * weight / sum(weights.values()) for token, weight in weights.items()}
    chi_square = sum((drawn[token] - expected[token]) ** 2 / expected[token] for token in ranked)
    assert chi_square < 26.2  # exceeded once in a thousand with 8 degrees of freedom


def test_draws_follow_the_seed_the_sentence_the_draw_and_the_position():
    def draw(seed: int, sentence_ids: list[int]) -> list[list[list[int]]]:
        config = SearchConfig(sample=True, n_best=2, seed=seed, length_penalty="none")
        found = search(
            Table([[0.0] * 97]),
            config,
            max_lengths=torch.tensor([40, 40]),
            bos_id=BOS,
            eos_id=EOS,
            sentence_ids=sentence_ids,
            banned=[EOS],
        )
        return [[hypothesis.ids for hypothesis in group] for group in found]

    first, second = draw(1, [5, 6])
    assert draw(1, [6, 5]) == [second, first]
    outputs = [*first, *second, *draw(2, [5, 6])[0]]
    assert len({tuple(ids) for ids in outputs}) == 6
    assert all(len(set(ids)) > 20 for ids in outputs)


@pytest.mark.slow
@every_config
def test_a_cached_transformer_gives_what_it_gives_sentence_by_sentence_and_uncached(config, decoder):
    decoder, embedding, states = decoder.double(), torch.randn(7, 32).double(), torch.randn(5, 6, 32).double()
    lengths, limits = torch.tensor([6, 3, 1, 5, 2]), torch.tensor([9, 4, 7, 1, 5])

    def outputs(batch: list[int]) -> list[list[Hypothesis]]:
        state = Cached(decoder, embedding, states[batch], lengths[batch], config.rows_per_sentence)
        return search(state, config, max_lengths=limits[batch], bos_id=BOS, eos_id=EOS, sentence_ids=batch)

    together = outputs([0, 1, 2, 3, 4])
    for i, group in enumerate(together):
        assert_same(outputs([i]), [group])
        memory = decoder.read(states[[i], : lengths[i]])
        for ids, _, log_probability in group:
            log_probs = (decoder(embedding[[BOS, *ids]].unsqueeze(0), memory) @ embedding.T).log_softmax(2)
            forced = log_probs[0].gather(1, torch.tensor([*ids, EOS]).unsqueeze(1)).sum()
            assert math.isclose(log_probability, forced.item(), rel_tol=1e-10)


@pytest.mark.parametrize("config", [SearchConfig(beams=1), SearchConfig(beams=3), SearchConfig(sample=True, n_best=3)])
def test_finished_sentences_leave_the_batch(config):
    model = Recurrent.random(14, end=1.0)
    state = State(model, list(range(11)), config.rows_per_sentence)
    limits = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40])
    search(state, config, max_lengths=limits, bos_id=BOS, eos_id=EOS, banned=[EOS])  # none ends before its limit
    assert len(state.seen) == 41
    assert state.seen[0] == 11 * config.rows_per_sentence
    assert state.seen[-1] == config.rows_per_sentence
    assert sorted(state.seen, reverse=True) == state.seen
    assert sum(state.seen) < 0.3 * 41 * 11 * config.rows_per_sentence


def test_an_ensemble_averages_the_probabilities_of_its_members():
    one, two = Recurrent.random(15), Recurrent.random(16)
    config, sentences = SearchConfig(beams=4, n_best=4), [2, 5, 6]
    members = Ensemble([State(model, sentences, 4) for model in (one, two)])
    found = search(members, config, max_lengths=torch.tensor([9, 4, 7]), bos_id=BOS, eos_id=EOS)
    for sentence, group in zip(sentences, found, strict=True):
        for hypothesis in group:
            total = 0.0
            for i, token in enumerate([*hypothesis.ids, EOS]):
                pair = [model.log_probs(sentence, hypothesis.ids[:i])[token] for model in (one, two)]
                total += math.log((math.exp(pair[0]) + math.exp(pair[1])) / 2)
            assert math.isclose(hypothesis.log_probability, total, rel_tol=1e-10)


def test_an_ensemble_of_one_decoder_twice_is_that_decoder():
    model, config = Recurrent.random(17), SearchConfig(beams=3, n_best=3)
    twice = Ensemble([State(model, [0, 1, 2], 3), State(model, [0, 1, 2], 3)])
    found = search(twice, config, max_lengths=torch.tensor([9, 4, 7]), bos_id=BOS, eos_id=EOS)
    assert_same(found, run(model, config, [0, 1, 2], [9, 4, 7]))


@pytest.mark.parametrize("config", [SearchConfig(beams=1), SearchConfig(beams=4, n_best=4)])
def test_ties_are_broken_alike_in_every_batch(config):
    def tied(sentences: int) -> list[list[Hypothesis]]:
        return search(Table([[0.0] * 7]), config, max_lengths=torch.full((sentences,), 5), bos_id=BOS, eos_id=EOS)

    assert tied(8) == tied(1) * 8


@pytest.mark.parametrize("config", [SearchConfig(beams=1), SearchConfig(beams=2), SearchConfig(sample=True)])
def test_half_precision_logits_are_summed_in_single_precision(config):
    state = Table([[0.0, 0.1, 0.2, 0.3]], torch.bfloat16)
    ((hypothesis,),) = search(
        state, config, max_lengths=torch.tensor([200]), bos_id=BOS, eos_id=EOS, prefix=[[1] * 200]
    )
    log_probs = state.logits[0].double().log_softmax(0)
    assert math.isclose(hypothesis.log_probability, 200 * log_probs[1] + log_probs[EOS], rel_tol=1e-5)


@pytest.mark.parametrize(("size", "count"), [(5, 3), (5, 8), (1511, 4)])
def test_the_best_of_a_row_equal_topk(size, count):
    scores = torch.randn(13, size)
    values, indices = best(scores, count)
    expected = scores.topk(min(count, size))
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


def test_the_best_of_a_row_with_little_allowed_lie_inside_the_vocabulary():
    for size in range(1281, 1345):  # the last group of 64 is full or not
        allowed = torch.randint(size, (50, 3))
        scores = torch.full((50, size), -torch.inf).scatter_(1, allowed, torch.randn(50, 3))
        values, indices = best(scores, 5)
        assert torch.equal(values, scores.topk(5).values)
        assert torch.equal(scores.gather(1, indices)[values > -torch.inf], values[values > -torch.inf])
        assert indices.max() < size


@pytest.mark.parametrize("config", [SearchConfig(beams=1, max_length=5), SearchConfig(beams=3, max_length=5)])
def test_max_length_of_the_config_holds_for_every_sentence(config):
    found = run(Recurrent.random(19), config, [0, 1, 2], [99, 4, 6], banned=[EOS])
    assert [len(group[0].ids) for group in found] == [5, 4, 5]


def test_no_sentences_give_no_output():
    assert run(Recurrent.random(1), SearchConfig(), [], []) == []


@pytest.mark.parametrize("config", [SearchConfig(beams=1), SearchConfig(beams=2), SearchConfig(sample=True)])
def test_nan_is_reported(config):
    with pytest.raises(FloatingPointError, match="NaN"):
        search(Table([[math.nan] * 5]), config, max_lengths=torch.tensor([3]), bos_id=BOS, eos_id=EOS)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ([[1]], "1 prefixes for 2 sentences"),
        ([], "0 prefixes for 2 sentences"),
        ([[1], [1, 2, 1, 2]], "sentence 1 has 4 tokens, but its max length is 3"),
        ([[], [1, EOS]], "sentence 1 holds the end of sentence"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(prefix, message):
    with pytest.raises(ValueError, match=message):
        run(Recurrent.random(1), SearchConfig(), [0, 1], [5, 3], prefix=prefix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eos_id": -1}, "eos_id=-1 or banned=.* is no id of 5 tokens"),
        ({"eos_id": 5}, "eos_id=5"),
        ({"banned": [5]}, r"banned=\[5\]"),
        ({"sentence_ids": [3, 4], "config": SearchConfig(sample=True)}, "2 sentence_ids for 1 sentences"),
    ],
)
def test_ids_that_are_none_are_refused(options, message):
    given = {"config": SearchConfig(beams=1), "eos_id": EOS} | options
    with pytest.raises(ValueError, match=message):
        search(Table([[0.0] * 5]), max_lengths=torch.tensor([3]), bos_id=BOS, **given)


def test_an_empty_ensemble_is_refused():
    with pytest.raises(ValueError, match="at least one decoder"):
        Ensemble([])


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"beams": 0}, ["--search.beams=0"]),
        ({"alpha": -1.0}, ["--search.alpha=-1.0"]),
        ({"beams": 2, "n_best": 3}, ["--search.n_best=3", "--search.beams=2"]),
        ({"min_length": 9, "max_length": 8}, ["--search.min_length=9", "--search.max_length=8"]),
        ({"sample": True, "temperature": 0.0}, ["--search.temperature=0.0"]),
        ({"sample": True, "top_p": 1.2}, ["--search.top_p=1.2"]),
        ({"top_k": 4}, ["--search.top_k=4", "--search.sample"]),
    ],
    ids=str,
)
def test_settings_that_contradict_are_refused_by_the_names_of_their_flags(options, flags):
    with pytest.raises(ValueError) as error:
        SearchConfig(**options)
    assert all(flag in str(error.value) for flag in flags)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_config
def test_a_gpu_gives_what_the_cpu_gives(config):
    model, limits = Recurrent.random(18), torch.tensor([13, 7, 5, 11, 3, 17, 2, 9])
    expected = run(model, config, list(range(8)), limits.tolist(), prefix=PREFIXES, banned=[1])
    model = Recurrent(model.cell.cuda(), *(tensor.cuda() for tensor in model[1:]))
    state = State(model, list(range(8)), config.rows_per_sentence)
    found = search(state, config, max_lengths=limits.cuda(), bos_id=BOS, eos_id=EOS, prefix=PREFIXES, banned=[1])
    assert_same(found, expected)


def test_a_search_goes_through_few_sizes_of_batches():
    sizes = [batch_size(alive, torch.device("cpu")) for alive in range(1, 200)]
    assert all(alive <= size < max(2 * alive, alive + 16) for alive, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [1, 2, 4, 8, *range(16, 209, 16)]
    assert {batch_size(alive, torch.device("meta")) for alive in range(1, 200)} == {64, 128, 256}
