import json
import os
import random
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tasks.errors import InputError
from tasks.translation.evaluate import ScoreConfig, behaviour, check_aligned, compare, score, table

SUBJECTS = ("A man", "The Little girl", "Our neighbour's dog", "An old woman,", "Nobody")
VERBS = ("eats", "doesn't see", "is carrying", "paints", "(almost) drops")
OBJECTS = ("3.5 apples", "a red-brick wall", "the boy's hat", '"Die Zeit"', "1,000 stones")
PLACES = ("in the park.", "at 10:30!", "near Köln?", "& the sea.")


@pytest.fixture
def references():
    rng = random.Random("references")
    return [" ".join(rng.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, PLACES)) for _ in range(97)]


def worsen(lines, share, seed):
    rng = random.Random(seed)
    return [" ".join(word for word in line.split() if rng.random() >= share) for line in lines]


def sacrebleu_command(folder, systems, streams, *flags):
    def write(name, lines):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder / name

    inputs = [write(f"system{number}", lines) for number, lines in enumerate(systems)]
    references = [write(f"references{number}", lines) for number, lines in enumerate(streams)]
    command = [sys.executable, "-m", "sacrebleu", *references, "-i", *inputs, "-m", "bleu", "chrf", "ter", "-w", "6"]
    environment = {name: value for name, value in os.environ.items() if name != "SACREBLEU_SEED"}
    run = subprocess.run([*command, *flags], capture_output=True, encoding="utf-8", check=True, env=environment)
    return run.stdout


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (ScoreConfig(bootstrap=43), ["--confidence", "--confidence-n", "43"]),
        (ScoreConfig(tokenize="intl"), ["--tokenize", "intl"]),
        (ScoreConfig(tokenize="none", lowercase=True), ["--tokenize", "none", "--lowercase", "--chrf-lowercase"]),
    ],
)
def test_scores_intervals_and_signatures_are_those_of_the_sacrebleu_command(tmp_path, references, config, flags):
    hypotheses = worsen(references, 0.3, "a")
    hypotheses[5] = ""
    expected = json.loads(sacrebleu_command(tmp_path, [hypotheses], [references], *flags))
    for mine, theirs in zip(score(hypotheses, references, config), expected, strict=True):
        assert mine.name == theirs["name"]
        assert mine.signature == theirs["signature"]
        assert mine.value == pytest.approx(theirs["score"], abs=1e-6)
        assert 5 < mine.value < 95
        if config.bootstrap:
            assert mine.interval.mean == pytest.approx(theirs["confidence_mean"], abs=1e-6)
            assert mine.interval.half_width == pytest.approx(theirs["confidence_var"], abs=1e-6)
        else:
            assert mine.interval is None


def test_several_references_are_lists_of_whole_corpora_as_in_the_sacrebleu_command(tmp_path, references):
    others = worsen(references, 0.1, "b")
    hypotheses = worsen(references, 0.3, "a")
    expected = json.loads(sacrebleu_command(tmp_path, [hypotheses], [references, others]))
    scores = score(hypotheses, [references, others], ScoreConfig())
    assert [each.value for each in scores] == pytest.approx([each["score"] for each in expected], abs=1e-6)
    assert all(each.signature.startswith("nrefs:2|") for each in scores)


def test_signatures_tell_tokeniser_case_and_version(references):
    bleu, chrf, ter = score(references, references, ScoreConfig())
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert chrf.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert ter.signature.startswith("nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:")
    assert str(bleu) == f"BLEU|{bleu.signature} = 100.00"


def test_references_score_perfectly_against_themselves_and_badly_in_another_order(references):
    perfect = [each.value for each in score(references, references, ScoreConfig())]
    assert perfect == pytest.approx([100.0, 100.0, 0.0])
    shuffled = random.Random("order").sample(references, len(references))
    bleu, chrf, ter = (each.value for each in score(shuffled, references, ScoreConfig()))
    assert bleu < 50 and chrf < 60 and ter > 40


def test_case_counts_unless_lowercase_is_asked_for(references):
    upper = [line.upper() for line in references]
    assert [each.value < 40 for each in score(upper, references, ScoreConfig())] == [True, True, True]
    lowered = score(upper, references, ScoreConfig(lowercase=True))
    assert [each.value for each in lowered] == pytest.approx([100.0, 100.0, 0.0])


