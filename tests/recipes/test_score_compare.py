import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import compare, score
from tasks.errors import InputError
from tasks.translation.evaluate import ScoreConfig
from tasks.translation.evaluate import score as evaluate

SOURCES = [f"Der {number}. Hund schläft gern im Park, sagt er." for number in range(17)]
REFERENCES = [f"The dog number {number} likes to sleep in the park, he says." for number in range(17)]
BETTER = [line.replace("likes to sleep", "likes sleeping") for line in REFERENCES]
WORSE = [line.replace("he says", "says").replace("The dog number", "Dog") for line in BETTER]
RESAMPLES = ScoreConfig(bootstrap=100)


@pytest.fixture
def files(tmp_path):
    texts = {"test.de": SOURCES, "test.en": REFERENCES, "better.en": BETTER, "worse.en": WORSE}
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path


def program(name, *flags):
    command = [sys.executable, "-m", f"recipes.{name}", *map(str, flags)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=root)


def test_score_prints_the_tables_and_the_lines_to_quote(files, capsys):
    score.main(
        score.Recipe(
            hypotheses=files / "better.en", references=files / "test.en", sources=files / "test.de", score=RESAMPLES
        )
    )
    printed = capsys.readouterr().out
    for expected in evaluate(BETTER, REFERENCES, RESAMPLES):
        assert f"{expected}\n" in printed
        assert f"{expected.interval} " in printed
    assert "copy" in printed


def test_score_prints_json_that_says_the_same(files, capsys):
    score.main(score.Recipe(hypotheses=files / "better.en", references=files / "test.en", score=RESAMPLES, json=True))
    printed = json.loads(capsys.readouterr().out)
    for mine, expected in zip(printed["scores"], evaluate(BETTER, REFERENCES, RESAMPLES), strict=True):
        assert (mine["name"], mine["value"], mine["signature"]) == (expected.name, expected.value, expected.signature)
        assert mine["interval"] == {"mean": expected.interval.mean, "half_width": expected.interval.half_width}
    assert printed["behaviour"]["exact"] == 0
    assert "copy" not in printed["behaviour"]


def test_score_reads_gzip_and_several_references(files, capsys):
    (files / "test.en.gz").write_bytes(gzip.compress((files / "test.en").read_bytes()))
    first, second = files / "worse.en", files / "test.en.gz"
    score.main(score.Recipe(hypotheses=files / "test.en", references=first, more_references=(second,), json=True))
    printed = json.loads(capsys.readouterr().out)
    assert [each["value"] for each in printed["scores"]][:2] == pytest.approx([100, 100])
    assert printed["scores"][0]["signature"].startswith("nrefs:2|")
    assert printed["behaviour"]["exact"] == 1


def test_unequal_files_are_refused_by_name_and_count(files):
    (files / "short.en").write_text("one line\n")
    with pytest.raises(InputError, match=r"better\.en has 17 lines and .*short\.en has 1"):
        score.main(score.Recipe(hypotheses=files / "better.en", references=files / "short.en"))
    with pytest.raises(InputError, match=r"better\.en has 17 lines and .*short\.en has 1"):
        compare.main(
            compare.Recipe(a=files / "better.en", b=files / "short.en", references=files / "test.en", score=RESAMPLES)
        )


def test_an_empty_file_is_refused_by_name(files):
    (files / "empty.en").write_text("")
    with pytest.raises(InputError, match=r"empty\.en: "):
        score.main(score.Recipe(hypotheses=files / "empty.en", references=files / "empty.en"))


def test_compare_finds_the_better_system_and_quotes_the_signature(files, capsys):
    compare.main(
        compare.Recipe(a=files / "worse.en", b=files / "better.en", references=files / "test.en", score=RESAMPLES)
    )
    printed = capsys.readouterr().out
    assert "Of 10 pairs of equal systems, 1 gets a star" in " ".join(printed.split())
    assert printed.count("0.0099 *") == 3  # 1 / (resamples + 1): no resample reached the difference
    for system in ("A", "B"):
        assert f"{system} BLEU|nrefs:1|bs:100|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:" in printed


def test_compare_does_not_tell_a_system_from_itself(files, capsys):
    path = files / "worse.en"
    compare.main(compare.Recipe(a=path, b=path, references=files / "test.en", score=RESAMPLES))
    printed = capsys.readouterr().out
    assert printed.count("1.0000") == 3 and "*" not in printed


def test_programs_read_their_flags_and_refuse_with_one_line(files):
    flags = ["--hypotheses", files / "better.en", "--references", files / "test.en"]
    flags += ["--more_references", f"[{files / 'worse.en'}]"]
    done = program("score", *flags, "--score.bootstrap", 0, "--json", "true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scores"][0]["signature"].startswith("nrefs:2|case:mixed")

    (files / "short.en").write_text("one line\n")
    done = program("compare", "--a", files / "better.en", "--b", files / "short.en", "--references", files / "test.en")
    assert done.returncode == 2
    assert "short.en has 1" in done.stderr and "Traceback" not in done.stderr and not done.stdout
