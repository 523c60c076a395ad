"""Text becomes pieces, pieces become batches: every step a function of the text, the configuration and the epoch."""

import errno
import gzip
import io
import os
import random
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from rich.console import Console

from tasks.errors import InputError
from tasks.translation.data import Corpus
from tasks.translation.filters import Filter
from tasks.translation.pairs import PairData, TextPairs, saved_vocabularies
from tasks.translation.vocabulary import EOS, Vocabulary, VocabularyConfig, train_vocabulary

ENGLISH = "red dog house runs blue seven tree opens small bridge".split()
GERMAN = "rot Hund Haus rennt blau sieben Baum öffnet klein Brücke".split()


def sentences(count: int, seed: int, longest: int = 6) -> list[tuple[str, str]]:
    """Word by word, in the same order: what a small model learns in a minute."""
    draw = random.Random(seed)
    rows = [[draw.randrange(10) for _ in range(draw.randint(1, longest))] for _ in range(count)]
    return [(" ".join(ENGLISH[i] for i in row), " ".join(GERMAN[i] for i in row)) for row in rows]


def write(folder: Path, name: str, pairs: list[tuple[str, str]], ending: str = "") -> Corpus:
    """Relative paths: the configuration says where they start."""
    folder.mkdir(exist_ok=True)
    for side, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        data = "".join(f"{line}\n" for line in lines).encode()
        (folder / f"{name}.{side}{ending}").write_bytes(gzip.compress(data, mtime=0) if ending else data)
    return Corpus(source=f"{name}.en{ending}", target=f"{name}.de{ending}")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder / "parallel_text"


@pytest.fixture
def texts(tmp_path):
    """Write the default corpora, and return what makes a configuration for them."""
    folder = tmp_path / "text"
    train, valid = write(folder, "train", sentences(211, 1)), write(folder, "valid", sentences(23, 2))

    def configure(**options) -> TextPairs:
        vocabulary = {"size": 60, "byte_fallback": False} | options.pop("vocabulary", {})
        rules = {
            "train": [train],
            "valid": [valid],
            "folder": str(folder),
            "tokens": 64,
            "filter": Filter(max_length=63),
        }
        return TextPairs(vocabulary=VocabularyConfig(**vocabulary), **rules | options)

    return configure


def run_folder(tmp_path: Path, name: str = "run") -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name


def text_of(data: PairData, split) -> list[tuple[str, str]]:
    """What the pieces say; it survives normalisation, so it must be the text."""
    rows = range(len(data.splits[split].text))
    return [
        (data.source.decode(source), data.target.decode(target)) for source, target in data.ids(split, rows, epoch=0)
    ]


def test_pieces_say_what_the_files_say_line_by_line(texts, tmp_path):
    data = PairData(texts(), run_folder(tmp_path))
    assert text_of(data, "train") == sentences(211, 1)
    assert text_of(data, "valid") == sentences(23, 2)
    assert "test" not in data.splits


def test_packed_files_and_a_table_are_read_like_plain_ones(texts, tmp_path):
    table = tmp_path / "text" / "test.tsv"
    train = write(tmp_path / "text", "packed", sentences(211, 1), ending=".gz")
    table.write_text("de\ten\n" + "".join(f"{german}\t{english}\n" for english, german in sentences(31, 3)))
    test = Corpus(table="test.tsv", source_column="en", target_column="de")
    data = PairData(texts(train=[train], test=[test]), run_folder(tmp_path))
    assert text_of(data, "train") == sentences(211, 1)
    assert text_of(data, "test") == sentences(31, 3)