@pytest.mark.parametrize(("tokenize", "warned"), [("13a", True), ("none", False)])
def test_tokenised_text_is_warned_of_unless_it_was_asked_for(caplog, tokenize, warned):
    lines = [f"{number} men sleep here ." for number in range(101)]
    score(lines, lines, ScoreConfig(tokenize=tokenize))
    assert ("forgot to detokenize" in caplog.text) == warned


def test_empty_hypotheses_give_numbers(references):
    scores = score([""] * 97, references, ScoreConfig(bootstrap=40))
    assert [each.value for each in scores] == [0.0, 0.0, 100.0]
    assert [each.interval.half_width for each in scores] == [0.0, 0.0, 0.0]


def test_the_seed_of_the_config_decides_the_resamples_and_the_environment_stays(monkeypatch, references):
    hypotheses = worsen(references, 0.3, "a")

    def intervals(seed):
        return [each.interval for each in score(hypotheses, references, ScoreConfig(bootstrap=40, seed=seed))]

    monkeypatch.setenv("SACREBLEU_SEED", "7")
    first = intervals(3)
    assert os.environ["SACREBLEU_SEED"] == "7"
    monkeypatch.delenv("SACREBLEU_SEED")
    assert intervals(3) == first
    assert intervals(4) != first
    assert "SACREBLEU_SEED" not in os.environ


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a", "b"], ["a", "b", "c"], "hypotheses has 2 lines and references 1 has 3"),
        (["a", "b", "c"], ["a", "b"], "hypotheses has 3 lines and references 1 has 2"),
        (["a", "b"], [["a", "b"], ["a"]], "hypotheses has 2 lines and references 2 has 1"),
        (["a", "b", "c"], [["a", "x"], ["b", "y"], ["c", "z"]], "hypotheses has 3 lines and references 1 has 2"),
        ([], ["a"], "hypotheses: there are no lines"),
        (["a"], [], "references 1: there are no lines"),
    ],
)
def test_lists_of_unequal_length_and_empty_ones_are_refused(hypotheses, references, message):
    for judge in (
        lambda: score(hypotheses, references, ScoreConfig()),
        lambda: behaviour(hypotheses, references),
    ):
        with pytest.raises(InputError, match=message):
            judge()


def test_comparing_refuses_systems_of_unequal_length():
    with pytest.raises(InputError, match="a has 2 lines and b has 1"):
        compare(["x", "y"], ["x"], ["x", "y"], ScoreConfig(bootstrap=40))


def test_messages_carry_the_names_they_are_given():
    with pytest.raises(InputError, match="out.de has 1 lines and test.de has 2: give files of the same sentences"):
        check_aligned({"out.de": ["a"], "test.de": ["a", "b"]})


@pytest.mark.parametrize(
    ("values", "message"),
    [({"bootstrap": 1}, "bootstrap=1 is too few"), ({"bootstrap": -5}, "bootstrap=-5"), ({"seed": 0}, "seed=0")],
)
def test_settings_that_sacrebleu_would_silently_ignore_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(**values)


def test_what_a_tokeniser_lacks_is_told(monkeypatch):
    def lacking(**settings):
        raise RuntimeError("\nJapanese needs more.\n\n  pip install sacrebleu[ja]\n")

    monkeypatch.setattr("tasks.translation.evaluate.BLEU", lacking)
    with pytest.raises(InputError, match=r"^scores.tokenize=ja-mecab: Japanese needs more. pip install sacrebleu\[ja"):
        score(["a"], [["a"]], ScoreConfig(tokenize="ja-mecab"))


def test_comparisons_are_those_of_the_sacrebleu_command(tmp_path, references):
    a, b = worsen(references, 0.3, "e"), worsen(references, 0.3, "f")
    # Its JSON cannot print the intervals, which are float32: read the table.
    printed = sacrebleu_command(
        tmp_path, [a, b], [references], "--paired-bs", "--paired-bs-n", "200", "-f", "latex", "--no-color"
    )
    cells = [
        [tuple(map(float, re.findall(r"\d+\.\d+", cell))) for cell in line.split("&")[1:]]
        for line in printed.splitlines()
        if "±" in line and "CI" not in line
    ]
    for mine, of_a, of_b in zip(compare(a, b, references, ScoreConfig(bootstrap=200)), *cells, strict=True):
        assert (mine.a.value, mine.a.interval.mean, mine.a.interval.half_width) == pytest.approx(of_a, abs=1e-5)
        numbers = (mine.b.value, mine.b.interval.mean, mine.b.interval.half_width)
        assert numbers == pytest.approx(of_b[:3], abs=1e-5)
        assert mine.p_value == pytest.approx(of_b[3], abs=1e-4)
        assert f"{mine.a.name} " in printed and mine.a.signature in printed


