"""The toy task: what it learns, and that a launcher starts it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from recipes.reverse import BOS, EOS, PAD, ZERO, Reverse, Strings
from transformer_core import BlockConfig
from transformer_core.search import DecoderState, SearchConfig, search

REPOSITORY = Path(__file__).parents[2]
BLOCK = BlockConfig(dim=16, num_heads=2, hidden_dim=20, dropout=0.0)


@pytest.fixture
def task() -> Reverse:
    return Reverse(Strings(longest=6, train=23, valid=17, batch=5), BLOCK, depth=2)


@pytest.mark.slow
def test_it_reverses_more_than_99_in_100_unseen_strings_through_the_launcher(tmp_path):
    flags = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "recipes.reverse"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(
        [*command, f"--train.out={tmp_path / 'run'}"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["results"][report["chosen"]]["valid"]["exact"] > 0.99
    assert "PASS: exact" in ended.stderr


def test_a_batch_holds_the_digits_and_their_reverse_shifted_by_one(task):
    batch = task.batch("train", [3, 11, 4], epoch=2)
    assert batch.rows == [3, 11, 4]
    for source, target, labels in zip(batch.source.tolist(), batch.target.tolist(), batch.labels.tolist(), strict=True):
        digits = [token for token in source if token != PAD]
        assert 1 <= len(digits) <= 6 and min(digits) >= ZERO
        assert [token for token in target if token != PAD] == [BOS, *reversed(digits)]
        assert [token for token in labels if token != PAD] == [*reversed(digits), EOS]
    assert task.targets(batch) == sum(len(task.digits("train", 2, row)) + 1 for row in (3, 11, 4))


def test_a_string_follows_from_split_epoch_and_row_and_from_no_generator(task):
    draws = {}
    for state in (1, 2):
        random.seed(state)
        torch.manual_seed(state)
        for split, epoch in (("train", 0), ("train", 1), ("valid", 0)):
            rows = [task.digits(split, epoch, row) for row in range(17)]
            assert draws.setdefault((split, epoch), rows) == rows
    assert len({str(rows) for rows in draws.values()}) == 3


def test_a_plan_holds_every_string_once(task):
    for split, count in (("train", 23), ("valid", 17)):
        plan = task.plan(split, 3)
        assert [row for rows in plan for row in rows] == list(range(count)) and max(map(len, plan)) == 5


def test_padding_changes_no_loss(task):
    model = task.build().eval()
    rows = [3, 11, 4, 7]
    together = task.loss(model, task.batch("train", rows, 0)).total
    apart = sum(task.loss(model, task.batch("train", [row], 0)).total for row in rows)
    assert_close(together, apart)


@torch.inference_mode()
def test_step_by_step_it_says_what_it_says_at_once(task):
    model = task.build().eval()
    batch = task.batch("valid", range(5), 0)
    state = model.start(batch.source, capacity=batch.target.size(1))
    assert isinstance(state, DecoderState)
    steps = [state.step(tokens) for tokens in batch.target.T]
    assert_close(torch.stack(steps, dim=1), model(batch.source, batch.target))


def test_what_it_says_is_scored_against_the_string_of_the_same_row(task):
    right = [task.digits("valid", 0, row)[::-1] for row in range(17)]
    assert task.measure("valid", right) == {"exact": 1.0}
    assert task.measure("valid", [*right[:3], *right[4:], right[3]])["exact"] < 0.5
    assert task.measure("valid", [*right[:-1], right[-1] + [EOS]]) == {"exact": 16 / 17}
    assert task.samples("valid", right)[0].split() == [
        "".join(str(token - ZERO) for token in task.digits("valid", 0, 0)),
        "->",
        "".join(str(token - ZERO) for token in right[0]),
    ]


@torch.inference_mode()
def test_strings_that_are_finished_leave_the_search_without_harm(task):
    model = task.build().eval()
    batch = task.batch("valid", range(17), 0)
    limits = torch.tensor([2 + row % 5 for row in range(17)])

    def say(rows: list[int]) -> list[list[int]]:
        state = model.start(batch.source[rows], capacity=9)
        found = search(state, SearchConfig(beams=1), max_lengths=limits[rows], bos_id=BOS, eos_id=EOS)
        return [hypotheses[0].ids for hypotheses in found]

    assert say(list(range(17))) == [say([row])[0] for row in range(17)]
