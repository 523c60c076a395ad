"""The end of a run: score the candidates for its final weights, keep the best, say whether it met expectations."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from recipes import checkpoint
from recipes.evaluation import check_reported, evaluate
from recipes.loop import Run
from recipes.state import CHECKPOINTS, mean_weights
from recipes.tracking import console, number
from recipes.train_config import TrainConfig
from tasks.errors import InputError
from tasks.task import Split, Task
from tasks.writing import whole

log = logging.getLogger(__name__)

MODEL = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a recipe is known to reach; a run that ends below says so."""

    metric: str = ""
    """Metric of the test split; empty: nothing is expected."""
    at_least: float = 0.0
    """The least of it that counts as PASS; of a metric of which less is better, the most."""


def finish(task: Task[Any], run: Run, config: TrainConfig, expected: Expected, splits: list[Split]) -> None:
    """Score last, best and averaged weights on each split, write the best by `monitor` of the first, and a report.

    Writes `model.safetensors` and `report.json` into the run folder.
    """
    folder, (state, accelerator) = Path(config.out), run
    results: dict[str, dict[str, dict[str, float]]] = {}
    lines: dict[str, list[str]] = {}
    weights = candidates(run, config)
    for name, tensors in weights.items():
        state.model.load_state_dict(tensors)
        results[name] = {}
        for split in splits:
            given = task, state.model, split, accelerator
            results[name][split], lines[name] = evaluate(*given, workers=config.workers)
    check_reported("--train.monitor", config.monitor, results["last"][splits[0]])
    sign = task.sign(config.monitor)
    chosen = max(results, key=lambda name: sign * results[name][splits[0]][config.monitor])
    state.model.load_state_dict(weights[chosen])
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    with whole(folder / MODEL) as aside:
        checkpoint.write_tensors(aside, state.model.state_dict())
    report = {"chosen": chosen, "results": results, "scores": lines[chosen]}
    with whole(folder / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console().print(table(results, chosen))
    for line in lines[chosen]:
        console().print(line, highlight=False, soft_wrap=True)
    if expected.metric:
        said = verdict(results[chosen][splits[-1]], expected, run, sign=task.sign(expected.metric))
        console().print(said, highlight=False, soft_wrap=True)


def candidates(run: Run, config: TrainConfig) -> dict[str, dict[str, Tensor]]:
    """Return the weights that may become the model of the run, by name; of broken checkpoints only the last has to be.

    Raises InputError where that one is broken.
    """
    folder, progress = Path(config.out) / CHECKPOINTS, run.state.progress
    kind = "ema" if config.ema else "model"

    def weights(step: int) -> dict[str, Tensor]:
        return checkpoint.load(checkpoint.path_of(folder, step)).tensors[kind]

    found = {"last": weights(progress.step)}
    if progress.best and progress.best[0][1] != progress.step:
        with left_out_if_broken("best"):
            found["best"] = weights(progress.best[0][1])
    if config.average:
        paths = [checkpoint.path_of(folder, step) for _, step in progress.best[: config.average]]
        if config.average_of == "last":
            paths = checkpoint.list_checkpoints(folder)[-config.average :]
        name = f"averaged ({config.average_of} {len(paths)})"
        with left_out_if_broken(name):
            found[name] = mean_weights(paths)
    return found


@contextmanager
def left_out_if_broken(name: str) -> Iterator[None]:
    """Go on without weights whose checkpoint cannot be read, with a warning."""
    try:
        yield
    except InputError as error:
        log.warning("the weights %r are left out: %s", name, error)


def table(results: dict[str, dict[str, dict[str, float]]], chosen: str) -> Table:
    """Lay out the metrics, a row each, of all candidates on each split."""
    columns = [
        (f"{name}{' *' if name == chosen else ''}\n{split}", results[name][split])
        for name in results
        for split in results[name]
    ]
    result = Table("", *(title for title, _ in columns), title="Candidates for the final weights", caption="* chosen")
    for metric in columns[0][1]:
        result.add_row(metric, *(number(metrics[metric]) for _, metrics in columns))
    return result


def verdict(metrics: dict[str, float], expected: Expected, run: Run, *, sign: int) -> str:
    """Compare with what the recipe is known to reach, and name the likely cause of a distance; `sign` as in `Task`."""
    check_reported("--expected.metric", expected.metric, metrics)
    reached = metrics[expected.metric]
    said = (
        f"{expected.metric} {number(reached)}, expected {number(expected.at_least)} or {'more' if sign > 0 else 'less'}"
    )
    if sign * reached >= sign * expected.at_least:
        return f"PASS: {said}"
    progress = run.state.progress
    best = progress.best[0][1] if progress.best else 0
    if progress.skipped:
        cause = f"{progress.skipped} updates were left out for gradients that were not finite"
    elif best >= progress.step * 0.9:
        cause = f"validation was still improving at update {best}, so train longer"
    elif best < progress.step * 0.5:
        cause = f"validation was best at update {best} of {progress.step}: overfitting, so more dropout or data"
    else:
        cause = "the spread between seeds, or settings that differ from the recipe"
    return f"BELOW: {said}; likely cause: {cause}"
