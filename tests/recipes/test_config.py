import errno
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from recipes.config import describe_difference, flatten, launch, load_config, read, recipe_of, write_config
from tasks.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block."""

    dim: int = 256
    """Width of the model."""
    num_heads: int = 4
    """How many heads share `dim`; 100 % of it."""
    score: Literal["dot", "on", "gaussian"] = "dot"
    """How queries and keys are compared."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"--model.block.dim {self.dim} cannot be split\nover {self.num_heads} heads.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model."""

    block: Block = Block(num_heads=8)
    depth: int = 3


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Parallel text."""

    source: Path | None = None
    """File to translate from."""
    language: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight={self.weight} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data."""

    corpora: tuple[Corpus, ...] = (Corpus(source=Path("a.en")),)
    """What to train on."""
    valid: list[Corpus] = field(default_factory=lambda: [Corpus(source=Path("v.en"))])
    extra: Corpus | None = None
    language: str = "de"
    window: int = 5
    tokens: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Train:
    """The training."""

    lr: float = 1e-3
    """Peak of the learning rate."""
    clip: float | None = None
    out: Path | None = None
    resume: bool = True
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe for tests."""

    data: Data = Data(window=7)
    model: Model = Model(block=Block(dim=512, num_heads=8), depth=6)
    train: Train = Train(out=Path("runs/here"))
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Lister:
    """A program with a list that must be given."""

    run: Path
    images: list[str]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program with things that must be given."""

    run: Path
    """Where the run lies."""
    text: str
    beam: int = 5


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "a.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        return f"--config={name}"

    return write


def complaint(*arguments: str, recipe: type = Recipe) -> str:
    with pytest.raises(InputError) as caught:
        read(recipe, arguments)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def test_nothing_given_is_the_recipe_itself():
    assert read(Recipe, []) == Recipe()


def test_one_flag_changes_one_field_and_keeps_the_defaults_of_the_recipe():
    assert read(Recipe, ["--data.tokens", "9"]).data == Data(window=7, tokens=9)
    assert read(Recipe, ["--model.block.dim=64"]).model == Model(block=Block(dim=64, num_heads=8), depth=6)


@pytest.mark.parametrize(
    "text", ["model: {block: {dim: 64}}", "model:\n  block:\n    dim: 64\n", "model.block.dim: 64"]
)
def test_a_file_changes_one_field_and_keeps_the_defaults_of_the_recipe(config, text):
    assert read(Recipe, [config(text)]) == replace(Recipe(), model=Model(block=Block(dim=64, num_heads=8), depth=6))


def test_files_and_flags_are_taken_from_left_to_right(config):
    first, second = config("train: {lr: 0.1}\nseed: 2", "a.yaml"), config("train: {lr: 0.2}", "b.yaml")
    assert (read(Recipe, [first, second]).train.lr, read(Recipe, [first, second]).seed) == (0.2, 2)
    assert read(Recipe, [second, first]).train.lr == 0.1
    assert read(Recipe, [first, "--train.lr", "0.3"]).train.lr == 0.3
    assert read(Recipe, ["--train.lr", "0.3", "--config", "a.yaml"]).train.lr == 0.1


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.lr", "1e-3", 1e-3),
        ("train.lr", "3E5", 3e5),
        ("train.lr", "1", 1.0),
        ("train.lr", "-2.5e-7", -2.5e-7),
        ("train.clip", ".inf", math.inf),
        ("train.clip", "null", None),
        ("train.resume", "false", False),
        ("train.out", "null", None),
        ("train.out", "12", Path("12")),
        ("train.note", "no", "no"),
        ("train.note", "007", "007"),
        ("train.note", "2026-01-01", "2026-01-01"),
        ("data.language", "no", "no"),
        ("data.language", "12:30", "12:30"),
        ("model.block.score", "on", "on"),
        ("data.betas", "[1e-1, 5]", (0.1, 5.0)),
        ("data.names", "[a, 'no']", ("a", "no")),
        ("data.names", "one", ("one",)),
        ("train.out", "~/runs", Path("~/runs").expanduser()),
        ("train.note", "~5 hours", "~5 hours"),
        ("data.corpora", "[{language: no, weight: 1e-2}, {}]", (Corpus(language="no", weight=0.01), Corpus())),
        ("data.valid", "[]", []),
        ("data.extra", "{source: x}", Corpus(source=Path("x"))),
    ],
)
def test_the_type_of_the_field_decides_what_a_value_means_in_a_flag_and_in_a_file(config, key, text, value):
    for recipe in (read(Recipe, [f"--{key}", text]), read(Recipe, [config(f"{key}: {text}")])):
        group, _, name = key.rpartition(".")
        for part in group.split("."):
            recipe = getattr(recipe, part)
        assert getattr(recipe, name) == value and type(getattr(recipe, name)) is type(value)


def test_text_with_a_colon_or_a_bracket_stays_text():
    assert read(Recipe, ["--train.note", "Note: [4 PM] {x}"]).train.note == "Note: [4 PM] {x}"
    assert read(Recipe, ["--train.note=--flag=x"]).train.note == "--flag=x"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "train:\n  # lr: 3\n"])
def test_a_file_without_settings_changes_nothing(config, text):
    assert read(Recipe, [config(text)]) == Recipe()


@pytest.mark.parametrize("arguments", [["here", "hello"], ["--run", "here", "hello"], ["--text=hello", "--run=here"]])
def test_what_has_no_default_is_given_by_position_or_by_name(arguments):
    assert read(Program, arguments) == Program(run=Path("here"), text="hello")


@pytest.mark.parametrize("arguments", [["here", "a.png", "007"], ["--images", "[a.png, '007']", "here"]])
def test_a_list_without_default_takes_all_that_follows(arguments):
    assert read(Lister, arguments) == Lister(run=Path("here"), images=["a.png", "007"])


def test_what_has_no_default_is_asked_for():
    assert complaint("here", recipe=Program) == "--text is missing"
    assert complaint("here", "hello", "more", recipe=Program).startswith("more stands alone")


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--model.block.dmi", "--model.block.dim"),
        ("--modle.block.dim", "--model.block.dim"),
        ("--train.l", "--train.lr"),
        ("--lr", "--train.lr"),
        ("--num_head", "--model.block.num_heads"),
        ("--data.corpora.source", "--data.corpora"),
    ],
)
def test_an_unknown_flag_is_named_with_the_nearest(flag, nearest):
    assert complaint(flag, "3") == f"{flag} is not a setting; the nearest is {nearest}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmodel:\n  blck: {dim: 64}", "a.yaml:3: model.blck is not a setting; the nearest is model.block"),
        ("data:\n  corpora:\n  - source: x\n  - sorce: y", "a.yaml:4: sorce is not a setting; the nearest is source"),
        ("train:\n  lr: 1\n  lr: 2", "a.yaml:3: train.lr is set twice"),
        ("config: b.yaml", "a.yaml:1: config is not a setting; the nearest is "),
        ("\nmodel: 3", "a.yaml:2: model holds name: value, got 3"),
        ("- model", "a.yaml:1: a file holds name: value, got - model"),
        ("train:\n  lr: fast", "a.yaml:2: train.lr wants a number, got fast"),
        ("train:\n  lr: null", "a.yaml:2: train.lr wants a number, got null"),
        ("train:\n  lr: [1]", "a.yaml:2: train.lr wants a number, got [1]"),
        ("train: {note: {a: 1}}", "a.yaml:1: train.note wants text or null, got {a: 1}"),
        ("seed: 1.5", "a.yaml:1: seed wants a whole number, got 1.5"),
        ("seed:", "a.yaml:1: seed wants a whole number, got nothing"),
        ("data: {betas: [1]}", "a.yaml:1: data.betas wants a list [a number, a number], got [1]"),
        ("data:\n  corpora:\n  - weight: x", "a.yaml:3: weight wants a number, got x"),
        (
            "data:\n  corpora:\n  - a.en",
            "a.yaml:3: data.corpora wants {name: value} with the names source, language, w",
        ),
        ("data:\n  corpora: {source: x}", "a.yaml:2: data.corpora wants a list of {name: value} with the names source"),
        ("data: {extra: [{source: x}]}", "a.yaml:1: data.extra wants {name: value} with the names source, language, w"),
        ("seed: 1\nmodel: [1,\n  {", "a.yaml:3: "),
        ("a: 1\n---\nb: 2", "a.yaml:2: "),
        ("seed: \x07", "a.yaml: "),
        ("model: {block: {dim: 64, num_heads: 5}}", "--model.block.dim 64 cannot be split over 5 heads"),
        ("data: {corpora: [{weight: -1}]}", "weight=-1.0 must be above 0"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(config, text, message):
    assert complaint(config(text)).startswith(message)


def test_a_flag_of_yes_or_no_may_stand_alone():
    for arguments in (["--train.resume"], ["--train.resume", "--seed", "3"], ["--train.resume", "true"]):
        recipe = read(Recipe, arguments, default=replace(Recipe(), train=Train(resume=False)))
        assert recipe.train.resume is True
        assert recipe.seed == (3 if "--seed" in arguments else Recipe().seed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.block.score", "softmax"], "--model.block.score wants one of dot, on, gaussian, got softmax"),
        (["--train.lr", "fast"], "--train.lr wants a number, got fast"),
        (["--train.resume", "maybe"], "--train.resume wants true or false, got maybe"),
        (["--train.lr"], "--train.lr wants a value"),
        (["--train.lr", "--seed", "3"], "--train.lr wants a value"),
        (["--model.block", "b.yaml"], "--model.block is a group; its settings are given one by one, as in --model.blo"),
        (["--data.corpora", "[{sorce: y}]"], "--data.corpora: sorce is not a setting; the nearest is source"),
        (["--data.corpora", "[{"], "--data.corpora: "),
        (["--config", "none.yaml"], "--config none.yaml: No such file or directory"),
        (["--config", "."], "--config .: Is a directory"),
        (["--config"], "--config wants a value"),
        (["word"], "word stands alone; settings are given as --name value"),
        (["--model.block.num_heads", "5"], "--model.block.dim 512 cannot be split over 5 heads"),
    ],
)
def test_a_mistake_in_a_flag_is_named_with_the_flag(config, arguments, message):
    assert complaint(*arguments).startswith(message)


def test_a_file_that_is_not_text_is_named(config):
    Path("b.yaml").write_bytes(b"seed: 1\n\xff\xfe")
    assert complaint("--config", "b.yaml") == "--config b.yaml: byte 8 is not UTF-8"


def test_all_mistakes_are_told_at_once(config):
    given = [config("seed: x\nmodel: {block: {num_heads: 5}}"), "--train.lr", "fast", "--dpeth", "3"]
    message = complaint(*given)
    for part in ("a.yaml:1: seed", "5 heads", "--train.lr wants", "--dpeth is not", "--model.depth"):
        assert part in message


def test_fields_that_must_agree_may_be_changed_in_different_places(config):
    file = config("model: {block: {dim: 65}}")
    assert read(Recipe, [file, "--model.block.num_heads", "5"]).model.block == Block(dim=65, num_heads=5)


@pytest.mark.parametrize("key", ["model", "data.extra", "data.corpora", "train.note", "train.out"])
@pytest.mark.parametrize(
    "value", ["payload.Thing", "{class_path: payload.Thing}", "!!python/object/apply:payload.go []"]
)
def test_nothing_in_a_file_imports_code(config, key, value, monkeypatch):
    monkeypatch.syspath_prepend(".")
    Path("payload.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    for arguments in ([config(f"{key}: {value}")], [f"--{key}={value}"]):
        try:
            read(Recipe, arguments)
        except InputError:
            pass
    assert "payload" not in sys.modules and not Path("ran").exists()


def test_a_written_config_reads_back_to_the_same_recipe(tmp_path):
    recipe = Recipe(
        data=Data(
            corpora=(Corpus(source=Path("ä b/x.en"), weight=1e-7), Corpus(language="null")),
            valid=[],
            extra=Corpus(language="no"),
            language="1e-3",
            names=("yes", "3", "", "a: b\nc", "#"),
            betas=(1e-10, 1e22),
        ),
        train=Train(out=None, clip=math.inf, resume=False, note="null", lr=0.1 + 0.2),
    )
    path = tmp_path / "recipe.yaml"
    write_config(Recipe(), path)
    write_config(recipe, path)
    assert load_config(Recipe, path) == recipe
    assert read(Recipe, ["--config", str(path), "--seed", "4"]) == replace(recipe, seed=4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]
    assert set(yaml.safe_load(path.read_text())) == {"data", "model", "train", "seed"}


def test_flattened_settings_are_plain():
    settings = flatten(Recipe())
    assert settings["model.block.dim"] == 512 and settings["train.out"] == "runs/here"
    assert settings["data.betas"] == [0.9, 0.98] and settings["data.corpora"][0]["source"] == "a.en"


def test_a_difference_is_named_with_both_values():
    asked = Recipe(model=Model(block=Block(dim=256, num_heads=8), depth=6), seed=2)
    assert describe_difference(Recipe(), asked) == [
        "model.block.dim: 512 in the run, 256 asked for",
        "seed: 1 in the run, 2 asked for",
    ]
    assert describe_difference(Recipe(), asked, ignore={"seed", "model.block.dim"}) == []
    assert describe_difference(Recipe(), Recipe()) == []


def test_help_shows_docstrings_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as left:
        read(Recipe, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    for text in (
        "A recipe for tests.",
        "--model.block.dim DIM Width of the model. (type: int, default: 512)",
        "How many heads share `dim`; 100 % of it.",
        "--model.block.score {dot,on,gaussian}",
        "What to train on. In each, source: File to translate from.",
        "Peak of the learning rate.",
    ):
        assert text in shown


def test_help_shows_what_must_be_given(capsys):
    with pytest.raises(SystemExit):
        read(Program, ["-h"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--run RUN Where the run lies." in shown and "default: none, it must be given" in shown


def fail(recipe: Recipe) -> None:
    raise InputError(f"line {recipe.seed}\nis empty")


def test_launch_passes_the_recipe_on():
    seen = []
    launch(Recipe, seen.append, ["--seed", "3"])
    assert seen == [Recipe(seed=3)]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--sed", "3"], "--sed is not a setting"), ([], "line 1 is empty")]
)
def test_launch_prints_one_line_and_leaves_with_2(capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as left:
        launch(Recipe, fail, arguments)
    shown = capsys.readouterr()
    assert left.value.code == 2 and shown.out == ""
    assert shown.err.startswith(f"error: {message}") and shown.err.count("\n") == 1


def test_other_processes_are_silent_about_the_configuration_but_not_about_what_they_met(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    for arguments, shown in (["--sed", "3"], ""), ([], "error on rank 3: line 1 is empty\n"):
        with pytest.raises(SystemExit) as left:
            launch(Recipe, fail, arguments)
        assert left.value.code == 2 and capsys.readouterr().err == shown


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), 2, "error: a.txt cannot be written: No space left"),
        (FloatingPointError("The decoder returned NaN."), 2, "error: The decoder returned NaN."),
        (KeyboardInterrupt(), 130, "interrupted; what was saved stays"),
    ],
)
def test_what_is_no_fault_of_the_program_is_told_in_a_line(capsys, fault, code, message):
    def main(recipe: Recipe) -> None:
        raise fault

    with pytest.raises(SystemExit) as left:
        launch(Recipe, main, [])
    shown = capsys.readouterr().err
    assert left.value.code == code and shown.startswith(message) and shown.count("\n") == 1


def test_a_program_whose_standard_error_is_closed_works_on(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    launch(Recipe, lambda recipe: print("heard by nobody", file=sys.stderr), [])
    with pytest.raises(SystemExit) as left:
        launch(Recipe, fail, [])
    assert left.value.code == 2
    sys.stderr.close()


def test_a_run_of_another_recipe_is_told_as_such(tmp_path):
    write_config(Program(run=Path("here"), text="hello"), tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match=f"{tmp_path} is no run to a recipe for tests, .*: .*run is not a setting"):
        recipe_of(Recipe, tmp_path)


def test_launch_lets_faults_of_the_program_through():
    with pytest.raises(OSError):
        launch(Recipe, lambda recipe: open("/nothing/there"), [])
    with pytest.raises(ZeroDivisionError):
        launch(Recipe, lambda recipe: 1 / 0, [])


def test_a_program_prints_no_traceback(tmp_path):
    program = "from tests.recipes.test_config import *; launch(Recipe, fail)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, "--train.lr", "fast"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --train.lr wants a number, got fast\n")
