"""What a user has to mend: one line that says where and what, exit code 2, and nothing overwritten."""

import gzip
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from recipes import average, score_pairs, train_translation, translate
from recipes.config import launch
from tasks.translation.vocabulary import VocabularyConfig, train_vocabulary

pytestmark = pytest.mark.usefixtures("as_in_a_new_process")
ROOT = Path(__file__).parents[2]
GERMAN = "[{source: train.de, target: train.de}]"


class Bench:
    """A folder of good text, what trains on it, and a program that must refuse."""

    def __init__(self, folder: Path, text: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd = folder, capfd
        self.text = folder / "text"
        shutil.copytree(text, self.text)
        self.arguments = [*(item.replace(str(text), str(self.text)) for item in arguments[:-1]), str(folder / "run")]

    def write(self, name: str, content: str | bytes) -> str:
        data = content if isinstance(content, bytes) else content.encode()
        (self.text / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return name

    def everything(self, folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}

    def refusal(self, module: ModuleType, *arguments: str | Path, keep: Path | None = None) -> str:
        """Return the one line; `keep` is a folder in which nothing may change."""
        before = self.everything(keep or self.text)
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            launch(module.Recipe, module.main, [str(argument) for argument in arguments])
        out, err = self.capfd.readouterr()
        assert left.value.code == 2 and out == ""
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
        assert self.everything(keep or self.text) == before
        return err

    def training_refusal(self, *arguments: str | Path) -> str:
        run = self.folder / f"run {len(list(self.folder.iterdir()))}"
        message = self.refusal(train_translation, *self.arguments[:-1], run, *arguments)
        assert not any((run / name).exists() for name in ("checkpoints", "model.safetensors", "metrics.jsonl"))
        return message


@pytest.fixture
def bench(tmp_path, trained, capfd) -> Bench:
    return Bench(tmp_path, trained.text, trained.arguments, capfd)


def of(source: str, target: str = "train.de") -> list[str]:
    return ["--data.train", f"[{{source: {source}, target: {target}}}]"]


# Text


@pytest.mark.parametrize("change", [-1, +1])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_files_that_are_not_aligned(bench, change, ending):
    lines = (bench.text / "train.en").read_text().splitlines()
    lines = lines[:-1] if change < 0 else [*lines, "red"]
    name = bench.write(f"other.en{ending}", "\n".join(lines) + "\n")
    message = bench.training_refusal(*of(name))
    assert f"{bench.text / name} has {900 + change} lines and {bench.text / 'train.de'} has 900" in message
    message = bench.training_refusal("--data.valid", f"[{{source: train.de, target: {name}}}]")
    assert f"has 900 lines and {bench.text / name} has {900 + change}" in message


@pytest.mark.parametrize("side", [("empty.en", "train.de"), ("train.en", "empty.en")])
def test_an_empty_side(bench, side):
    bench.write("empty.en", "")
    assert f"{bench.text / 'empty.en'}" in bench.training_refusal(*of(*side))


def test_a_side_of_blank_lines(bench):
    bench.write("blank.en", "\n" * 900)
    assert "dropped all 900 training pairs (empty source: 900)" in bench.training_refusal(*of("blank.en"))


def test_bytes_that_are_not_utf_8(bench):
    lines = (bench.text / "train.en").read_bytes().split(b"\n")
    lines[2] = b"caf\xe9"
    bench.write("latin.en", b"\n".join(lines))
    assert f"{bench.text / 'latin.en'}:3:4: byte 4 of line 3 is 0xe9" in bench.training_refusal(*of("latin.en"))


def test_a_gzip_file_that_was_cut_short(bench):
    name = bench.write("short.en.gz", "red dog\n" * 900)
    path = bench.text / name
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path}: cannot be read beyond line" in bench.training_refusal(*of(name))


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("a.tsv", "en\tge\nred\trot\n", ["a.tsv:1: no column de; there are en, ge"]),
        ("a.csv", "en,de\nred\n", ["a.csv:2: fields in the row: 1, in the header: 2"]),
        ("a.jsonl", '{"en": "red", "de": "rot"}\n{"en": "red"}\n', ["a.jsonl:2: no column de; there are en"]),
        ("a.jsonl", '{"en": "red", "de": 7}\n', ["a.jsonl:1: column de holds 7, not a string"]),
        ("a.jsonl", '{"en": "red",\n', ["a.jsonl:1: the line is not JSON"]),
        ("a.parquet", "PAR1", ["a.parquet: cannot be read"]),
        ("a.txt", "red\trot\n", ["a.txt does not say what it is", ".tsv"]),
    ],
)
def test_a_table_that_does_not_fit(bench, name, content, reasons):
    bench.write(name, content)
    message = bench.training_refusal("--data.train", f"[{{table: {name}, source_column: en, target_column: de}}]")
    assert all(reason in message for reason in reasons)


def test_a_file_that_is_not_there(bench):
    assert f"{bench.text / 'train.ne'}: no such file. Did you mean train.en" in bench.training_refusal(*of("train.ne"))


def test_training_text_without_validation_text(bench):
    assert "--data.valid" in bench.training_refusal("--data.valid", "[]")