def test_an_absolute_path_and_one_of_the_home_folder_start_nowhere_else(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    train = write(tmp_path / "home", "mine", sentences(211, 1))
    train = Corpus(source=f"~/{train.source}", target=str(tmp_path / "home" / str(train.target)))
    assert text_of(PairData(texts(train=[train]), run_folder(tmp_path)), "train") == sentences(211, 1)


def test_pairs_to_evaluate_that_are_read_in_part_are_counted(texts, tmp_path):
    data = PairData(texts(), run_folder(tmp_path))
    assert data.cut() == []
    lengths = np.maximum(data.splits["valid"].source.lengths, data.splits["valid"].target.lengths)
    limit = int(np.median(lengths))
    (said,) = PairData(texts(filter=Filter(max_length=limit)), run_folder(tmp_path, "other")).cut()
    count = int((lengths > limit).sum())
    assert said.startswith(f"{count} of 23 valid pairs are longer than --data.filter.max_length {limit}: ")
    assert 0 < count < 23


def test_without_corpora_pairs_are_generated(tmp_path):
    data = PairData(TextPairs(embedded=101, vocabulary=VocabularyConfig(size=400)), run_folder(tmp_path))
    assert {split: len(pairs.text) for split, pairs in data.splits.items()} == {"train": 101, "valid": 500, "test": 500}
    assert not set(text_of(data, "train")) & set(text_of(data, "test"))


# Vocabularies


def test_a_joint_vocabulary_is_one_and_lies_in_the_run_folder(texts, tmp_path):
    data = PairData(texts(), folder := run_folder(tmp_path))
    assert data.source is data.target
    assert data.source.digest == Vocabulary.load(folder / "vocabulary.model").digest
    assert saved_vocabularies(texts(), folder)[0].digest == data.source.digest


def test_a_vocabulary_of_some_sentences_sees_them_evenly(texts, tmp_path):
    found = PairData(texts(vocabulary={"sentences": 42}), run_folder(tmp_path)).source
    rows = [pair * 211 // 21 for pair in range(21)]
    chosen = [sentences(211, 1)[row] for row in rows]
    text = [line for side in zip(*chosen, strict=True) for line in side]
    rules = VocabularyConfig(size=60, byte_fallback=False)
    assert found.digest == train_vocabulary(text, rules, tmp_path / "alone.model").digest
    assert found.digest != PairData(texts(), run_folder(tmp_path, "all")).source.digest


def test_separate_vocabularies_see_one_side_each(texts, tmp_path):
    config = texts(vocabulary={"joint": False, "size": 45})
    data = PairData(config, folder := run_folder(tmp_path))
    only_german = set("Böüw") | {"Baum"}  # none of these letters is in an English word
    assert any(set(piece) & only_german for piece in data.target.pieces)
    assert not any(set(piece) & only_german for piece in data.source.pieces)
    assert [each.digest for each in saved_vocabularies(config, folder)] == [data.source.digest, data.target.digest]
    assert text_of(data, "train") == sentences(211, 1)


def test_given_vocabularies_are_copied_and_not_trained(texts, tmp_path):
    given = [tmp_path / "a.model", tmp_path / "b.model"]
    for path, side in zip(given, zip(*sentences(211, 1), strict=True), strict=True):
        train_vocabulary(side, VocabularyConfig(size=30, byte_fallback=False, algorithm="unigram"), path)
    models = {"source_model": str(given[0]), "target_model": str(given[1])}
    data = PairData(texts(vocabulary={"joint": False, **models}), folder := run_folder(tmp_path))
    copies = [folder / "source.model", folder / "target.model"]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in given]
    assert (len(data.source), len(data.target)) == (30, 30)
    both = PairData(texts(vocabulary={"source_model": str(given[1])}), run_folder(tmp_path, "other"))
    assert both.source.digest == both.target.digest == data.target.digest


def test_a_run_keeps_the_vocabulary_that_it_began_with(texts, tmp_path):
    before = PairData(texts(), folder := run_folder(tmp_path)).source.digest
    write(tmp_path / "text", "train", [("other words", "andere Wörter")] * 50)
    assert PairData(texts(), folder).source.digest == before


@pytest.mark.parametrize("joint", [True, False])
def test_a_vocabulary_that_was_exchanged_is_noticed(texts, tmp_path, joint):
    config = texts(vocabulary={"joint": joint, "size": 45})
    PairData(config, folder := run_folder(tmp_path))
    path = folder / ("vocabulary.model" if joint else "target.model")
    own = path.read_bytes()
    other = [target for _, target in sentences(100, 5)]
    train_vocabulary(other, VocabularyConfig(size=45, byte_fallback=False), path)
    assert path.read_bytes() != own
    for use in (PairData, saved_vocabularies):
        with pytest.raises(InputError, match=f"{path} is not the file that the run began with: its SHA-256 is"):
            use(config, folder)
    path.write_bytes(own)
    PairData(config, folder)
    (folder / f"{path.name}.sha256").unlink()  # a run folder from elsewhere may have none
    assert len(saved_vocabularies(config, folder)[1]) == 45


def test_the_checksum_is_one_that_sha256sum_checks(texts, tmp_path):
    PairData(texts(), folder := run_folder(tmp_path))
    assert os.waitstatus_to_exitcode(os.system(f"cd {folder} && sha256sum --check --quiet *.sha256")) == 0


# Pieces


def test_pieces_are_kept_and_follow_an_edit_of_the_same_size_and_time(texts, tmp_path, cache):
    PairData(texts(), folder := run_folder(tmp_path))
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    PairData(texts(), folder)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    path = tmp_path / "text" / "train.en"
    status, text = path.stat(), path.read_text()
    path.write_text(text.replace("dog", "odg"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    edited = text_of(PairData(texts(), folder), "train")
    assert [source for source, _ in edited] == text.replace("dog", "odg").splitlines()


def test_another_vocabulary_never_meets_pieces_of_the_first(texts, tmp_path):
    for size in (60, 50):
        data = PairData(texts(vocabulary={"size": size}), run_folder(tmp_path, f"run{size}"))
        assert text_of(data, "train") == sentences(211, 1)
        assert max(data.splits["train"].source.ids) < size


def test_a_place_for_pieces_that_cannot_be_written_is_named(texts, tmp_path, cache, monkeypatch):
    def full(path, array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=f"^{cache}.*No space left on device.*HF_DATASETS_CACHE"):
        PairData(texts(), run_folder(tmp_path))
    assert not list(cache.glob("*.npy"))


def check_segmentation_noise(data: PairData) -> None:
    rows = list(range(len(data.splits["train"].text)))
    first, again, next_epoch = (list(data.ids("train", rows, epoch)) for epoch in (0, 0, 1))
    assert first == again == [pair for row in reversed(rows) for pair in data.ids("train", [row], 0)][::-1]
    assert sum(one != other for one, other in zip(first, next_epoch, strict=True)) > len(rows) / 4
    assert [(data.source.decode(source), data.target.decode(target)) for source, target in first] == sentences(211, 1)
    valid = list(data.ids("valid", range(23), 0))
    plain = [(data.source.encode(source), data.target.encode(target)) for source, target in sentences(23, 2)]
    assert valid == list(data.ids("valid", range(23), 1)) == plain


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_segmentation_noise_differs_by_epoch_repeats_by_row_and_is_off_in_validation(texts, tmp_path, algorithm):
    vocabulary = {"dropout": 0.2, "algorithm": algorithm, "size": 45}
    check_segmentation_noise(PairData(texts(vocabulary=vocabulary), run_folder(tmp_path)))


def noise_in_validation(data, monkeypatch):
    def broken(split, rows, epoch):
        for row in rows:
            source, target, _ = data.splits[split].text[row].values()
            yield data.source.sample(source, 0.2, f"{epoch} {row}"), data.target.sample(target, 0.2, f"{epoch} {row}")

    monkeypatch.setattr(data, "ids", broken)


def noise_by_place_in_the_batch(data, monkeypatch):
    sample, count = Vocabulary.sample, Counter()

    def broken(self, text, dropout, seed):
        count["calls"] += 1
        return sample(self, text, dropout, count["calls"])

    monkeypatch.setattr(Vocabulary, "sample", broken)


def noise_of_the_first_epoch_for_ever(data, monkeypatch):
    ids = data.ids
    monkeypatch.setattr(data, "ids", lambda split, rows, epoch: ids(split, rows, 0))


@pytest.mark.parametrize(
    "breakage", [noise_in_validation, noise_by_place_in_the_batch, noise_of_the_first_epoch_for_ever]
)
def test_the_check_fails_where_noise_goes_wrong(texts, tmp_path, breakage, monkeypatch):
    data = PairData(texts(vocabulary={"dropout": 0.2}), run_folder(tmp_path))
    breakage(data, monkeypatch)
    with pytest.raises(AssertionError):
        check_segmentation_noise(data)


def test_noise_follows_from_the_seed_and_is_not_the_same_on_both_sides(texts, tmp_path):
    same = [Corpus(source="train.en", target="train.en")]

    def cut(seed: int) -> list[tuple[list[int], list[int]]]:
        config = texts(train=same, valid=same, seed=seed, vocabulary={"dropout": 0.5, "size": 40})
        return list(PairData(config, run_folder(tmp_path, f"run{seed}")).ids("train", range(211), 0))

    first = cut(1)
    assert first != cut(2) and sum(source != target for source, target in first) > 50


def test_a_noisy_segmentation_is_never_cut(texts, tmp_path):
    config = texts(vocabulary={"dropout": 0.8, "size": 60}, filter=Filter(max_length=25))
    data = PairData(config, run_folder(tmp_path))
    rows = data.splits["train"].rows.tolist()
    said = [sentences(211, 1)[row] for row in rows]
    pieces = data.splits["train"]
    plain = [(pieces.source[row], pieces.target[row]) for row in rows]
    for epoch in range(3):
        sampled = list(data.ids("train", rows, epoch))
        assert [(data.source.decode(source), data.target.decode(target)) for source, target in sampled] == said
        assert max(max(map(len, pair)) for pair in sampled) <= 25
        assert sum(one != other for one, other in zip(sampled, plain, strict=True)) > len(rows) / 4


# Filters, weights, batches


def test_training_pairs_are_filtered_with_a_report_and_validation_is_cut_but_complete(texts, tmp_path):
    bad = [("", "leer"), ("empty", ""), ("red " * 40, "rot " * 40), ("dog", "Hund " * 16)]
    folder = tmp_path / "text"
    corpora = {"train": [write(folder, "bad", bad + sentences(50, 3))], "valid": [write(folder, "worse", bad)]}
    data = PairData(texts(filter=Filter(max_length=17), **corpora), run_folder(tmp_path))
    train = data.splits["train"]
    lengths = [sorted((len(train.source[row]), len(train.target[row]))) for row in range(54)]
    fit = [
        row for row, (short, long) in enumerate(lengths) if short and long <= 17 and (long <= 10 or long <= 3 * short)
    ]
    assert train.rows.tolist() == fit and not set(fit) & set(range(4))
    dropped = {rule.reason: rule.pairs for rule in data.report.dropped}
    assert dropped["empty source"] == dropped["empty target"] == 1 <= dropped["source over 17 pieces"]
    assert data.report.total == 54 == data.report.kept + sum(dropped.values())
    console = Console(file=io.StringIO(), width=100)
    console.print(data.report.table())
    assert "empty source" in console.file.getvalue() and "1:1" in console.file.getvalue()
    assert sorted(row for batch in data.plan("valid", 0) for row in batch) == [0, 1, 2, 3]
    lengths = [tuple(map(len, pair)) for pair in data.ids("valid", range(4), 0)]
    assert lengths[2] == (17, 17) and max(map(max, lengths)) == 17 and lengths[0][0] == lengths[1][1] == 0


def test_a_filter_that_leaves_nothing_says_what_it_did(texts, tmp_path):
    with pytest.raises(InputError, match=r"dropped all 211 training pairs \(source under 60 pieces: 211\)"):
        PairData(texts(filter=Filter(min_length=60, max_length=63)), run_folder(tmp_path))


def plan_of(data: PairData, epoch: int) -> list[list[int]]:
    return [list(batch) for batch in data.plan("train", epoch)]


def test_plans_are_the_same_in_any_order_of_asking_and_in_another_process(texts, tmp_path):
    data, again = PairData(texts(), run_folder(tmp_path)), PairData(texts(), run_folder(tmp_path, "other"))
    forward = [plan_of(data, epoch) for epoch in range(4)]
    assert [plan_of(again, epoch) for epoch in (3, 1, 2, 0)] == [forward[epoch] for epoch in (3, 1, 2, 0)]
    assert forward[0] != forward[1]
    assert data.plan("valid", 0) == data.plan("valid", 5)
    other_seed = PairData(texts(seed=2), run_folder(tmp_path))
    assert plan_of(other_seed, 0) != forward[0]


def test_every_epoch_shows_every_kept_row_once_within_the_budget_of_tokens(texts, tmp_path):
    data = PairData(texts(filter=Filter(max_length=20)), run_folder(tmp_path))
    pairs = data.splits["train"]
    for epoch in range(3):
        plan = plan_of(data, epoch)
        assert sorted(row for batch in plan for row in batch) == pairs.rows.tolist()
        for batch in plan:
            longest = max(max(len(pairs.source[row]), len(pairs.target[row])) + 1 for row in batch)
            assert len(batch) * longest <= 64
    assert len(pairs.rows) < 211


@pytest.mark.parametrize("pair", [("red " * 90, "rot"), ("red", "rot " * 90)], ids=["source", "target"])
def test_a_line_to_be_scored_is_planned_as_long_as_it_is_read(texts, tmp_path, pair):
    data = PairData(texts(valid=[write(tmp_path / "text", "long", [pair])]), run_folder(tmp_path))
    assert data.plan("valid", 0) == [[0]] and max(map(len, next(data.ids("valid", [0], 0)))) == 63


def test_weighted_corpora_are_shown_as_often_as_they_weigh(texts, tmp_path):
    folder = tmp_path / "text"
    corpora = [
        Corpus(source="a.en", target="a.de", weight=2.0),
        Corpus(source="b.en", target="b.de", weight=0.5),
        Corpus(table="c.tsv", source_column="en", target_column="de"),
    ]
    write(folder, "a", sentences(11, 3))
    write(folder, "b", sentences(14, 4))
    (folder / "c.tsv").write_text("en\tde\nred\trot\nblue\tblau\nsmall\tklein\n", encoding="utf-8")
    data = PairData(texts(train=corpora), run_folder(tmp_path))
    corpus = np.array(data.splits["train"].text["corpus"])
    shown = [Counter(row for batch in plan_of(data, epoch) for row in batch) for epoch in (0, 1)]
    for epoch in shown:
        assert np.bincount(corpus, [epoch[row] for row in range(28)]).tolist() == [22, 7, 3]
    assert all(shown[0][row] == 2 for row in range(11))
    assert all(shown[0][row] + shown[1][row] == 1 for row in range(11, 25))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid": []}, "train names corpora and valid none"),
        ({"train": []}, "valid or test name corpora and train none"),
        ({"train": [], "valid": [], "test": []}, "is given, and no corpus in it"),
        ({"tokens": 63}, "tokens=63 holds no pair of filter.max_length=63"),
        ({"embedded": 0}, "embedded=0"),
    ],
)
def test_settings_that_contradict_are_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        texts(**options)


def test_pieces_hold_no_marks(texts, tmp_path):
    pairs = PairData(texts(), run_folder(tmp_path)).splits["train"]
    assert min(pairs.source.ids.min(), pairs.target.ids.min()) > EOS