def test_a_clearly_better_system_is_told_from_a_worse_one(references):
    a, b = worsen(references, 0.4, "a"), worsen(references, 0.1, "b")
    comparisons = compare(a, b, references, ScoreConfig(bootstrap=200))
    assert [each.difference > 0 for each in comparisons] == [True, True, False]
    assert all(each.p_value < 0.05 for each in comparisons)


def test_a_system_does_not_differ_from_itself(references):
    hypotheses = worsen(references, 0.3, "a")
    for each in compare(hypotheses, list(hypotheses), references, ScoreConfig(bootstrap=40)):
        assert (each.difference, each.p_value) == (0.0, 1.0)


def test_systems_that_are_about_equal_are_not_told_apart(references):
    a, b = worsen(references, 0.3, "e"), worsen(references, 0.3, "f")
    assert all(each.p_value > 0.05 for each in compare(a, b, references, ScoreConfig(bootstrap=200)))


def test_comparing_without_resamples_is_refused(references):
    with pytest.raises(InputError, match="bootstrap=0 leaves nothing to compare by"):
        compare(references, references, references, ScoreConfig())


def test_comparison_signatures_tell_seed_and_resamples(references):
    bleu = compare(references, references, references, ScoreConfig(bootstrap=41, seed=9))[0]
    assert bleu.a.signature == bleu.b.signature
    assert "|bs:41|" in bleu.a.signature and "|seed:9|" in bleu.a.signature


def test_behaviour_counts_faults_that_the_reference_does_not_share():
    sources = ["ein Hund", "Berlin", "zwei Katzen", "drei", "x y z x y z"]
    references = ["a dog", "Berlin", "two cats", "three", "x y z x y z"]
    hypotheses = [" a dog", "Berlin", "zwei Katzen", "", "x y z x y z"]
    assert behaviour(hypotheses, references, sources) == pytest.approx(
        {"length_ratio": 33 / 35, "exact": 3 / 5, "empty": 1 / 5, "repetition": 0.0, "copy": 1 / 5}
    )


def test_repetition_is_three_words_said_twice():
    references = ["none of it here"] * 4
    hypotheses = ["the cat sat and the cat sat", "the cat sat and the cat", "no no no no", "no no no"]
    assert behaviour(hypotheses, references)["repetition"] == 2 / 4
    assert behaviour(hypotheses[1:2], references[:1])["repetition"] == 0
    assert behaviour(hypotheses[3:], references[:1])["repetition"] == 0


def test_behaviour_takes_any_of_several_references():
    result = behaviour(["b", "dd", ""], [["a", "d d", "e"], ["b", "cc", ""]], ["b", "d", "e"])
    assert result == pytest.approx({"length_ratio": 3 / 4, "exact": 2 / 3, "empty": 0, "repetition": 0, "copy": 0})


def test_behaviour_of_nothing_but_empty_lines_is_finite():
    result = behaviour(["", ""], ["", ""], ["", ""])
    assert result == {"length_ratio": 0.0, "exact": 1.0, "empty": 0.0, "repetition": 0.0, "copy": 0.0}


def test_behaviour_refuses_sources_of_another_length():
    with pytest.raises(InputError, match="sources: there are no lines"):
        behaviour(["a"], ["a"], [])


def test_the_table_shows_values_and_intervals(references):
    console = Console(width=80, record=True)
    scores = score(worsen(references, 0.3, "a"), references, ScoreConfig(bootstrap=40))
    with console.capture() as shown:
        console.print(table(scores))
    for each in scores:
        assert f"{each.value:.2f}" in shown.get()
        assert f"{each.interval.mean:.2f} ± {each.interval.half_width:.2f}" in shown.get()
