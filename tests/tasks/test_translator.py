"""Text in, text out: line n of the output belongs to line n of the input, whatever it is computed together with."""

import copy
import random

import pytest
import torch

from tasks.errors import InputError
from tasks.translation.evaluate import ScoreConfig
from tasks.translation.model import TranslationConfig, TranslationModel
from tasks.translation.pairs import TextPairs
from tasks.translation.task import LossConfig, Translation, collate
from tasks.translation.translator import Translated, Translator, deal_last
from tasks.translation.vocabulary import PAD, Vocabulary, VocabularyConfig, train_vocabulary
from transformer_core import BlockConfig
from transformer_core.packing import has_bfloat16
from transformer_core.search import SearchConfig

WORDS = "red dog house runs blue seven tree opens small bridge".split()


def sentences(count: int, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_vocabulary(sentences(200), VocabularyConfig(size=60, byte_fallback=False), path)


def trained(vocabulary: Vocabulary, seed: int) -> TranslationModel:
    """A model that has begun to copy; in float64, so that rounding decides nothing."""
    torch.manual_seed(seed)
    block = BlockConfig(dim=32, num_heads=2, hidden_dim=48, dropout=0.0, attention_dropout=0.1)
    config = TranslationConfig(block=block, encoder_depth=1, decoder_depth=2)
    model = TranslationModel(config, len(vocabulary), len(vocabulary), pad_id=PAD)
    task = Translation(TextPairs(), config, LossConfig(), SearchConfig(), ScoreConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    ids = vocabulary.encode_all(sentences(64))
    batch = collate(list(range(64)), ids, ids)
    for _ in range(60):
        optimizer.zero_grad()
        (task.loss(model, batch).total / task.targets(batch)).backward()
        optimizer.step()
    return model.double()


@pytest.fixture(scope="module")
def models(vocabulary) -> list[TranslationModel]:
    return [trained(vocabulary, seed) for seed in (1, 2)]


@pytest.fixture
def translator(models, vocabulary):
    def make(count: int = 1, *, tokens: int = 4096, max_length: int = 64, **search) -> Translator:
        config = SearchConfig(**{"beams": 3, "max_length": 12, **search})
        return Translator(models[:count], vocabulary, vocabulary, search=config, tokens=tokens, max_length=max_length)

    return make


def close(one: list[list[Translated]], other: list[list[Translated]]) -> bool:
    def same(a: Translated, b: Translated) -> bool:
        return a.text == b.text and a.score == pytest.approx(b.score) and a[2] == pytest.approx(b[2])

    return len(one) == len(other) and all(
        len(x) == len(y) and all(map(same, x, y)) for x, y in zip(one, other, strict=True)
    )


SEARCHES = [
    {"beams": 1},
    {"beams": 4, "n_best": 3},
    {"sample": True, "n_best": 2},
    {"sample": True, "top_k": 5, "temperature": 0.8},
]


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beam", "sample", "top k"])
@pytest.mark.parametrize("count", [1, 2])
def test_translations_come_in_the_order_of_the_input_and_do_not_depend_on_the_batch(translator, search, count):
    lines = sentences(11, seed=3)
    together = translator(count, **search).n_best(lines)
    assert close(translator(count, **search, tokens=1).n_best(lines), together)
    assert close(translator(count, **search, tokens=40).n_best(lines), together)
    if not search.get("sample"):  # a draw belongs to the place of its sentence, and that changes here
        assert close(translator(count, **search).n_best(lines[::-1])[::-1], together)
        assert close(translator(count, **search).n_best(lines[4:5]), together[4:5])
    assert len({found[0].text for found in together}) > 7


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beam", "sample", "top k"])
def test_any_number_of_workers_gives_the_same_translations(models, vocabulary, search):
    lines = sentences(23, seed=3)
    found = [
        Translator(
            models, vocabulary, vocabulary, search=SearchConfig(max_length=12, **search), tokens=40, workers=workers
        ).n_best(lines)
        for workers in (1, 2, 5)
    ]
    assert close(found[1], found[0]) and close(found[2], found[0])


def test_a_mistake_in_a_worker_comes_back_as_it_is(models, vocabulary, monkeypatch):
    def broken(*arguments, **options):
        raise FloatingPointError("NaN in a worker")

    monkeypatch.setattr("tasks.translation.translator.decode", broken)
    with pytest.raises(FloatingPointError, match="NaN in a worker"):
        Translator(models, vocabulary, vocabulary, tokens=40, workers=2).translate(sentences(23))


@pytest.mark.parametrize(("precision", "share"), [("fp32", 1.0), ("bf16", 0.8), ("int8", 0.8)])
def test_packed_weights_translate_as_the_plain_ones(models, vocabulary, precision, share):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if precision == "bf16" and not has_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    lines, config = sentences(40, seed=5), SearchConfig(max_length=12)
    exact = Translator(models[:1], vocabulary, vocabulary, search=config).n_best(lines)
    packed = Translator(
        [copy.deepcopy(models[0]).float()], vocabulary, vocabulary, search=config, precision=precision
    ).n_best(lines)
    equal = [one[0].text == other[0].text for one, other in zip(exact, packed, strict=True)]
    assert sum(equal) >= share * len(lines)
    if precision != "fp32":
        assert [one[0].score for one in exact] != pytest.approx([one[0].score for one in packed], rel=1e-5)


def test_one_sentence_is_translated_by_a_call(translator):
    line, *_ = sentences(1)
    assert translator()(line) == translator().translate([line])[0] == translator().n_best([line])[0][0].text


def test_nothing_to_translate_gives_nothing(translator):
    assert translator().translate([]) == []
    assert translator().log_probabilities([], []) == []


def test_empty_lines_stay_empty_and_keep_their_place(translator):
    lines = ["", *sentences(3), "   ", "", sentences(4)[3], "\u200b"]
    found = translator().translate(lines)
    assert [bool(text) for text in found] == [False, True, True, True, False, False, True, False]
    assert [text for text in found if text] == translator().translate(
        [line for line in lines if line.isascii() and line.strip()]
    )
    assert translator().translate(["", ""]) == ["", ""]
    assert translator().n_best(["", "red"])[0] == [Translated("", 0.0, 0.0)]


def test_a_line_that_is_too_long_is_cut_with_a_warning(translator, vocabulary, caplog):
    line = " ".join(random.Random(1).choice(WORDS) for _ in range(3_000))
    long, short = translator().translate([line, "red dog"])
    assert short == translator()("red dog")
    assert "only the first 64 are translated" in caplog.text and caplog.text.count("WARNING") == 1
    assert long == translator()(vocabulary.decode(vocabulary.encode(line)[:64]))


def test_the_n_best_differ_and_are_sorted(translator):
    for found in translator(beams=5, n_best=5).n_best(sentences(11)):
        assert len({each.text for each in found}) == 5
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        assert all(each.log_probability <= each.score < 0 for each in found)


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beam", "sample", "top k"])
def test_a_translation_begins_with_its_prefix(translator, search):
    lines, prefixes = sentences(9), ["dog", "", "small bridge", "seven", "", "", "red red red", "tree", "blue"]
    for prefix, found in zip(prefixes, translator(**search).n_best(lines, prefixes), strict=True):
        assert all(each.text.startswith(prefix) for each in found)
    free = translator(**search).n_best(lines)
    some = translator(**search).n_best(lines, prefixes)
    assert close([some[row] for row in (1, 4, 5)], [free[row] for row in (1, 4, 5)])


def test_a_prefix_longer_than_its_translation_may_become_is_refused(translator):
    with pytest.raises(
        InputError, match=r"the prefix 'dog dog .* pieces, and its translation may get 12: .*max_length"
    ):
        translator().n_best(["red", "blue"], ["", "dog " * 13])


def test_two_copies_of_a_model_translate_like_one_and_two_models_like_neither(models, vocabulary, translator):
    lines = sentences(7)
    config = SearchConfig(beams=3, max_length=12)
    copies = Translator([models[0]] * 2, vocabulary, vocabulary, search=config)
    other = Translator([models[1]], vocabulary, vocabulary, search=config)
    assert close(copies.n_best(lines), translator().n_best(lines))
    assert not close(translator(2).n_best(lines), translator().n_best(lines))
    assert not close(translator(2).n_best(lines), other.n_best(lines))


def test_probabilities_are_those_of_the_search_where_text_is_cut_as_the_search_put_it_together(translator):
    lines = sentences(40)
    found = [best for best, *_ in translator().n_best(lines)]
    given = translator().log_probabilities(lines, [best.text for best in found])
    equal = [value == pytest.approx(best.log_probability) for value, best in zip(given, found, strict=True)]
    assert sum(equal) > 30
    assert translator(tokens=1).log_probabilities(lines, [best.text for best in found]) == pytest.approx(given)


def test_every_pair_has_a_probability_even_one_without_words(translator):
    values = translator().log_probabilities(["red", "", "red", ""], ["", "red", "red", ""])
    assert all(-50 < value < -0.01 for value in values) and len(set(values)) == 4
    whole = translator().log_probabilities(["red"] * 3, ["red", "red dog", "dog"])
    assert all(value < 0 for value in whole)


def test_models_are_used_without_dropout(models, vocabulary, translator):
    for model in models:
        model.train()
    lines = sentences(5)
    assert close(translator().n_best(lines), translator().n_best(lines))
    assert not any(model.training for model in models[:1])


@pytest.mark.parametrize(
    ("sizes", "workers", "dealt"),
    [([3, 3, 2], 2, [3, 3, 1, 1]), ([2, 2], 2, [2, 2]), ([1, 1, 3], 4, [2, 1, 1, 1]), ([2, 1], 8, [1, 1, 1])],
)
def test_the_last_batches_are_dealt_so_that_each_worker_has_as_much(sizes, workers, dealt):
    rows = iter(range(sum(sizes)))
    batches = [[next(rows) for _ in range(size)] for size in sizes]
    found = deal_last(batches, workers)
    assert sorted(row for batch in found for row in batch) == list(range(sum(sizes)))
    assert [len(batch) for batch in found] == dealt
    assert found[: len(sizes) // workers * workers] == batches[: len(sizes) // workers * workers]
