import io
import random

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

from tasks.translation.filters import Filter, apply_filter


def dataset(pairs, **columns):
    return Dataset.from_dict({"source": [one for one, _ in pairs], "target": [other for _, other in pairs]} | columns)


def distinct(count):
    return dataset([(f"source {n}", f"target {n}") for n in range(count)])


def run(source_lengths, target_lengths, rules, table=None):
    table = distinct(len(source_lengths)) if table is None else table
    kept, report = apply_filter(table, np.array(source_lengths), np.array(target_lengths), rules)
    return kept.tolist(), report


def counts(report):
    return {rule.reason: rule.pairs for rule in report.dropped if rule.pairs}


def first_reason(index, pairs, source, target, rules):
    """The rules once more, one pair at a time, in words of plain Python."""
    short, long = sorted((source, target))
    reasons = [
        ("empty source", source == 0),
        ("empty target", target == 0),
        (f"source under {rules.min_length} pieces", source < rules.min_length),
        (f"target under {rules.min_length} pieces", target < rules.min_length),
        (f"source over {rules.max_length} pieces", source > rules.max_length),
        (f"target over {rules.max_length} pieces", target > rules.max_length),
        (
            f"one side over {rules.max_ratio:g} times the other",
            long > 10 and rules.max_ratio > 0 and short > 0 and long / short > rules.max_ratio,
        ),
        ("duplicate", rules.drop_duplicates and pairs[index] in pairs[:index]),
        ("target is a copy of the source", rules.drop_copies and pairs[index][0] == pairs[index][1]),
    ]
    return next((reason for reason, applies in reasons if applies), None)


@pytest.mark.parametrize(
    "rules",
    [
        Filter(),
        Filter(min_length=2, max_length=17, max_ratio=1.5, drop_duplicates=True, drop_copies=True),
        Filter(max_length=11, max_ratio=0.0, drop_duplicates=True),
        Filter(min_length=3, max_length=23, drop_copies=True),
    ],
)
def test_each_pair_is_dropped_for_the_first_rule_that_a_plain_loop_finds(rules):
    draw = random.Random(5)
    words = ["", "a", "b", "ab", "ba", "aab"]
    pairs = [(draw.choice(words), draw.choice(words)) for _ in range(997)]
    # The same text always has the same length, as from a vocabulary.
    lengths = {word: number for word, number in zip(words, (0, 1, 12, 9, 18, 31), strict=True)}
    source, target = ([lengths[side] for side in sides] for sides in zip(*pairs, strict=True))
    reasons = [first_reason(n, pairs, source[n], target[n], rules) for n in range(len(pairs))]
    kept, report = run(source, target, rules, dataset(pairs))
    assert kept == [n for n, reason in enumerate(reasons) if reason is None]
    assert counts(report) == {reason: reasons.count(reason) for reason in set(reasons) if reason}
    assert report.kept + sum(rule.pairs for rule in report.dropped) == report.total == 997
    for rule in report.dropped:
        assert rule.example == (str(reasons.index(rule.reason) + 1) if rule.pairs else "")


def test_short_sentences_may_differ_in_length_as_they_like():
    kept, _ = run([1, 1, 10, 11, 4, 4], [10, 11, 1, 1, 12, 13], Filter(max_ratio=3.0))
    assert kept == [0, 2, 4]


def test_the_limits_themselves_are_kept():
    kept, _ = run([2, 1, 7, 8, 7], [7, 7, 2, 2, 8], Filter(min_length=2, max_length=7))
    assert kept == [0, 2]


def test_a_pair_is_a_duplicate_only_where_both_sides_are_the_same():
    pairs = [("a", "b"), ("a", "c"), ("a", "b"), ("c", "b"), ("ab", ""), ("", "ab"), ("a", "b"), ("b", "a")]
    kept, report = run([5] * 8, [5] * 8, Filter(drop_duplicates=True), dataset(pairs))
    assert kept == [0, 1, 3, 4, 5, 7]
    assert counts(report) == {"duplicate": 2}


def test_duplicates_and_copies_are_kept_unless_asked_otherwise():
    table = dataset([("a", "a"), ("a", "a"), ("b", "B")])
    assert run([1] * 3, [1] * 3, Filter(), table)[0] == [0, 1, 2]
    assert run([1] * 3, [1] * 3, Filter(drop_copies=True), table)[0] == [2]


def test_rows_that_were_selected_are_read_in_the_order_of_the_selection():
    table = dataset([("a", "x"), ("b", "b"), ("c", "y"), ("a", "x")]).select([3, 1, 0])
    kept, report = run([1] * 3, [1] * 3, Filter(drop_duplicates=True, drop_copies=True), table)
    assert kept == [0]
    assert [rule.example for rule in report.dropped if rule.pairs] == ["3", "2"]


def test_the_example_is_counted_within_its_corpus():
    table = dataset([(f"s {n}", f"t {n}") for n in range(5)], corpus=[0, 0, 0, 1, 1])
    _, report = run([1, 1, 1, 1, 0], [1, 0, 1, 1, 1], Filter(), table)
    assert {rule.reason: rule.example for rule in report.dropped if rule.pairs} == {
        "empty source": "2:2",
        "empty target": "1:2",
    }


def test_nothing_in_and_nothing_out_are_reported_too():
    assert run([0, 0], [1, 1], Filter())[0] == []
    kept, report = apply_filter(distinct(3).select([]), np.array([], dtype=int), np.array([], dtype=int), Filter())
    assert len(kept) == 0
    assert report.table().row_count == 7


def test_the_table_says_how_many_why_and_where():
    _, report = run([0, 300, 5, 5], [5, 5, 5, 301], Filter())
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table())
    lines = console.file.getvalue().splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [
        ["empty source", "1", "25.00", "1"],
        ["empty target", "0", "0.00", ""],
        ["source over 256 pieces", "1", "25.00", "2"],
        ["target over 256 pieces", "1", "25.00", "4"],
        ["one side over 3 times the other", "0", "0.00", ""],
        ["kept", "1", "25.00", ""],
        ["all", "4", "100.00", ""],
    ]
    assert "Pairs are counted from 1" in " ".join(lines)


def test_lengths_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match="1 and 3 lengths for 3 pairs"):
        run([1], [1, 1, 1], Filter(), distinct(3))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"min_length": 0}, "min_length=0"),
        ({"min_length": 8, "max_length": 7}, "min_length=8 must be from 1 to max_length=7"),
        ({"max_ratio": 0.5}, "max_ratio=0.5"),
        ({"max_ratio": -1.0}, "max_ratio=-1.0"),
        ({"max_ratio": float("nan")}, "max_ratio=nan"),
    ],
)
def test_rules_that_keep_nothing_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        Filter(**fields)
