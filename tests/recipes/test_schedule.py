import math

import pytest
import torch
from torch.optim import lr_scheduler

from recipes.schedule import learning_rate

DIM, WARMUP, STEPS = 512, 7, 31


def rates(**settings) -> list[float]:
    return [learning_rate(step, **{"warmup": WARMUP, "steps": STEPS} | settings) for step in range(1, STEPS + 1)]


def torch_rates(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_noam_is_equation_3_of_vaswani():
    def equation(step: int) -> float:
        return DIM**-0.5 * min(step**-0.5, step * WARMUP**-1.5)

    assert rates(schedule="noam", peak=DIM**-0.5) == pytest.approx([equation(step) for step in range(1, STEPS + 1)])


def test_noam_is_inverse_sqrt_with_the_peak_that_its_formula_has():
    peak = DIM**-0.5 * WARMUP**-0.5
    assert rates(schedule="noam", peak=DIM**-0.5) == pytest.approx(rates(schedule="inverse_sqrt", peak=peak))


def test_inverse_sqrt_falls_with_the_root_of_the_step():
    after = rates(schedule="inverse_sqrt", peak=2.0)[WARMUP - 1 :]
    assert after == pytest.approx([2.0 * math.sqrt(WARMUP / step) for step in range(WARMUP, STEPS + 1)])


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("cosine", lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP)),
        ("linear", lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS - WARMUP)),
        ("constant", lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0)),
    ],
)
def test_after_warmup_it_is_the_schedule_of_torch(schedule, make):
    after = rates(schedule=schedule, peak=2.0)[WARMUP - 1 :]
    assert after == pytest.approx(torch_rates(make, STEPS - WARMUP + 1), abs=1e-12)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "linear", "constant"])
def test_warmup_rises_linearly_to_the_peak_whatever_follows(schedule):
    rising = torch_rates(lambda optimizer: lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1), WARMUP)
    seen = rates(schedule=schedule, peak=2.0)
    assert seen[:WARMUP] == pytest.approx(rising) and max(seen) == pytest.approx(2.0)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "linear", "constant", "noam"])
def test_a_warmup_of_one_update_begins_at_the_peak(schedule):
    assert rates(schedule=schedule, peak=2.0, warmup=1)[0] == pytest.approx(2.0)
