"""Training of image classifiers: what it learns and leaves in the run folder, alone, in two processes, and killed."""

import json
import random
import shutil
import signal
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import children
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from test_resume import STEPS, Program, newest, tensors
from torch import Tensor, nn
from torch.testing import assert_close

from recipes import evaluate_images, image_runs, show_rollout, train_images
from recipes.config import launch, load_config, read
from recipes.image_runs import Recipe, load, make_task
from recipes.loop import evaluate
from recipes.tracking import number
from recipes.weights import load_tensors_into
from tasks.image_classification.augment import TransformConfig, normalize
from tasks.image_classification.distill import DistillConfig
from tasks.image_classification.model import build_model

pytestmark = pytest.mark.usefixtures("as_in_a_new_process")
RECIPES = Path(__file__).parents[2] / "recipes"
COLOURS = {"blue": (40, 60, 200), "grün": (50, 190, 70), "red hot": (210, 70, 40)}
MODEL = {
    "image_size": [8, 12],
    "block": {"dim": 16, "num_heads": 2, "hidden_dim": 24, "activation": "gelu", "position": "learned"}
    | {"order": "pre", "dropout": 0.1, "drop_path": 0.1},
    "vit": {"depth": 2, "patch_size": [4, 4]},
}
TRANSFORM = {"crop_share": 0.9, "mean": [0.4, 0.5, 0.6], "std": [0.25, 0.3, 0.2]}


def write_images(folder: Path, count: int, seed: int, names: tuple[str, ...] = tuple(COLOURS)) -> None:
    """Write an image folder of noisy colours, some pictures larger than others and some deeper down."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        for index in range(count):
            noise = 140 * torch.randn(8 + index % 2, 12 + index % 3, 3, generator=generator)
            shade = 55 * torch.randn(3, generator=generator)
            values = (torch.tensor(COLOURS[name]) + noise + shade).clamp(0, 255).byte()
            path = folder / name / ("" if index % 4 else "deep") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.numpy()).save(path)


def source(folder: str) -> str:
    return f"[{{folder: {folder}}}]"


def train(*arguments: str | Path) -> None:
    launch(Recipe, train_images.main, [str(argument) for argument in arguments], config="embedded_digits.yaml")


class Run(NamedTuple):
    """A run folder with what it was made of."""

    folder: Path
    images: Path
    """Folder of train, valid and test."""
    arguments: list[str]
    """What was given to the program, but for `--train.out`."""

    @property
    def report(self) -> dict:
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def again(self, out: Path, *arguments: str | Path) -> "Run":
        """Train with other settings in another folder."""
        AcceleratorState._reset_state(reset_partial_state=True)
        train(*self.arguments, *arguments, "--train.out", out)
        return Run(out, self.images, self.arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Some seconds of learning to tell three colours from each other."""
    AcceleratorState._reset_state(reset_partial_state=True)
    images, settings = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs") / "settings.yaml"
    for seed, (name, count) in enumerate({"train": 23, "valid": 5, "test": 13}.items()):
        write_images(images / name, count, seed)
    data = {name: [{"folder": name}] for name in ("train", "valid", "test")}
    settings.write_text(
        yaml.safe_dump(
            {
                "data": {"folder": str(images), "batch": 11} | data,
                "model": MODEL,
                "augment": {"min_scale": 0.5, "flip": True},
                "transform": TRANSFORM,
                "train": {"steps": 50, "schedule": "cosine", "lr": 5.0e-3, "warmup": 5, "eps": 1.0e-5}
                | {"evaluate_every": 25, "save_every": 25, "log_every": 10, "threads": 1, "tensorboard": False},
                "expected": {"metric": "top1", "at_least": 60},
            }
        )
    )
    run = Run(settings.with_name("run"), images, [f"--config={settings}"])
    return run.again(run.folder)


# One run


