"""The programs that use a run: translate, score_pairs, average; and three lines of Python."""

import gzip
import io
import json
import os
import pty
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from recipes import average, checkpoint, make_shortlist, score_pairs, show_attention, translate
from recipes.config import launch
from recipes.runs import load
from tasks.errors import InputError
from tasks.translation.translator import Translator
from transformer_core.search import SearchConfig

pytestmark = pytest.mark.usefixtures("as_in_a_new_process")
ROOT = Path(__file__).parents[2]
LINES = ["red dog", "", "seven opens, house", "  ", "bridge", "dog dog red house opens, seven"]


@pytest.fixture(autouse=True)
def one_core(monkeypatch) -> None:
    """Two threads are slower than one where the work is this small."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})


def run(module, capsys, *arguments: str) -> str:
    launch(module.Recipe, module.main, [str(argument) for argument in arguments])
    return capsys.readouterr().out


@pytest.fixture
def translations(trained) -> list[str]:
    found = load(trained.folder, search=SearchConfig()).translate(LINES)
    assert [bool(text) for text in found] == [True, False, True, False, True, True]
    return found


@pytest.fixture
def written(tmp_path):
    def write(name: str, text: str) -> Path:
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


def test_one_sentence(trained, capsys, translations):
    assert run(translate, capsys, trained.folder, "--text", LINES[2]) == f"{translations[2]}\n"
    assert run(translate, capsys, "--run", trained.folder, "--text", "") == "\n"


@pytest.mark.parametrize("name", ["talk.en", "talk.en.gz"])
def test_a_file_line_by_line(trained, capsys, translations, written, name, tmp_path):
    path = written(name, "\n".join(LINES) + "\n")
    assert run(translate, capsys, trained.folder, "--input", path).split("\n") == [*translations, ""]
    assert run(translate, capsys, trained.folder, "--input", path, "--output", tmp_path / "talk.de") == ""
    assert (tmp_path / "talk.de").read_text(encoding="utf-8").split("\n") == [*translations, ""]


def test_more_lines_than_are_translated_at_once_keep_their_order(trained, capsys, translations, written, monkeypatch):
    monkeypatch.setattr(translate, "LINES_AT_ONCE", 4)
    path = written("talk.en", "\n".join(LINES * 3))
    assert run(translate, capsys, trained.folder, "--input", path).split("\n") == [*translations * 3, ""]
    pipe(monkeypatch, path.read_bytes())
    assert run(translate, capsys, trained.folder).split("\n") == [*translations * 3, ""]


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_a_pipe_whose_lines_end_at_line_feeds_alone(trained, capsys, translations, monkeypatch):
    pipe(monkeypatch, f"\ufeff{LINES[0]}\r\n\nred\rdog\u2028red\n{LINES[4]}".encode())
    out = run(translate, capsys, trained.folder, "--json", "true")
    records = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [record["source"] for record in records] == [LINES[0], "", "red\rdog\u2028red", LINES[4]]
    texts = [record["translations"][0]["text"] for record in records]
    assert (texts[0], texts[1], texts[3]) == (translations[0], "", translations[4])


@pytest.mark.parametrize("options", [["--precision", "fp32", "--workers", "2"], ["--shortlist"]])
def test_quicker_ways_translate_the_same(trained, capsys, translations, written, tmp_path, options):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    if "--shortlist" in options:
        run(make_shortlist, capsys, folder)
        assert (folder / "shortlist.safetensors").exists()
    path = written("talk.en", "\n".join(LINES))
    assert run(translate, capsys, folder, "--input", path, *options).split("\n") == [*translations, ""]


def test_a_shortlist_that_was_not_made_is_missed(trained, capsys):
    with pytest.raises(SystemExit) as caught:
        run(translate, capsys, trained.folder, "--text", "red", "--shortlist")
    assert caught.value.code == 2
    assert f"make it with `python -m recipes.make_shortlist {trained.folder}`" in capsys.readouterr().err


def test_a_translation_with_a_line_break_stays_on_its_line(trained, capsys, monkeypatch, translations):
    decode = type(load(trained.folder).target).decode
    monkeypatch.setattr("tasks.translation.vocabulary.Vocabulary.decode", lambda *x: decode(*x).replace(" ", "\n"))
    pipe(monkeypatch, "\n".join(LINES).encode())
    assert run(translate, capsys, trained.folder).split("\n") == [*translations, ""]


def test_json_holds_the_n_best_with_their_scores(trained, capsys, written, translations):
    search = ["--search.beams", "3", "--search.n_best", "2"]
    out = run(
        translate, capsys, trained.folder, "--input", written("a.en", "\n".join(LINES)), "--json", "true", *search
    )
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["source"] for record in records] == LINES
    expected = load(trained.folder, search=SearchConfig(beams=3, n_best=2)).n_best(LINES)
    for record, found in zip(records, expected, strict=True):
        assert [each["text"] for each in record["translations"]] == [each.text for each in found]
        for each, other in zip(record["translations"], found, strict=True):
            assert (each["score"], each["log_probability"]) == pytest.approx((other.score, other.log_probability))


def test_what_is_not_asked_for_is_as_in_the_run(trained, capsys, tmp_path, monkeypatch):
    shutil.copytree(trained.folder, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("n_best: 1", "n_best: 2"), encoding="utf-8")
    for arguments, count in (["--search.alpha", "0.5"], 2), (["--search.n_best", "1"], 1):
        monkeypatch.setattr(
            sys, "argv", ["translate", str(tmp_path / "run"), "--text", "red dog", "--json", "true", *arguments]
        )
        runpy.run_path(translate.__file__, run_name="__main__")
        assert len(json.loads(capsys.readouterr().out)["translations"]) == count


def test_translations_begin_with_their_prefixes(trained, capsys, written):
    prefixes = ["Haus", "", "", "", "Brücke Hund", "rot"]
    paths = written("a.en", "\n".join(LINES)), written("a.begin", "\n".join(prefixes))
    out = run(translate, capsys, trained.folder, "--input", paths[0], "--prefixes", paths[1]).split("\n")
    assert all(line.startswith(prefix) for line, prefix in zip(out, prefixes, strict=False))


def test_each_group_of_lines_has_its_own_prefixes(written, monkeypatch):
    monkeypatch.setattr(translate, "LINES_AT_ONCE", 2)
    sides = [[f"{name} {line}" for line in range(5)] for name in ("line", "prefix")]
    paths = [str(written(f"{side[0]}.en", "\n".join(side))) for side in sides]
    groups = translate.given(translate.Recipe(run="", input=paths[0], prefixes=paths[1]))
    assert [pair for group in groups for pair in zip(*group, strict=True)] == list(zip(*sides, strict=True))


def test_a_file_takes_its_name_once_it_is_whole(trained, capsys, written, translations, tmp_path):
    source, begins = written("a.en", "\n".join(LINES)), written("a.begin", "\n" * 4 + "Haus " * 300 + "\n\n")
    output = written("a.de.gz", "before")
    with pytest.raises(SystemExit) as caught:
        run(translate, capsys, trained.folder, "--input", source, "--prefixes", begins, "--output", output)
    assert caught.value.code == 2 and "its translation may get" in capsys.readouterr().err
    assert gzip.decompress(output.read_bytes()) == b"before"
    run(translate, capsys, trained.folder, "--input", source, "--output", output)
    assert gzip.decompress(output.read_bytes()).decode().split("\n") == [*translations, ""]
    assert {path.name for path in tmp_path.iterdir()} == {"a.en", "a.begin", "a.de.gz"}


@pytest.mark.parametrize("name", ["nothing/a.de", "/dev/full"])
def test_a_file_that_cannot_be_written_is_named(trained, capsys, tmp_path, name):
    with pytest.raises(SystemExit) as caught:
        run(translate, capsys, trained.folder, "--text", "red dog", "--output", tmp_path / name)
    assert caught.value.code == 2 and f"{name}: cannot be written" in capsys.readouterr().err


def test_several_are_not_taken_for_one_nor_one_for_several(trained):
    translator = load(trained.folder, weights=trained.folder / "model.safetensors")
    with pytest.raises(ValueError, match="one sentence is given where several are expected"):
        translator.translate("red dog")
    with pytest.raises(ValueError, match="1 prefixes for 2 sentences"):
        translator.n_best(["red", "dog"], ["rot"])
    with pytest.raises(ValueError, match="1 translations of 2 sentences"):
        translator.log_probabilities(["red", "dog"], ["rot"])


def test_other_weights_and_ensembles(trained, capsys, translations):
    final, early = trained.folder / "model.safetensors", trained.folder / "checkpoints" / "step-00000120"
    last = trained.folder / "checkpoints" / "step-00000240"

    def lines(*weights: Path) -> list[dict]:
        given = f"[{', '.join(map(str, weights))}]"
        out = run(translate, capsys, trained.folder, "--text", LINES[5], "--weights", given, "--json", "true")
        return json.loads(out)["translations"]

    def score(found: list[dict]) -> float:
        return found[0]["log_probability"]

    assert lines(final)[0]["text"] == translations[5]
    assert run(translate, capsys, trained.folder, "--text", LINES[5], "--weights", early, "--json")
    assert lines(final, last)[0]["text"] == translations[5]
    assert score(lines(final, last)) == pytest.approx(score(lines(final)), abs=1e-4)
    assert score(lines(early)) < score(lines(early, last)) - 1e-3 < score(lines(last)) - 1e-3


def test_weights_of_another_vocabulary_are_refused(trained, tmp_path):
    weights = tmp_path / "checkpoints" / "step-00000120"
    shutil.copytree(trained.folder / "checkpoints" / weights.name, weights)
    load(trained.folder, weights=weights)
    shutil.copy(trained.folder / "vocabulary.model.sha256", tmp_path)
    load(trained.folder, weights=weights)
    (tmp_path / "vocabulary.model.sha256").write_text("another")
    with pytest.raises(InputError, match=r"step-00000120 belongs to a run with another vocabulary\.model"):
        load(trained.folder, weights=weights)


def test_several_translations_are_written_as_json_alone(trained, capsys):
    with pytest.raises(SystemExit) as caught:
        run(translate, capsys, trained.folder, "--text", "red dog", "--search.beams", "2", "--search.n_best", "2")
    assert caught.value.code == 2 and "--search.n_best 2 needs --json" in capsys.readouterr().err


def typed(trained, monkeypatch, text: bytes, *arguments: str) -> None:
    """Translate what is typed in a terminal."""
    user, terminal = pty.openpty()
    os.write(user, text)
    with open(terminal, encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        launch(translate.Recipe, translate.main, [str(trained.folder), *arguments])
    os.close(user)


@pytest.mark.parametrize("end", [b"\n", b"\x04"], ids=["empty line", "Ctrl-D"])
def test_what_is_typed_is_translated_until_an_empty_line_or_the_end(trained, capsys, monkeypatch, translations, end):
    typed(trained, monkeypatch, f"{LINES[0]}\n{LINES[4]}\n".encode() + end)
    out, err = capsys.readouterr()
    assert out.splitlines() == [translations[0], translations[4]]
    assert err.splitlines() == ["A sentence a line; an empty line or Ctrl-D ends.", "> > > "]


def test_where_a_translator_looks_is_drawn(trained, capsys, tmp_path, translations):
    given = trained.folder, "--text", LINES[5], "--output", tmp_path / "map.svg"
    assert run(show_attention, capsys, *given) == f"{translations[5]}\n"
    drawn = (tmp_path / "map.svg").read_text()
    assert "translation" in drawn and len(drawn) > 5000
    translator = load(trained.folder)
    weights = show_attention.cross_attention(translator, [5, 6, 7], [8, 9], 0)
    assert weights.shape[1:] == (3, 4) and weights.sum(-1).allclose(torch.ones(()))
    with pytest.raises(SystemExit) as left:
        run(show_attention, capsys, *given, "--layer", "7")
    assert left.value.code == 2 and "--layer 7 is not there" in capsys.readouterr().err


def test_scores_of_given_pairs(trained, capsys, written):
    sources, targets = ["red dog", "house", ""], ["rot Hund", "Brücke Brücke", "rot"]
    paths = written("a.en.gz", "\n".join([*sources, ""])), written("a.de", "\n".join(targets))
    out = run(score_pairs, capsys, trained.folder, "--source", paths[0], "--target", paths[1])
    given = [float(line) for line in out.splitlines()]
    assert given == pytest.approx(load(trained.folder).log_probabilities(sources, targets), abs=1e-4)
    assert given[0] > -3 > given[1]


def test_more_than_the_learned_positions_is_refused(trained, capsys, written, tmp_path, monkeypatch):
    recipe = yaml.safe_load((trained.folder / "recipe.yaml").read_text())
    recipe["model"]["block"] |= {"position": "learned", "max_length": 300}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="max_length 300 learned positions are too few for .* --search.max_length 400"):
        load(tmp_path, search=SearchConfig(max_length=400))

    def too_long(*given):
        raise ValueError("position 201 is past max_length=70")

    monkeypatch.setattr(Translator, "log_probabilities", too_long)
    paths = written("a.en", "red"), written("a.de", "rot")
    with pytest.raises(SystemExit) as caught:
        run(score_pairs, capsys, trained.folder, "--source", paths[0], "--target", paths[1])
    assert caught.value.code == 2 and "a.de: position 201 is past" in capsys.readouterr().err


def test_the_average_is_that_of_the_last_checkpoints(trained, capsys, tmp_path, translations):
    path = tmp_path / "averaged.safetensors"
    run(average, capsys, trained.folder, "--last", "2", "--output", path)
    folders = [trained.folder / "checkpoints" / f"step-{step:08d}" for step in (160, 240)]
    one, other = (checkpoint.load(folder).tensors["model"] for folder in folders)
    translator = load(trained.folder, weights=[path])
    (model,) = translator.models
    for name, averaged in model.state_dict().items():
        assert torch.equal(averaged, ((one[name].double() + other[name].double()) / 2).float())
    assert model.output.weight is model.source_embedding.tokens.weight is model.target_embedding.tokens.weight
    assert translator(LINES[4]) == translations[4]


def test_a_program_of_its_own_translates_a_pipe(trained, translations):
    command = [sys.executable, "-m", "recipes.translate", str(trained.folder)]
    done = subprocess.run(command, input="\n".join(LINES), capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [*translations, ""]


def test_who_has_read_enough_may_leave(trained):
    command = [sys.executable, "-m", "recipes.translate", str(trained.folder)]
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout
    program.stdout.close()
    program.stdout = None
    assert program.communicate("red dog\n", timeout=250)[1] == "" and program.returncode == 0


def test_three_lines_of_python_translate(trained):
    lines = "from recipes.runs import load\ntranslator = load({!r})\nprint(translator('red dog'))"
    command = [sys.executable, "-c", lines.format(str(trained.folder))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{load(trained.folder)('red dog')}\n", "")
