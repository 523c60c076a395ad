import json

import pytest

from benchmarks import scores
from benchmarks.scores import Recipe, Trained, sheet
from recipes.config import read
from tasks.errors import InputError


def trained(place, score, quality, **changes):
    return Trained(place, score, **{"quality": quality, "loss": 1.25, "rates": [10, 4000, 30], "peak": 2**30} | changes)


def test_a_row_holds_what_was_seen_of_a_score_in_each_place():
    runs = [
        trained(place, score, quality, rates=[1, 2000, 3000])
        for place, quality in [("translation", 71.0), ("images", 93.0)]
        for score in ["cosine", "dot"]
    ]
    made = sheet(runs, Recipe(scores=["cosine", "dot"]))
    assert made.head == ["score", *["translation: BLEU", "loss", "tokens/s", "peak MB"]] + [
        *["images: accuracy", "loss", "images/s", "peak MB"]
    ]
    columns = ["1.250", "2,000", "1,024"]
    assert made.rows == [[score, "71.0", *columns, "93.0", *columns] for score in ["cosine", "dot"]]


def test_the_score_is_the_only_difference_between_two_runs(tmp_path):
    one, other = (scores.arguments("images", score, Recipe(), tmp_path) for score in ("dot", "additive"))
    assert [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]] == [
        ("--model.block.score=dot", "--model.block.score=additive")
    ]


def fake_program(tmp_path, monkeypatch, code):
    """A program in place of a recipe; it gets the arguments of one."""
    (tmp_path / "fake.py").write_text(code)
    monkeypatch.setattr(
        scores, "arguments", lambda *inputs: [scores.sys.executable, str(tmp_path / "fake.py"), str(inputs[3])]
    )


def test_a_run_is_read_from_its_folder(tmp_path, monkeypatch):
    lines = [{"step": 1, "train/images_per_second": 5.0}, {"step": 2, "train/images_per_second": 9.0}, {"step": 2}]
    report = {"chosen": "best", "results": {"best": {"test": {"top1": 97.5, "loss": 0.5}}, "last": {"test": {}}}}
    fake_program(
        tmp_path,
        monkeypatch,
        f"import pathlib, sys, time; folder = pathlib.Path(sys.argv[1]); folder.mkdir(); held = b'x' * 2**26\n"
        f"(folder / 'metrics.jsonl').write_text({chr(10).join(map(json.dumps, lines))!r})\n"
        f"(folder / 'report.json').write_text({json.dumps(report)!r}); time.sleep(0.5)",
    )
    run = scores.train("images", "dot", Recipe(), tmp_path / "run")
    assert (run.quality, run.loss, run.rate) == (97.5, 0.5, 9.0)
    assert 2**26 < run.peak < 2**30


def test_a_run_that_fails_is_told_with_its_last_line(tmp_path, monkeypatch):
    fake_program(tmp_path, monkeypatch, "raise SystemExit('first\\nerror: no such thing')")
    with pytest.raises(InputError, match=r"recipes\.train_images with score dot ended with 1: error: no such thing"):
        scores.train("images", "dot", Recipe(), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_steps", "0"], "--image_steps 0: choose 1 or more"),
        (["--scores", "[]"], "--scores names nothing to train"),
        (["--scores", "[euclid]"], "euclid"),
    ],
)
def test_settings_that_train_nothing_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        read(Recipe, flags)
