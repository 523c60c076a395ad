from collections import Counter

import numpy as np
import pytest

from tasks.errors import InputError
from tasks.translation.batching import epoch_examples, plan_batches


@pytest.fixture
def lengths():
    """Sides of about the same length, from 1 to 80 and 17 on average, as subwords of captions or talks are."""
    random = np.random.default_rng(3)
    source = np.clip(np.exp(random.normal(2.7, 0.5, 20_011)), 1, 80).astype(np.int32)
    target = np.clip(source * np.exp(random.normal(0.0, 0.2, 20_011)), 1, 80).astype(np.int32)
    return source, target


def plan(lengths, examples=None, **options):
    source, target = lengths
    examples = np.arange(len(source)) if examples is None else examples
    defaults = dict(tokens=997, seed=1, epoch=0, window=5_003, shuffle=True)
    return plan_batches(source, target, examples=examples, **(defaults | options))


def cost(batch, lengths):
    return len(batch) * max(int(side[batch].max()) for side in lengths)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_comes_exactly_once(lengths, shuffle):
    shown = [example for batch in plan(lengths, shuffle=shuffle) for example in batch]
    assert sorted(shown) == list(range(20_011))
    assert {type(example) for example in shown} == {int}


def test_examples_that_repeat_come_as_often_as_they_are_given(lengths):
    examples = np.array([5, 7, 5, 11, 5, 7])
    shown = Counter(example for batch in plan(lengths, examples) for example in batch)
    assert shown == {5: 3, 7: 2, 11: 1}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("tokens", [80, 101, 997, 8_192])
def test_no_batch_exceeds_the_budget_with_padding_counted(lengths, tokens, shuffle):
    assert max(cost(batch, lengths) for batch in plan(lengths, tokens=tokens, shuffle=shuffle)) <= tokens


def test_no_batch_stops_before_the_budget_is_used(lengths):
    batches = plan(lengths, shuffle=False)
    for batch, after in zip(batches, batches[1:], strict=False):
        assert cost([*batch, after[0]], lengths) > 997


def test_the_batch_where_lengths_jump_is_cut_before_the_jump():
    source, target = np.array([1, 1, 1, 9]), np.array([1, 1, 1, 2])
    batches = plan_batches(source, target, examples=np.arange(4), tokens=11, seed=0, epoch=0, shuffle=True)
    assert sorted(sorted(batch) for batch in batches) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(("tokens", "most"), [(997, 0.03), (4_096, 0.08)])
def test_little_of_a_batch_is_padding(lengths, tokens, most):
    real = padded = 0
    for batch in plan(lengths, tokens=tokens, window=50_000):
        real += sum(int(side[batch].sum()) for side in lengths)
        padded += sum(len(batch) * int(side[batch].max()) for side in lengths)
    assert 1 - real / padded < most


def test_the_same_seed_and_epoch_give_the_same_order_whatever_the_global_generators_do(lengths):
    first = plan(lengths, seed=5, epoch=3)
    np.random.seed(0)
    assert plan(lengths, seed=5, epoch=3) == first


@pytest.mark.parametrize("other", [dict(epoch=4), dict(seed=6), dict(seed=3, epoch=5)])
def test_another_seed_or_epoch_gives_other_batches_in_another_order(lengths, other):
    first, second = plan(lengths, seed=5, epoch=3), plan(lengths, **(dict(seed=5, epoch=3) | other))
    assert len({tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in second}) < 10


def test_short_and_long_batches_are_mixed_over_the_epoch(lengths):
    rows = np.array([len(batch) for batch in plan(lengths, window=50_000)])
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.15


def test_unshuffled_batches_go_from_long_to_short_and_ignore_the_seed(lengths):
    batches = plan(lengths, shuffle=False)
    longest = np.maximum(*lengths)[np.concatenate(batches)]
    assert (np.diff(longest) <= 0).all()
    assert plan(lengths, shuffle=False, seed=9, epoch=9, window=7) == batches


def test_no_examples_make_no_batches(lengths):
    assert plan(lengths, np.array([], dtype=int)) == []


def test_empty_sides_have_a_place():
    empty = np.zeros(5, dtype=int)
    assert plan_batches(empty, empty, examples=np.arange(5), tokens=3, seed=0, epoch=0, shuffle=False) == [
        [0, 1, 2],
        [3, 4],
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_the_type_of_the_lengths_changes_nothing(lengths, dtype):
    narrow = tuple(side.astype(dtype) for side in lengths)
    assert plan(narrow, shuffle=False) == plan(lengths, shuffle=False)


def test_an_example_over_the_budget_is_named_with_the_flag(lengths):
    source, target = (side.copy() for side in lengths)
    target[7], target[13] = 1_201, 1_301
    message = r"example 7 has 1201 tokens .* --data\.tokens=997 .*\(2 such examples\): give --data\.tokens=1301 or more"
    with pytest.raises(InputError, match=message):
        plan((source, target))
    assert plan((source, target), np.array([1, 2, 3]))


CORPUS = np.array([0] * 101 + [1] * 47 + [2] * 30)
KEPT = np.setdiff1d(np.arange(178), [0, 100, 150])  # 99, 47 and 29 rows are left


def counts(epochs, weights, **options):
    shown = [epoch_examples(KEPT, CORPUS, weights, seed=1, epoch=epoch, **options) for epoch in epochs]
    return np.bincount(np.concatenate(shown), minlength=len(CORPUS))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_weight_one_shows_every_kept_example_once_per_epoch(epoch):
    assert counts([epoch], (1.0, 1.0, 1.0)).tolist() == np.isin(np.arange(178), KEPT).astype(int).tolist()


@pytest.mark.parametrize("epoch", [0, 3])
def test_whole_weights_show_every_example_that_many_times(epoch):
    expected = np.array([2, 1, 0])[CORPUS] * np.isin(np.arange(178), KEPT)
    assert counts([epoch], (2.0, 1.0, 0.0)).tolist() == expected.tolist()


def test_weight_one_half_shows_one_half_and_then_the_other():
    weights = (0.0, 0.5, 0.0)
    first, second = counts([0], weights), counts([1], weights)
    assert abs(first.sum() - 47 / 2) <= 1
    assert (first + second).tolist() == (CORPUS == 1).astype(int).tolist()


@pytest.mark.parametrize("weight", [0.07, 0.3, 1.7, 3.25])
def test_no_example_of_a_weighted_corpus_is_starved_or_favoured(weight):
    shown = counts(range(100), (weight, 1.0, weight))[KEPT]
    for number in (0, 2):
        own = shown[CORPUS[KEPT] == number]
        assert own.max() - own.min() <= 1
        assert own.sum() == round(100 * weight * len(own))


def test_part_of_a_corpus_is_drawn_from_all_over_it_and_depends_on_the_seed():
    first = epoch_examples(KEPT, CORPUS, (0.5, 0.0, 0.0), seed=1, epoch=0)
    assert 20 < first.mean() < 80
    assert set(first) != set(epoch_examples(KEPT, CORPUS, (0.5, 0.0, 0.0), seed=2, epoch=0))