def test_a_language_that_does_not_exist(bench):
    message = bench.training_refusal(
        "--data.folder", ".", "--data.train", "[]", "--data.valid", "[]", "--data.target", "ge"
    )
    assert "Locale 'ge'" in message


# Vocabularies


def test_a_vocabulary_that_is_too_large_for_the_text(bench):
    message = bench.training_refusal("--data.vocabulary.size", "5000")
    assert "--data.vocabulary.size=5000 is more than the text can fill: give --data.vocabulary.size=" in message


def test_a_vocabulary_that_is_no_vocabulary(bench):
    path = bench.text / bench.write("empty.model", "")
    assert f"{path}: the file is empty" in bench.training_refusal("--data.vocabulary.source_model", path)
    path = bench.text / bench.write("other.model", "text")
    assert f"{path}: this is no sentencepiece model" in bench.training_refusal("--data.vocabulary.source_model", path)


# Settings


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        (["--model.block.head", "2"], ["--model.block.head is not a setting", "nearest is --model.block.num_heads"]),
        (["--modle.block.dim", "2"], ["--modle.block.dim is not a setting", "nearest is --model.block.dim"]),
        (["--model.block.num_heads", "5"], ["dim=32 cannot be split over num_heads=5", "for example 4"]),
        (
            ["--data.vocabulary.joint", "false", "--data.vocabulary.size", "40"],
            ["--model.tie all", "--model.tie target"],
        ),
        (["--train.warmup", "241"], ["--train.warmup 241 is longer than --train.steps 240"]),
        (["--train.steps", "many"], ["--train.steps wants a whole number, got many"]),
        (["--train.precision", "fp16"], ["--train.precision wants one of fp32, bf16, got fp16"]),
        (["--data.tokens", "63"], ["tokens=63", "--data.tokens"]),
        (["--data.embedded", "0"], ["--data.embedded"]),
        (["--search.n_best", "3"], ["--search.n_best=3", "--search.beams=2"]),
        (["--model.block.position", "learned", "--model.block.max_length", "99"], ["--model.block.max_length 99"]),
        (["--train.average", "4"], ["--train.average 4", "--train.keep_last 3"]),
        (["--config", "nowhere.yaml"], ["--config nowhere.yaml: No such file"]),
    ],
)
def test_settings_that_cannot_be(bench, arguments, reasons):
    message = bench.training_refusal(*arguments)
    assert all(reason in message for reason in reasons)
    assert not list(bench.folder.glob("run*"))


def test_all_mistakes_of_a_configuration_are_told_at_once(bench):
    (bench.folder / "mine.yaml").write_text("model:\n  block: {dmi: 64}\ntrain: {lr: fast}\n")
    message = bench.training_refusal("--config", bench.folder / "mine.yaml", "--train.steps", "0")
    for reason in (
        "mine.yaml:2: model.block.dmi",
        "nearest is model.block.dim",
        "mine.yaml:3: train.lr wants a number",
    ):
        assert reason in message


# Run folders


@pytest.fixture
def finished(bench, trained) -> Path:
    """A copy of a finished run, which belongs to the arguments of the bench."""
    run = bench.folder / "run"
    shutil.copytree(trained.folder, run)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    moved = recipe.replace(str(trained.folder), str(run)).replace(str(trained.text), str(bench.text))
    (run / "recipe.yaml").write_text(moved, encoding="utf-8")
    return run


