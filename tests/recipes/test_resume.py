"""Runs that are killed and started again end in the same weights, bit for bit, as one that nobody touched."""

import json
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import children
import datasets.config
import pytest
import torch
import yaml
from torch import Tensor

from recipes import checkpoint
from recipes.config import load_config
from recipes.tracking import JsonLines
from recipes.train_translation import Recipe
from tasks.translation.pairs import PairData

STEPS = 14
# 7 micro-batches of 8 strings an epoch, in windows of 3, 3 and 1; save_every falls inside intervals of log_every.
TINY = {
    "data": {"longest": 5, "train": 56, "valid": 17, "batch": 8},
    "block": {"dim": 8, "num_heads": 2, "hidden_dim": 12, "dropout": 0.2},
    "train": {"steps": STEPS, "accumulate": 3, "warmup": 4, "ema": 0.8, "save_every": 3, "evaluate_every": 7}
    | {"log_every": 2, "keep_best": 2, "monitor": "exact", "tensorboard": False, "threads": 1},
}


class Program:
    """A recipe with its settings, to be run in folders of its own."""

    def __init__(self, module: str, settings: dict, root: Path, *changes) -> None:
        self.module, self.root, self.changes = module, root, changes
        self.config = root / "settings.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.whole = root / "whole"
        self.counted = children.SERVER.Value("q", 0)
        ended = self.run(self.whole, partial(children.die_at, 0, self.counted))
        assert ended.codes == [0], ended.text
        self.calls = self.counted.value

    def run(self, out: Path, *changes, ranks: int = 1, arguments: tuple[str, ...] = ()) -> children.Ended:
        given = [f"--config={self.config}", f"--train.out={out}", *arguments]
        log = out.with_suffix(".log")
        return children.run(self.module, given, log, *self.changes, *changes, ranks=ranks)

    def kill(self, out: Path, *changes, **options) -> int:
        """Run until a kill that these changes bring about; return the step of the newest checkpoint."""
        ended = self.run(out, *changes, **options)
        assert ended.codes == [-signal.SIGKILL], ended.text
        return newest(out)

    def kill_anywhere(self, out: Path, draw: random.Random) -> int:
        """Kill after a first checkpoint at any of the Python calls that are left."""
        left = 1 - (newest(out) if out.exists() else 0) / STEPS
        return self.kill(out, partial(children.die_at, draw.randint(1, int(self.calls * left)), self.counted))


def newest(out: Path) -> int:
    path = checkpoint.newest(out / "checkpoints", read_only=True)
    assert path is not None, "the kill came before the first checkpoint"
    return checkpoint.load(path).state["progress"]["step"]