def test_it_has_learned_the_classes_and_says_so(trained):
    metrics = trained.report["results"][trained.report["chosen"]]
    assert metrics["test"]["top1"] > 75 and metrics["test"]["loss"] < 0.8 and set(metrics) == {"valid", "test"}
    assert set(metrics["test"]) == {"loss", "top1", "balanced", "ece"}
    assert [line["step"] for line in trained.lines if "valid/top1" in line] == [25, 50]


def evaluated(run: Path, *arguments: str | Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    launch(evaluate_images.Recipe, evaluate_images.main, [str(argument) for argument in (run, *arguments)])


def test_a_trained_classifier_is_scored_again_with_pictures(trained, tmp_path, capsys):
    evaluated(trained.folder, "--output", tmp_path / "pictures")
    shown = capsys.readouterr().err
    expected = trained.report["results"][trained.report["chosen"]]["test"]
    assert "39 images" in shown and all(name in shown for name in COLOURS)
    for name, value in expected.items():
        assert any(name in line and number(value) in line for line in shown.splitlines()), name
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 100


def test_images_that_were_held_out_are_scored_while_they_are_the_same(trained, tmp_path, capsys):
    shutil.copytree(trained.images / "train", tmp_path / "images" / "train")
    data = ["--data.folder", tmp_path / "images", "--data.valid", "[]", "--data.test", source("train")]
    run = trained.again(tmp_path / "run", *SHORT, *data)
    evaluated(run.folder, "--split", "valid")
    image = next((tmp_path / "images" / "train" / "blue").glob("*.png"))
    shutil.copy(image, image.with_name("one_more.png"))
    evaluated(run.folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        evaluated(run.folder, "--split", "valid")
    assert left.value.code == 2 and "was trained on other images than are there now" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        evaluated(trained.folder, "--split", "train")
    assert left.value.code == 2 and "--split wants one of valid, test, got train" in capsys.readouterr().err


def test_where_a_model_looked_is_drawn_with_what_it_says_of_the_whole_image(trained, tmp_path, capsys):
    image = tmp_path / "photo.png"
    Image.effect_noise((90, 50), 80).convert("RGB").save(image)
    with torch.no_grad():
        (guess,) = load(trained.folder)(image, top=1)
    given = [trained.folder, "--image", image, "--output", tmp_path / "rollout.png"]
    launch(show_rollout.Recipe, show_rollout.main, [str(each) for each in given])
    assert capsys.readouterr().out == f"{guess.name} {guess.probability:.1%}\n"
    with Image.open(tmp_path / "rollout.png") as picture:
        assert min(picture.size) > 100


def test_the_run_folder_holds_all_that_a_classifier_needs(trained):
    names = {path.name for path in trained.folder.iterdir()}
    assert names >= {"classes.json", "recipe.yaml", "model.safetensors", "report.json", "metrics.jsonl", "checkpoints"}
    assert json.loads((trained.folder / "classes.json").read_text(encoding="utf-8")) == list(COLOURS)
    asked = read(Recipe, [*trained.arguments, f"--train.out={trained.folder}"])
    assert load_config(Recipe, trained.folder / "recipe.yaml") == asked


def test_the_metrics_count_images(trained):
    lines = [line for line in trained.lines if "train/loss" in line]
    assert [line["step"] for line in lines] == [10, 20, 25, 30, 40, 50]
    assert all(line["train/images_per_second"] > 0 for line in lines)
    assert lines[-1]["train/epoch"] == 49 // 7 and lines[-1]["train/loss"] < lines[0]["train/loss"]


@pytest.mark.parametrize(("least", "word"), [(10, "PASS"), (101, "BELOW")])
def test_it_ends_with_a_comparison_to_what_is_expected(trained, capfd, least, word, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    trained.again(tmp_path / "run", "--expected.at_least", str(least))
    last = capfd.readouterr().err.splitlines()[-1]
    top1 = trained.report["results"][trained.report["chosen"]]["test"]["top1"]
    assert last.startswith(f"{word}: top1 {number(top1)}, expected {number(least)} or more")


def test_what_it_loads_is_what_was_scored(trained):
    classifier, classes = load(trained.folder), list(COLOURS)
    assert classifier.classes == classes
    right, surprise, count = 0, 0.0, 0
    for label, name in enumerate(classes):
        paths = sorted((trained.images / "test" / name).rglob("*.png"))
        guesses = classifier.classify(paths, top=3)
        right += sum(each[0].name == name for each in guesses)
        images = torch.stack([classifier.prepare(path) for path in paths])
        surprise -= float(classifier.probabilities(images)[:, label].double().log().sum())
        count += len(paths)
    scored = trained.report["results"][trained.report["chosen"]]["test"]
    assert count == 39 and 100 * right / count == pytest.approx(scored["top1"], abs=1e-4)
    assert surprise / count == pytest.approx(scored["loss"], rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch_size(trained, tmp_path):
    found = []
    for size in (3, 64):
        recipe = read(Recipe, [*trained.arguments, f"--data.batch={size}"])
        task = make_task(recipe)
        task.prepare(tmp_path)
        model = task.build()
        load_tensors_into(model, load_file(trained.folder / "model.safetensors"))
        assert len(task.plan("test", 0)) == -(-39 // size)
        found.append(evaluate(task, model, "test", Accelerator())[0])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] == pytest.approx(trained.report["results"][trained.report["chosen"]]["test"], rel=1e-5)


def test_the_same_command_again_changes_nothing(trained):
    before = everything(trained.folder)
    trained.again(trained.folder)
    assert everything(trained.folder) == before


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# Fine-tuning


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "model.safetensors")


SHORT = "--train.steps 3 --train.warmup 1 --train.evaluate_every 3 --train.schedule constant --expected.metric".split()
SHORT += ["", "--data.test", "[]"]


def test_a_frozen_backbone_stays_as_it_is_bit_for_bit_and_the_head_learns(trained, tmp_path):
    for name in ("blue", "red hot"):
        (tmp_path / "two" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "two" / name).symlink_to(trained.images / "train" / name)
    two = source(str(tmp_path / "two"))
    probe = trained.again(
        tmp_path / "run",
        *SHORT,
        *("--data.train", two, "--data.valid", two, "--train.weight_decay", "0.3", "--train.ema", "0.5"),
        *("--pretrained.path", trained.folder / "model.safetensors", "--pretrained.freeze", "true"),
    )
    before, after = weights(trained), weights(probe)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.bias", "head.weight"]
    assert after["head.weight"].shape == (2, 16) and after["head.weight"].abs().max() > 1e-4


STILL = "--model.block.dropout 0 --model.block.drop_path 0 --augment.crop none --augment.flip false".split()
PLAIN = "--train.optimizer sgd --train.betas [0.0,0.9] --train.lr 0.3 --train.clip 0".split()


def test_layer_decay_moves_each_weight_by_its_share(trained, tmp_path):
    start = ["--pretrained.path", str(trained.folder / "model.safetensors")]
    before, moves = weights(trained), []
    for decay in ("1.0", "0.5"):
        one = trained.again(
            tmp_path / decay, *SHORT, *STILL, *PLAIN, *start, "--train.steps", "1", "--pretrained.layer_decay", decay
        )
        moves.append({name: tensor - before[name] for name, tensor in weights(one).items()})
    shares = {"head": 1.0, "norm": 1.0, "1": 0.5, "0": 0.25, "patches": 0.125, "prefix": 0.125, "position": 0.125}
    for name, whole in moves[0].items():
        parts = name.split(".")
        share = shares[
            parts[2] if parts[:2] == ["encoder", "blocks"] else parts[1] if parts[0] == "encoder" else parts[0]
        ]
        assert_close(moves[1][name], share * whole, rtol=1e-3, atol=2e-7, msg=name)
    assert min(float(whole.abs().max()) for whole in moves[0].values()) > 1e-5


def test_a_resumed_run_keeps_the_factors_of_its_layers(trained, tmp_path):
    start = ["--pretrained.path", str(trained.folder / "model.safetensors"), "--pretrained.layer_decay", "0.5"]
    settings = [*SHORT, *start, "--train.schedule", "cosine", "--train.lr", "1e-2"]
    whole = trained.again(tmp_path / "whole", *settings, "--train.save_every", "2")
    shutil.copytree(whole.folder, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000003")
    resumed = trained.again(tmp_path / "cut", *settings, "--train.save_every", "2")
    assert weights(resumed).keys() == weights(whole).keys()
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())
    groups = json.loads((resumed.folder / "checkpoints/step-00000003/state.json").read_text())["optimizer"]
    groups = [group for place, group in groups.items() if place.startswith("param_groups")]
    assert {group["factor"] for group in groups} == {1.0, 0.5, 0.25, 0.125}
    full = next(group["lr"] for group in groups if group["factor"] == 1.0)
    assert all(group["lr"] == full * group["factor"] for group in groups)


def test_a_run_that_began_with_pretrained_weights_goes_on_without_their_file(trained, tmp_path):
    start = shutil.copy(trained.folder / "model.safetensors", tmp_path / "start.safetensors")
    settings = [*SHORT, "--pretrained.path", start, "--train.save_every", "2"]
    whole = trained.again(tmp_path / "run", *settings)
    expected = weights(whole)
    shutil.rmtree(whole.folder / "checkpoints" / "step-00000003")
    Path(start).unlink()
    resumed = weights(trained.again(whole.folder, *settings))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())


# A teacher


def test_a_distilled_model_learns_from_a_run_with_both_heads(trained, tmp_path):
    student = trained.again(
        tmp_path / "student",
        *SHORT,
        *("--model.image_size", "[12, 8]", "--transform.mean", "[0.5]", "--transform.std", "[0.5]"),
        *("--model.vit.distillation_token", "true", "--distill.teacher", trained.folder, "--train.log_every", "1"),
    )
    learned = weights(student)
    assert all(learned[name].abs().max() > 1e-3 for name in ("head.weight", "distillation_head.weight"))
    assert not torch.equal(learned["head.weight"], learned["distillation_head.weight"])
    for line in (line for line in student.lines if "train/loss" in line):
        mean = (line["train/label_loss"] + line["train/teacher_loss"]) / 2
        assert line["train/loss"] == pytest.approx(mean, rel=1e-5) and line["train/teacher_loss"] > 0
    assert {guess.name for guess in load(student.folder)(trained.images / "test/blue/1.png")} == set(COLOURS)


def test_a_teacher_is_shown_images_as_it_was_trained_with(monkeypatch):
    theirs = Recipe(transform=TransformConfig(mean=(0.1,), std=(0.2,)))
    monkeypatch.setattr(image_runs, "recipe_of", lambda *given: theirs)
    monkeypatch.setattr(image_runs, "load", lambda run: SimpleNamespace(model=nn.Identity(), classes=["a", "b"]))
    teacher = make_task(Recipe(distill=DistillConfig(teacher="a run"))).teacher
    pixels = torch.randint(256, (2, 3, *theirs.model.image_size), dtype=torch.uint8)
    assert_close(teacher(normalize(pixels, (0.5,), (0.5,))), normalize(pixels, (0.1,), (0.2,)), rtol=1e-5, atol=1e-5)


# Two processes, and kills

HARD = {
    "model": MODEL,
    "transform": TRANSFORM,
    "augment": {"min_scale": 0.4, "policy": "rand", "erasing": 0.3, "mixup": 0.8, "cutmix": 1.0, "repeats": 2},
    "train": {"steps": STEPS, "lr": 3.0e-3, "warmup": 4, "eps": 1.0e-5, "ema": 0.8, "save_every": 3}
    | {"evaluate_every": 7, "log_every": 2, "threads": 1, "tensorboard": False},
    "expected": {"metric": ""},
}


def hard(images: Path, **train) -> dict:
    """Return settings with all that is random: 10 or 11 micro-batches of 6 an epoch."""
    data = {"folder": str(images), "batch": 6, "train": [{"folder": "train"}], "valid": [{"folder": "valid"}]}
    return HARD | {"data": data, "train": HARD["train"] | train}


def metrics(folder: Path) -> list[dict]:
    """Return the lines of metrics without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_second") and k != "train/waiting"} for line in lines]


def test_two_processes_have_the_losses_of_one(trained, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(hard(trained.images, accumulate=2, steps=8, log_every=1, evaluate_every=8)))
    for ranks in (1, 2):
        ended = children.run(
            "recipes.train_images",
            [f"--config={settings}", f"--train.out={tmp_path / str(ranks)}"],
            tmp_path / f"{ranks}.log",
            ranks=ranks,
        )
        assert ended.codes == [0] * ranks, ended.text
    one, two = (metrics(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(one) == len(two) == 9 and {line["train/epoch"] for line in one[:-1]} == {0, 1}
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for key in mine.keys() & {"train/loss", "valid/loss"}:
            assert other[key] == pytest.approx(mine[key], rel=1e-5), (mine["step"], key)
    assert one[-1]["valid/top1"] == two[-1]["valid/top1"]


@pytest.fixture(scope="module")
def program(trained, tmp_path_factory) -> Program:
    settings = hard(trained.images, accumulate=3)
    return Program("recipes.train_images", settings, tmp_path_factory.mktemp("program"))


def assert_same(out: Path, whole: Path) -> None:
    mine, other = tensors(out), tensors(whole)
    assert mine.keys() == other.keys() and {key.split(".")[0] for key in mine} == {"model", "optimizer", "ema"}
    assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
    for name in (f"checkpoints/step-{STEPS:08d}/state.json", "model.safetensors", "report.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(out) == metrics(whole)


@pytest.mark.parametrize("seed", range(2))
def test_a_run_that_is_killed_anywhere_and_continued_is_the_same_bit_for_bit(program, tmp_path, seed):
    step = program.kill_anywhere(tmp_path / "run", random.Random(seed))
    ended = program.run(tmp_path / "run")
    assert ended.codes == [0] and f"continuing {tmp_path / 'run'} after update {step}" in ended.text
    assert_same(tmp_path / "run", program.whole)


def test_a_run_with_loader_workers_that_is_killed_and_continued_is_the_same_bit_for_bit(program, tmp_path):
    out, two = tmp_path / "run", ("--train.workers=2",)
    ended = program.run(out, partial(die_in_update, 9), arguments=two)
    assert ended.codes == [-signal.SIGKILL] and newest(out) == 7
    assert program.run(out, arguments=two).codes == [0]
    assert_same(out, program.whole)


def die_in_update(step: int) -> None:
    """Kill the process in the middle of an update."""
    from recipes import loop

    original = loop.rate

    def rate(config, now: int) -> float:
        return children.signal_oneself(signal.SIGKILL, 0.0) if now == step else original(config, now)

    loop.rate = rate


def test_that_run_did_augment_and_repeat(program):
    task = make_task(load_config(Recipe, program.whole / "recipe.yaml"))
    task.prepare(program.whole)
    rows = task.plan("train", 0)[0]
    assert len(rows) == 6 and len(set(rows)) == 3
    images = task.batch("train", rows, 0).images
    assert not torch.equal(images[0], images[3]) and metrics(program.whole)[-1]["step"] == STEPS
    assert max(line.get("train/epoch", 0) for line in metrics(program.whole)) >= 2


# Bad input


@pytest.fixture
def refusal(trained, tmp_path, capfd) -> Callable[..., str]:
    """Give the program something bad and return its one line."""

    def refusal(*arguments: str | Path, out: Path | None = None, left_there: Collection[str] = ()) -> str:
        folder = out or tmp_path / f"run {len(list(tmp_path.iterdir()))}"
        before = everything(trained.images) | everything(trained.folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            train(*trained.arguments, *arguments, "--train.out", folder)
        written, err = capfd.readouterr()
        assert end.value.code == 2 and written == ""
        err = err[err.index("error: ") :]  # after the threads, and the images there are
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        assert everything(trained.images) | everything(trained.folder) == before
        if out is None:
            made = {path.name for path in folder.rglob("*")}
            assert made <= {".lock", ".training.lock", "classes.json", *left_there}
        return err

    return refusal


def test_another_size_of_images_for_the_same_run(refusal, trained):
    message = refusal("--model.image_size", "[12, 12]", out=trained.folder)
    assert "model.image_size: [8, 12] in the run, [12, 12] asked for" in message and "another --train.out" in message


def test_settings_that_do_not_go_together(refusal):
    message = refusal("--model.image_size", "[8, 13]")
    assert "image_size=[8, 13] cannot be cut into patches of [4, 4] pixels" in message
    assert "mean=(0.4, 0.5, 0.6) cannot be used" in refusal("--data.channels", "1")
    assert "batch=11 cannot be used: choose a multiple of the repeats, 2" in refusal("--augment.repeats", "2")
    message = refusal("--augment.repeats", "70", "--data.batch", "70")
    assert "repeats=70 cannot be used: choose at most the number of images, 69" in message
    assert "model.block.position" in refusal("--model.block.position", "learnt")


def test_a_class_that_training_lacks(refusal, tmp_path):
    write_images(tmp_path / "more", 1, 7)
    (tmp_path / "more" / "red hot").rename(tmp_path / "more" / "violet")
    message = refusal("--data.test", source(str(tmp_path / "more")))
    assert "no training image is of class violet; there are blue, grün, red hot" in message


def test_a_source_that_is_not_there(refusal, trained):
    assert f"{trained.images / 'trian'}: no such folder" in refusal("--data.train", source("trian"))


def test_an_unknown_setting_is_named_with_the_nearest(refusal):
    message = refusal("--augment.mixpu", "0.2")
    assert "augment.mixpu" in message and "augment.mixup" in message


@pytest.fixture
def damaged(trained, tmp_path) -> Path:
    """Training images of which one was cut short and one is text."""
    folder = tmp_path / "damaged"
    shutil.copytree(trained.images / "train", folder)
    path = folder / "blue" / "7.png"
    path.write_bytes(path.read_bytes()[:70])
    (folder / "red hot" / "5.png").write_text("no image")
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_image_stops_the_run_and_is_named(refusal, damaged, workers):
    begun = "recipe.yaml", "metrics.jsonl"
    message = refusal("--data.train", source(str(damaged)), "--train.workers", workers, left_there=begun)
    assert f"{damaged}/" in message and ("cannot be decoded" in message or "no image of a known kind" in message)
    assert "--data.corrupt skip" in message


def test_damaged_images_are_left_out_and_listed_where_that_is_asked_for(trained, damaged, capfd, tmp_path):
    data = ["--data.train", source(str(damaged)), "--data.corrupt", "skip"]
    run = trained.again(tmp_path / "run", *SHORT, *data, "--train.steps", "8", "--train.evaluate_every", "8")
    said = capfd.readouterr().err
    assert "Images left out" in said and "cannot be decoded" in said and "no image of a known kind" in said
    assert run.lines[-1]["step"] == 8 and "train/loss" in run.lines[0]
    assert sum(line.get("train/epoch", 0) for line in run.lines) == 1  # 67 images are 7 micro-batches of up to 11


def test_pretrained_weights_that_cannot_be_used(refusal, trained, tmp_path):
    assert f"--pretrained.path {tmp_path}/no.pth is no file" in refusal("--pretrained.path", tmp_path / "no.pth")
    for name in ("text.safetensors", "text.pth"):
        (tmp_path / name).write_text("no weights\nat all")
        message = refusal("--pretrained.path", tmp_path / name)
        assert f"--pretrained.path {tmp_path / name} cannot be read as weights" in message
    (tmp_path / "empty.pth").touch()
    assert "empty.pth cannot be read as weights" in refusal("--pretrained.path", tmp_path / "empty.pth")
    for name, saved in {"list": [1, 2], "tensor": torch.zeros(3), "number": {"model": {1: torch.zeros(3)}}}.items():
        torch.save(saved, tmp_path / f"{name}.pth")
        assert "holds no state dict" in refusal("--pretrained.path", tmp_path / f"{name}.pth")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "none of the known layouts" in refusal("--pretrained.path", tmp_path / "other.safetensors")
    own = ["--pretrained.path", trained.folder / "model.safetensors"]
    assert "encoder.blocks.2.attention" in refusal(*own, "--model.vit.depth", "3")
    assert "not 1 and a grid of [2, 2]" in refusal(*own, "--model.image_size", "[16, 12]")


def test_a_teacher_that_cannot_teach(refusal, trained, tmp_path):
    assert f"{tmp_path / 'nobody'} is no run folder" in refusal("--distill.teacher", tmp_path / "nobody")
    teacher = tmp_path / "teacher"
    shutil.copytree(trained.folder, teacher)
    (teacher / "model.safetensors").unlink()
    assert "the run has not ended" in refusal("--distill.teacher", teacher)
    shutil.copy(trained.folder / "model.safetensors", teacher)
    (teacher / "classes.json").write_text('["blue", "grey", "red hot"]')
    message = refusal("--distill.teacher", teacher)
    assert f"--distill.teacher {teacher} was trained on other classes" in message
    assert "grey only the teacher knows; grün only the images have" in message
    grey = ["--data.channels", "1", "--transform.mean", "[0.5]", "--transform.std", "[0.5]"]
    assert "sees 3 channels, and --data.channels is 1" in refusal("--distill.teacher", trained.folder, *grey)


# The recipes of the project


def of_images(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    kind = (yaml.safe_load(text).get("model") or {}).get("kind")
    return "recipes.train_images" in text or kind in ("vit", "swin")


IMAGE_RECIPES = sorted(path for path in RECIPES.rglob("*.yaml") if of_images(path))


def test_these_are_the_recipes_of_images():
    names = {path.stem for path in IMAGE_RECIPES}
    assert names >= {"embedded_digits", "cifar10", "mnist", "finetune", "imagenet1k_vit_s16"}
    presets = {path.stem for path in (RECIPES / "presets").glob("*.yaml")}
    assert {name for name in presets if name.startswith(("vit", "swin", "deit", "r50"))} <= names


@pytest.mark.parametrize("path", IMAGE_RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration_whose_model_can_be_built(path):
    recipe = read(Recipe, [f"--config={path}"])
    make_task(recipe)
    with torch.device("meta"):
        model = build_model(recipe.model, 7, channels=recipe.data.channels)
    assert sum(weight.numel() for weight in model.parameters()) > 1e5


def test_the_embedded_digits_need_nothing_but_the_program(tmp_path, capfd):
    short = "--train.steps 2 --train.warmup 1 --train.evaluate_every 2 --train.threads 1 --train.tensorboard false"
    train(*short.split(), "--train.out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["results"]["last"]) == {"valid", "test"} and "top5" in report["results"]["last"]["test"]
    assert capfd.readouterr().err.splitlines()[-1].startswith("BELOW: top1")
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == [str(digit) for digit in range(10)]
