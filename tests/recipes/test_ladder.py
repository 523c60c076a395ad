"""The end of a run: which weights are tried, which are kept, and what is said of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.table import Table
from safetensors.torch import load_file
from torch.testing import assert_close

from recipes import checkpoint
from recipes.ladder import Expected, candidates, finish, verdict
from recipes.loop import Run, train
from recipes.reverse import Recipe, Reverse, Strings
from recipes.tracking import console
from recipes.train_config import TrainConfig
from tasks.errors import InputError
from transformer_core import BlockConfig

BLOCK = BlockConfig(dim=8, num_heads=2, hidden_dim=12, dropout=0.1)
STRINGS = Strings(longest=4, train=24, valid=7, batch=8)
CONFIG = TrainConfig(
    steps=9, warmup=2, evaluate_every=3, save_every=1, log_every=5, threads=1, tensorboard=False, keep_last=2, average=2
)


class Probe(Reverse):
    """Tells a weight instead of a string; its loss is the distance of that weight from `wanted`."""

    wanted = 0.0

    def predict(self, split, model, batch):
        return [(row, float(model.output.bias[5])) for row in batch.rows]

    def measure(self, split, outputs: Sequence[float]) -> dict[str, float]:
        return {"loss": abs(outputs[0] - self.wanted), "near": -abs(outputs[0] - self.wanted)}

    def samples(self, split, outputs) -> list[str]:
        return [f"a line of {split}"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def trained(folder: Path, **changes) -> tuple[Probe, Run, TrainConfig]:
    config = replace(CONFIG, out=str(folder), **changes)
    task = Probe(STRINGS, BLOCK, depth=1)
    return task, train(task, config, Recipe(data=STRINGS, block=BLOCK, depth=1, train=config)), config


def saved(config: TrainConfig, step: int, kind: str = "model") -> dict[str, torch.Tensor]:
    return checkpoint.load(Path(config.out, "checkpoints", f"step-{step:08d}")).tensors[kind]


def mean(*parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([part[name].double() for part in parts]).mean(0).float() for name in parts[0]}


@pytest.mark.parametrize("settings", [{}, {"monitor": "near"}], ids=["least loss", "most"])
@pytest.mark.parametrize("winner", ["last", "best", "averaged (last 2)"])
def test_the_candidate_that_scores_best_is_the_model_on_disk(tmp_path, capsys, winner, settings):
    task, run, config = trained(tmp_path, **settings)
    run.state.progress.best = [(0.0, 8)]
    tried = {"last": saved(config, 9), "best": saved(config, 8), "averaged (last 2)": {}}
    tried["averaged (last 2)"] = mean(tried["last"], tried["best"])
    task.wanted = float(tried[winner]["output.bias"][5])
    finish(task, run, config, Expected(), ["valid", "train"])
    written = load_file(tmp_path / "model.safetensors")
    assert_close(written, tried[winner], rtol=0, atol=0)
    assert_close(dict(run.state.model.state_dict()), written, rtol=0, atol=0)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chosen"] == winner and list(report["results"]) == list(tried)
    distances = {name: splits["valid"]["loss"] for name, splits in report["results"].items()}
    assert distances.pop(winner) < 1e-9 and min(distances.values()) > 1e-6
    assert report["scores"] == ["a line of train"]
    shown = capsys.readouterr().err
    assert "Candidates for the final weights" in shown and "PASS" not in shown and "BELOW" not in shown


def test_the_best_by_monitor_are_averaged_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Probe, "wanted", 1.0)  # the weight moves away from it
    _, run, config = trained(tmp_path, keep_last=1, keep_best=3, average_of="best", monitor="near")
    steps = [step for _, step in run.state.progress.best]
    assert sorted(steps) == [3, 6, 9] and set(steps[:2]) != {6, 9}
    found = candidates(run, config)
    assert list(found) == [*(["last"] if steps[0] == 9 else ["last", "best"]), "averaged (best 2)"]
    assert_close(found["averaged (best 2)"], mean(*(saved(config, step) for step in steps[:2])), rtol=0, atol=0)


def test_the_moving_average_stands_for_the_weights_where_there_is_one(tmp_path):
    _, run, config = trained(tmp_path, ema=0.9, average=0)
    found = candidates(run, config)
    assert_close(found["last"], saved(config, 9, "ema"), rtol=0, atol=0)
    assert not torch.equal(found["last"]["output.bias"], saved(config, 9)["output.bias"])


def test_the_average_is_that_of_the_weights_and_not_of_their_moving_averages(tmp_path):
    _, run, config = trained(tmp_path, ema=0.9)
    found = candidates(run, config)["averaged (last 2)"]
    assert_close(found, mean(saved(config, 8), saved(config, 9)), rtol=0, atol=0)


def test_the_first_split_chooses_and_the_lines_are_those_of_the_chosen(tmp_path):
    task, run, config = trained(tmp_path, average=0)
    run.state.progress.best = [(0.0, 8)]
    wanted = {split: float(saved(config, step)["output.bias"][5]) for split, step in (("valid", 8), ("train", 9))}
    task.measure = lambda split, outputs: {"loss": abs(outputs[0] - wanted[split])}
    task.samples = lambda split, outputs: [str(outputs[0])]
    finish(task, run, config, Expected(), ["valid", "train"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chosen"] == "best" and report["scores"] == [str(wanted["valid"])]


def test_a_folder_of_another_name_is_no_checkpoint_to_average(tmp_path):
    _, run, config = trained(tmp_path)
    (tmp_path / "checkpoints" / "step-notes").mkdir()
    assert "averaged (last 2)" in candidates(run, config)


def test_a_broken_checkpoint_is_left_out_unless_it_is_the_last(tmp_path, caplog):
    _, run, config = trained(tmp_path)
    run.state.progress.best = [(0.0, 8)]
    (tmp_path / "checkpoints" / "step-00000008" / "model.safetensors").write_bytes(b"")
    assert list(candidates(run, config)) == ["last"]
    assert "the weights 'best' are left out: " in caplog.text and "averaged (last 2)" in caplog.text
    (tmp_path / "checkpoints" / "step-00000009" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="step-00000009 cannot be used"):
        candidates(run, config)


def test_the_same_checkpoint_is_not_tried_twice(tmp_path):
    _, run, config = trained(tmp_path, average=0)
    run.state.progress.best = [(0.0, 9)]
    assert list(candidates(run, config)) == ["last"]


@pytest.mark.parametrize(
    ("at_least", "said"),
    [(-1.0, "PASS: near -0.1, expected -1 or more"), (0.5, "BELOW: near -0.1, expected 0.5 or more; likely cause: ")],
)
def test_the_last_line_says_whether_the_run_met_what_is_expected(tmp_path, capsys, at_least, said):
    task, run, config = trained(tmp_path, average=0)
    task.wanted = run.state.model.output.bias[5].item() + 0.1
    run.state.progress.best = [(0.0, 9)]
    finish(task, run, config, Expected(metric="near", at_least=at_least), ["valid"])
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_what_is_expected_is_asked_of_the_last_split(tmp_path, capsys):
    task, run, config = trained(tmp_path, average=0)
    task.measure = lambda split, outputs: {"loss": {"valid": 0.25, "train": 0.75}[split]}
    finish(task, run, config, Expected(metric="loss", at_least=0.5), ["valid", "train"])
    assert "BELOW: loss 0.75, expected 0.5 or less" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("skipped", "best", "cause"),
    [
        (3, 9, "3 updates were left out"),
        (0, 9, "still improving at update 9, so train longer"),
        (0, 3, "best at update 3 of 9: overfitting"),
        (0, 6, "the spread between seeds"),
    ],
)
def test_a_run_below_what_is_expected_is_told_the_likely_cause(tmp_path, skipped, best, cause):
    _, run, _ = trained(tmp_path, average=0, steps=9)
    run.state.progress.skipped, run.state.progress.best = skipped, [(0.0, best)]
    assert cause in verdict({"near": 1.0}, Expected(metric="near", at_least=2.0), run, sign=1)


def test_a_metric_that_is_not_reported_is_told_once_the_model_is_safe(tmp_path):
    task, run, config = trained(tmp_path, average=0)
    with pytest.raises(InputError, match="--expected.metric neer is not reported: choose among loss, near"):
        finish(task, run, config, Expected(metric="neer", at_least=0.0), ["valid"])
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "report.json").exists()


def test_a_name_in_brackets_is_a_name(capsys):
    shown = Table("class")
    shown.add_row("[bold]cat[/x]")
    console().print(shown)
    assert "[bold]cat[/x]" in capsys.readouterr().err