def losses(out: Path) -> list[dict]:
    """Return the lines of metrics without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = "_per_second", "train/waiting"
    return [{name: value for name, value in line.items() if not name.endswith(clock)} for line in lines]


def tensors(out: Path) -> dict[str, Tensor]:
    saved = checkpoint.load(out / "checkpoints" / f"step-{STEPS:08d}").tensors
    return {f"{stem}.{name}": tensor for stem, named in saved.items() for name, tensor in named.items()}


def assert_same(out: Path, whole: Path) -> None:
    mine, other = tensors(out), tensors(whole)
    assert mine.keys() == other.keys() and {key.split(".")[0] for key in mine} >= {"model", "optimizer", "ema"}
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
    state = f"checkpoints/step-{STEPS:08d}/state.json"
    for name in (state, "model.safetensors", "report.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert losses(out) == losses(whole)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Program:
    return Program("recipes.reverse", TINY, tmp_path_factory.mktemp("toy"))


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_anywhere_and_continued_is_the_same_bit_for_bit(toy, out, seed):
    draw = random.Random(seed)
    step = toy.kill_anywhere(out, draw)
    assert step > 0
    ended = toy.run(out)
    assert ended.codes == [0] and f"continuing {out} after update {step}" in ended.text
    assert_same(out, toy.whole)


def test_a_run_that_is_killed_again_and_again_is_the_same_bit_for_bit(toy, out):
    draw, steps = random.Random(31), []
    while True:
        ended = toy.run(out, partial(children.die_at, draw.randint(1, toy.calls // 3), toy.counted))
        if ended.codes == [0]:
            break
        assert ended.codes == [-signal.SIGKILL], ended.text
        steps.append(newest(out))
    assert len(steps) >= 10 and len(set(steps)) >= 4 and steps == sorted(steps), steps
    assert_same(out, toy.whole)


def test_two_kills_inside_windows_of_one_epoch_leave_no_half_window(toy, out):
    second_in_window = partial(children.change_losses, children.killed)
    arguments = ("--train.save_every=1",)
    # An epoch is 7 micro-batches in 3 updates: call 9 is the second of update 4, then 3 calls later that of update 5.
    assert toy.kill(out, partial(second_in_window, calls=[9]), arguments=arguments) == 3
    assert toy.kill(out, partial(second_in_window, calls=[5]), arguments=arguments) == 4
    resumed = json.loads((out / "checkpoints/step-00000004/state.json").read_text())["progress"]
    assert (resumed["epoch"], resumed["window"]) == (1, 1)
    whole = out.with_name("whole")
    assert toy.run(out, arguments=arguments).codes == toy.run(whole, arguments=arguments).codes == [0]
    assert_same(out, whole)


def test_after_a_checkpoint_at_the_end_of_an_epoch_the_next_epoch_follows(toy, out):
    assert toy.kill(out, partial(children.change_losses, children.killed, calls=[8])) == 3
    again = partial(children.change_losses, children.killed, calls=[1])
    ended = toy.run(out, partial(tell_batches, out.with_suffix(".batches")), again)
    assert ended.codes == [-signal.SIGKILL]
    first = json.loads(out.with_suffix(".batches").read_text().splitlines()[0])
    assert first == {"epoch": 1, "rows": list(range(8))}
    assert toy.run(out).codes == [0]
    assert_same(out, toy.whole)


def tell_batches(path: Path) -> None:
    from recipes.reverse import Reverse

    original = Reverse.batch

    def batch(self, split, indices, epoch):
        if split == "train":
            with path.open("a") as file:
                file.write(json.dumps({"epoch": epoch, "rows": list(indices)}) + "\n")
        return original(self, split, indices, epoch)

    Reverse.batch = batch


def test_loader_workers_change_nothing_with_or_without_a_kill(toy, out):
    two = ("--train.workers=2",)
    assert toy.kill(out, partial(children.change_losses, children.killed, calls=[16]), arguments=two) == 6
    assert toy.run(out, arguments=two).codes == [0]
    assert_same(out, toy.whole)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("send", [children.signal_oneself, children.signal_group])
def test_sigterm_saves_once_and_leaves_with_0_and_the_same_command_continues(toy, out, workers, send):
    arguments = (f"--train.workers={workers}",)
    asked = partial(children.change_losses, partial(send, signal.SIGTERM), calls=[18, 19])
    ended = toy.run(out, asked, arguments=arguments)
    assert ended.codes == [0] and "stopped on request at update 8; the same command continues" in ended.text
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-00000007", "step-00000008"]
    assert toy.run(out, arguments=arguments).codes == [0]
    assert_same(out, toy.whole)


def test_all_ranks_stop_at_the_step_where_one_of_them_is_asked_to(toy, out):
    asked = partial(children.change_losses, partial(children.signal_oneself, signal.SIGTERM), calls=[8], rank=1)
    ended = toy.run(out, asked, ranks=2)
    assert ended.codes == [0, 0] and "stopped on request at update 6" in ended.text
    assert newest(out) == 6


def test_a_run_of_two_ranks_survives_that_one_of_them_is_killed(toy, out):
    ended = toy.run(out, partial(children.change_losses, children.killed, calls=[9], rank=1), ranks=2)
    assert ended.codes[1] == -signal.SIGKILL and ended.codes[0] not in (0, None) and newest(out) == 3
    whole = out.with_name("whole")
    assert toy.run(out, ranks=2).codes == toy.run(whole, ranks=2).codes == [0, 0]
    assert_same(out, whole)


def test_a_run_of_two_ranks_may_go_on_as_one(toy, out):
    ended = toy.run(out, partial(children.change_losses, children.killed, calls=[9], rank=1), ranks=2)
    assert ended.codes[1] == -signal.SIGKILL
    assert toy.run(out).codes == [0]
    pairs = [(line, other) for line, other in zip(losses(out), losses(toy.whole), strict=True) if "train/loss" in line]
    assert len(pairs) > 7
    assert all(line["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5) for line, other in pairs)


def test_a_finished_run_does_nothing_but_tell_its_scores_again(toy, out):
    assert toy.run(out).codes == [0]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert toy.run(out, partial(children.change_losses, children.killed, calls=[1])).codes == [0]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_more_steps_may_be_asked_of_a_run_that_has_ended(toy, out):
    schedule = ("--train.schedule=constant", "--train.evaluate_every=50")
    assert toy.run(out, arguments=("--train.steps=9", *schedule)).codes == [0]
    assert toy.run(out, arguments=(f"--train.steps={STEPS}", *schedule)).codes == [0]
    whole = out.with_name("whole")
    assert toy.run(whole, arguments=schedule).codes == [0]
    mine, other = tensors(out), tensors(whole)
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []


def write_pairs(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    words = "one two three four five six seven eight nine ten eleven twelve".split()
    rows = [[draw.choice(words) for _ in range(draw.randint(2, 7))] for _ in range(count)]
    path.with_suffix(".en").write_text("".join(" ".join(row) + "\n" for row in rows))
    path.with_suffix(".de").write_text("".join(" ".join(row[::-1]) + "\n" for row in rows))


def keep_data_in(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> Program:
    root = tmp_path_factory.mktemp("translator")
    for name, count, seed in (("train", 67, 1), ("valid", 11, 2)):
        write_pairs(root / name, count, seed)
    files = {name: [{"source": f"{name}.en", "target": f"{name}.de"}] for name in ("train", "valid")}
    settings = {
        "data": {"folder": str(root), "tokens": 120, "filter": {"max_length": 60}}
        | {"vocabulary": {"size": 60, "algorithm": "bpe", "byte_fallback": False, "dropout": 0.2}}
        | files,
        "model": {"block": TINY["block"], "encoder_depth": 1, "decoder_depth": 1},
        "loss": {"r_drop": 1.0},
        "search": {"beams": 2, "max_length": 12},
        "train": TINY["train"] | {"monitor": "loss"},
        "expected": {"metric": ""},
    }
    return Program("recipes.train_translation", settings, root, partial(keep_data_in, root / "cache"))


def test_a_killed_translator_with_dropout_of_pieces_and_features_is_the_same_bit_for_bit(translator, out):
    draw = random.Random(5)
    assert 0 < translator.kill_anywhere(out, draw) < STEPS
    assert 0 < translator.kill_anywhere(out, draw)
    assert translator.run(out, arguments=("--train.workers=2",)).codes == [0]
    assert_same(out, translator.whole)


def test_a_run_goes_on_with_the_data_it_began_with_alone(translator, out):
    copy = partial(shutil.copytree, ignore=shutil.ignore_patterns("whole*", "cache"), dirs_exist_ok=True)
    moved = copy(translator.root, out.parent / "moved")
    constant = "--train.schedule=constant"
    assert translator.run(out, arguments=("--train.steps=6", constant)).codes == [0]
    assert translator.run(out, arguments=("--train.steps=7", constant, f"--data.folder={moved}")).codes == [0]
    for split in ("train", "valid"):
        path = copy(translator.root, moved) / f"{split}.en"
        path.write_text(path.read_text().replace("three", "four", 1))
        ended = translator.run(out, arguments=("--train.steps=9", constant, f"--data.folder={moved}"))
        assert ended.codes == [2] and f"{out} was trained on other data" in ended.text and newest(out) == 7


def test_that_translator_did_cut_its_sentences_anew_in_each_epoch(translator, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", translator.root / "cache")
    pairs = PairData(load_config(Recipe, translator.whole / "recipe.yaml").data, translator.whole)
    first, again, later = (list(pairs.ids("train", range(20), epoch)) for epoch in (0, 0, 1))
    assert first == again != later
    assert losses(translator.whole)[-2]["train/epoch"] > 0


def test_metrics_forget_what_a_resumed_run_does_again_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": 1.5}\n{"step": 4, "loss": 1.2}\n\0\0\0\n[]\n{"step": 6, "loss": 1.1}\n{"step": 8, "lo'
    )
    tracker = JsonLines(path, resumed_at=4)
    tracker.log({"loss": 1.0}, step=6)
    tracker.finish()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 6, "loss": 1.0}