def other_vocabulary(path: Path) -> None:
    """As large as the one of the run."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(50)]
    train_vocabulary(
        [" ".join(draw.choices(words, k=6)) for _ in range(200)], VocabularyConfig(size=60, byte_fallback=False), path
    )


def test_a_run_folder_of_another_configuration(bench, finished):
    message = bench.refusal(
        train_translation, *bench.arguments, "--model.block.dim", "64", "--train.lr", "0.5", keep=finished
    )
    assert f"{finished} belongs to a run of another configuration" in message
    assert "model.block.dim: 32 in the run, 64 asked for" in message and "train.lr: 0.01 in the run" in message


def test_a_vocabulary_that_was_exchanged_in_a_run_folder(bench, finished):
    other_vocabulary(finished / "vocabulary.model")
    place = f"{finished / 'vocabulary.model'} is not the file that the run began with"
    message = bench.refusal(train_translation, *bench.arguments, "--train.steps", "250", keep=finished / "checkpoints")
    assert place in message
    assert place in bench.refusal(translate, finished, "--text", "red", keep=finished)


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_vocabulary_that_was_damaged(bench, finished, content):
    (finished / "vocabulary.model").write_bytes(content)
    message = bench.refusal(train_translation, *bench.arguments, keep=finished / "checkpoints")
    assert str(finished / "vocabulary.model") in message
    assert str(finished / "vocabulary.model") in bench.refusal(translate, finished, "--text", "red", keep=finished)


@pytest.mark.parametrize("name", ["recipe.yaml", "vocabulary.model", "model.safetensors"])
def test_a_run_folder_in_which_something_is_missing(bench, finished, name):
    (finished / name).unlink()
    message = bench.refusal(translate, finished, "--text", "red", keep=finished)
    assert name in message and str(finished) in message


def test_a_recipe_of_another_program(bench, finished):
    (finished / "recipe.yaml").write_text("data: {images: here}\n")
    assert "data.images is not a setting" in bench.refusal(translate, finished, "--text", "red", keep=finished)


# Programs


def damaged(finished: Path) -> Path:
    path = finished / "half.safetensors"
    path.write_bytes((finished / "model.safetensors").read_bytes()[:1000])
    return path


def of_another_model(finished: Path) -> Path:
    path = finished / "other.safetensors"
    save_file({"output.weight": torch.zeros(3, 5)}, path)
    return path


def flipped(finished: Path) -> Path:
    path = finished / "checkpoints" / "step-00000240"
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1] + b"?")
    return path


def nowhere(finished: Path) -> Path:
    return finished / "nowhere.safetensors"


def text_file(finished: Path) -> Path:
    return finished / "recipe.yaml"


@pytest.mark.parametrize("weights", [damaged, of_another_model, flipped, nowhere, text_file])
def test_weights_that_do_not_fit(bench, finished, weights: Callable[[Path], Path]):
    path = weights(finished)
    message = bench.refusal(translate, finished, "--text", "red", "--weights", f"[{path}]", keep=finished)
    assert str(path) in message


def test_things_to_translate_that_are_not_there_or_do_not_fit_leave_the_output_alone(bench, finished):
    output = bench.text / bench.write("out.de", "precious")
    bench.write("latin.en", b"red\ncaf\xe9\n")
    bench.write("begin.de", "rot\n")
    for arguments, reason in [
        (["--input", bench.text / "train.ne"], "no such file. Did you mean train.en"),
        (["--input", bench.text / "latin.en"], "latin.en:2:4"),
        (["--input", bench.text / "train.en", "--prefixes", bench.text / "begin.de"], "begin.de has 1 lines and"),
        (["--text", "red", "--input", bench.text / "train.en"], "--text and --input are both given"),
        (["--text", "red", "--prefixes", bench.text / "begin.de"], "--prefixes needs --input"),
        (["--text", "red", "--search.beams", "0"], "--search.beams=0"),
    ]:
        assert reason in bench.refusal(translate, finished, *arguments, "--output", output)
    assert output.read_text() == "precious"


def test_an_output_that_cannot_be_written(bench, finished):
    message = bench.refusal(translate, finished, "--text", "red", "--output", bench.folder / "no" / "out.de")
    assert f"--output {bench.folder / 'no' / 'out.de'}: cannot be written (No such file" in message


def test_a_prefix_longer_than_its_translation_may_become(bench, finished):
    bench.write("a.en", "red\n")
    bench.write("a.begin", "rot " * 80 + "\n")
    paths = ["--input", bench.text / "a.en", "--prefixes", bench.text / "a.begin"]
    assert "its translation may get" in bench.refusal(translate, finished, *paths)


def test_a_run_that_is_none(bench):
    for module, arguments in [
        (translate, ["--text", "red"]),
        (score_pairs, ["--source", bench.text / "valid.en", "--target", bench.text / "valid.de"]),
    ]:
        assert f"{bench.text} is no run folder" in bench.refusal(module, bench.text, *arguments)
    message = bench.refusal(average, bench.text, "--output", bench.folder / "a.safetensors")
    assert f"{bench.text} has no checkpoints" in message


def test_pairs_that_are_not_aligned(bench, finished):
    paths = ["--source", bench.text / "train.en", "--target", bench.text / "valid.de"]
    assert f"{bench.text / 'train.en'} has 900 lines and" in bench.refusal(score_pairs, finished, *paths)


@pytest.mark.parametrize("last", ["0", "4", "-1"])
def test_more_or_fewer_checkpoints_than_there_are(bench, finished, last):
    message = bench.refusal(average, finished, "--last", last, "--output", finished / "a.safetensors", keep=finished)
    assert "has 3 checkpoints: choose --last from 1 to 3" in message


def test_an_average_that_cannot_be_written(bench, finished):
    path = bench.folder / "no" / "a.safetensors"
    assert f"{path} cannot be written" in bench.refusal(average, finished, "--last", "2", "--output", path)


# From outside


def leave(module: str, *arguments: str | Path, text: bytes = b"") -> tuple[int, str]:
    command = [sys.executable, "-m", f"recipes.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, input=text, capture_output=True, cwd=ROOT, timeout=250, env={**os.environ, "LANG": "C"}
    )
    return done.returncode, done.stderr.decode()


def test_a_program_of_its_own_refuses_to_train_on_files_that_are_not_aligned(bench):
    bench.write("short.en", "red\n")
    code, err = leave("train_translation", *bench.arguments, *of("short.en"))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert f"{bench.text / 'short.en'} has 1 lines and {bench.text / 'train.de'} has 900" in err


def test_a_program_of_its_own_names_the_line_of_a_pipe_that_is_not_utf_8(bench, finished):
    code, err = leave("translate", finished, text=b"red\ncaf\xe9\n")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: standard input:2:4: byte 4 of line 2 is 0xe9")
