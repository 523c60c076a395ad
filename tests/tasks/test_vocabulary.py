import gzip
import math
import multiprocessing
import os
import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
import sentencepiece

from tasks.errors import InputError
from tasks.translation.segmentation import MergeDropout, SubwordRegularization
from tasks.translation.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, VocabularyConfig, train_vocabulary

ALGORITHMS = ["bpe", "unigram"]


def sentences(count=307):
    """Random walks over a few syllables, so that there is something to merge."""
    draw = Random(5)
    words = ["".join(draw.choices(["ma", "ri", "ko", "ten", "lus", "é"], k=draw.randint(1, 4))) for _ in range(211)]
    return [" ".join(draw.choices(words, k=draw.randint(3, 11))) for _ in range(count)]


@pytest.fixture(scope="module", params=ALGORITHMS)
def vocabulary(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    return train_vocabulary(sentences(), VocabularyConfig(size=401, algorithm=request.param), folder / "joint.model")


def trained(path, text=None, **options):
    return train_vocabulary(sentences() if text is None else text, VocabularyConfig(**(dict(size=331) | options)), path)


def test_special_ids_are_fixed_and_encoding_adds_none_of_them(vocabulary):
    assert vocabulary.pieces[:4] == ["<pad>", "<unk>", "<s>", "</s>"]
    assert len(vocabulary) == len(vocabulary.pieces) == 401
    assert not {PAD, UNK, BOS, EOS} & set(vocabulary.encode("mariko ten </s> <pad> <s> <unk> 漢字"))


def test_encoding_is_that_of_sentencepiece_alone_or_in_bulk(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "copy.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "copy.model"))
    expected = [reference.encode(text, out_type=str) for text in sentences(23)]
    assert [[vocabulary.pieces[id] for id in vocabulary.encode(text)] for text in sentences(23)] == expected
    assert [[vocabulary.pieces[id] for id in ids] for ids in vocabulary.encode_all(iter(sentences(23)))] == expected
    assert vocabulary.encode("") == [] and vocabulary.encode_all([]) == []


def test_decoding_skips_pad_begin_and_end(vocabulary):
    text = sentences()[0]
    assert vocabulary.decode([BOS, *vocabulary.encode(text), EOS, PAD, PAD]) == text
    assert vocabulary.decode([PAD, BOS, EOS]) == vocabulary.decode([]) == ""


def test_a_character_cut_in_the_middle_of_its_bytes_decodes_to_the_replacement_character(vocabulary):
    assert vocabulary.decode(vocabulary.encode("ma 漢")[:-1]).startswith("ma \ufffd")


TEXTS = [
    *["", "a", " ", "  ", " ma", "ma ", "ma  ri", "\tma\tri\n", "ma\r\nri", "\x00nul\x01\x7f", "ｆｕｌｌ　ｗｉｄｔｈ"],
    *[
        "e\u0301 é ﬁ ²",
        "👩‍👩‍👧 🇩🇪 👍🏽",
        "\u200bzero\ufeff\u00ad",
        "\u2585",
        "\u2028\u2029\u0085\x0b\x1c",
        "\ufffd\ufffe",
    ],
    *["<s> </s> <pad> <unk> <0x41>", " ⁇ ", "שלום مرحبا", "漢字かな한글", "\U0010ffff\ue000", "a\u00a0b\u202fc\u3000d"],
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_text_comes_back_under_identity_and_byte_fallback(tmp_path, algorithm):
    vocabulary = trained(tmp_path / "v.model", algorithm=algorithm, normalization="identity")
    assert [vocabulary.decode(vocabulary.encode(text)) for text in TEXTS] == TEXTS
    assert [vocabulary.decode(vocabulary.sample(text, 0.1, 3)) for text in TEXTS] == TEXTS
    assert vocabulary.decode(vocabulary.encode("ma\u2581ri")) == "ma ri"


@pytest.mark.parametrize(
    ("normalization", "expected"), [("nmt_nfkc", "Full fi a b"), ("nmt_nfkc_cf", "full fi a b"), ("identity", None)]
)
def test_normalization_is_the_one_asked_for(tmp_path, normalization, expected):
    text = "Ｆｕｌｌ ﬁ\u200b  a\tb"
    vocabulary = trained(tmp_path / "v.model", normalization=normalization)
    assert vocabulary.decode(vocabulary.encode(text)) == (expected or text)


def test_without_byte_fallback_a_strange_character_is_unknown(tmp_path):
    vocabulary = trained(tmp_path / "v.model", size=53, byte_fallback=False)
    assert UNK in vocabulary.encode("漢")


def test_digits_are_split_and_rare_characters_left_out_where_that_is_asked_for(tmp_path):
    text = ["year 2024 2024 2024 2024"] * 300 + ["ŵ"]
    whole, split, rare = (
        trained(tmp_path / "v.model", text, byte_fallback=False, **options).pieces
        for options in ({"size": 24}, {"size": 18, "split_digits": True}, {"size": 20, "character_coverage": 0.98})
    )
    assert any("20" in piece for piece in whole) and not any("20" in piece for piece in split)
    assert "ŵ" in whole and "ŵ" not in rare


def test_symbols_have_ids_that_no_text_can_reach(tmp_path):
    vocabulary = trained(tmp_path / "v.model", symbols=("<2de>", "<2,fr>"))
    tags = [vocabulary.pieces.index("<2de>"), vocabulary.pieces.index("<2,fr>")]
    assert not set(tags) & set(vocabulary.encode("<2de> ma <2,fr>"))
    assert vocabulary.decode([*tags, *vocabulary.encode("ma")]) == "ma"


def draw(vocabulary, seeds, text=None):
    return [tuple(vocabulary.sample(text or sentences()[0], 0.1, seed)) for seed in seeds]


def test_seeds_give_many_segmentations_of_one_text(vocabulary):
    drawn = draw(vocabulary, range(200))
    assert len(set(drawn)) > 20
    assert {vocabulary.decode(ids) for ids in drawn} == {sentences()[0]}


def test_the_same_seed_gives_the_same_segmentation_whatever_was_drawn_before(vocabulary):
    seeds = [0, 1, -1, 2**64 + 5, "1-2-3"]
    first = draw(vocabulary, seeds)
    draw(vocabulary, range(13))
    assert [draw(vocabulary, [seed])[0] for seed in reversed(seeds)] == first[::-1]


def test_every_thread_draws_what_the_main_thread_draws(vocabulary):
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda seed: draw(vocabulary, [seed])[0], range(100)))
    assert drawn == draw(vocabulary, range(100))


def work(vocabulary, seeds):
    return draw(vocabulary, seeds), vocabulary.encode_all(sentences(23))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_draw_and_encode_what_the_main_process_does(vocabulary, start):
    expected = [work(vocabulary, range(0, 20)), work(vocabulary, range(20, 40))]
    with multiprocessing.get_context(start).Pool(2) as workers:
        assert workers.starmap(work, [(vocabulary, range(0, 20)), (vocabulary, range(20, 40))]) == expected


def test_no_dropout_is_plain_encoding(vocabulary):
    assert [vocabulary.sample(text, 0.0, 3) for text in sentences(23)] == vocabulary.encode_all(sentences(23))


@pytest.mark.parametrize(("algorithm", "almost_off"), [("bpe", 1e-9), ("unigram", 1e3)])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_almost_no_noise_is_plain_encoding_also_of_text_outside_the_vocabulary(
    tmp_path, algorithm, almost_off, byte_fallback
):
    size = 331 if byte_fallback else 75
    vocabulary = trained(tmp_path / "v.model", size=size, algorithm=algorithm, byte_fallback=byte_fallback)
    texts = [*sentences(), *TEXTS, "ma漢字ri 漢 </s>ten", "e\u0301ma  ＲＩ\tkoz"]
    assert [vocabulary.sample(text, almost_off, 3) for text in texts] == vocabulary.encode_all(texts)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_as_many_pieces_are_drawn_as_sentencepiece_draws(vocabulary, tmp_path, strength):
    vocabulary.save(tmp_path / "copy.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "copy.model"))
    text = " ".join(sentences(7))
    ours = np.array([len(vocabulary.sample(text, strength, seed)) for seed in range(500)])
    theirs = np.array(
        [len(reference.encode(text, enable_sampling=True, nbest_size=-1, alpha=strength)) for _ in range(500)]
    )
    spread = np.sqrt((ours.var() + theirs.var()) / 500)
    assert abs(ours.mean() - theirs.mean()) < 6 * spread  # theirs are other ones in each run
    assert 6 * spread < 0.25 * abs(theirs.mean() - len(reference.encode(text)))


def test_merges_are_left_out_with_the_given_probability():
    scores = {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    drawn = Counter(tuple(MergeDropout(scores).sample("abc", 0.3, Random(str(seed)))) for seed in range(4_000))
    keep, leave = 0.7, 0.3
    chances = {
        ("abc",): keep * keep + leave * keep * keep,  # by ab, or by bc
        ("ab", "c"): keep * leave,
        ("a", "bc"): leave * keep * leave,
        ("a", "b", "c"): leave * leave,
    }
    assert drawn.keys() == chances.keys()
    for pieces, chance in chances.items():
        assert abs(drawn[pieces] / 4_000 - chance) < 0.04


def test_merges_across_words_are_left_out_too():
    scores = {"a▁": 0.0, "▁b": -1.0, "a▁b": -2.0}
    assert MergeDropout(scores).sample("a▁b▁b", 0.0, Random(1)) == ["a▁b", "▁b"]
    assert MergeDropout(scores).sample("a▁b▁b", 1.0, Random(1)) == list("a▁b▁b")


def test_a_unigram_model_draws_by_the_power_of_its_probabilities():
    scores = {"a": -1.0, "b": -2.0, "ab": -1.5, "ba": -4.0, "aba": -3.0}
    ways = [("a", "b", "a"), ("ab", "a"), ("a", "ba"), ("aba",)]
    weights = [math.exp(0.7 * sum(scores[piece] for piece in way)) for way in ways]
    drawn = Counter(tuple(SubwordRegularization(scores).sample("aba", 0.7, Random(str(seed)))) for seed in range(4_000))
    assert drawn.keys() == set(ways)
    for way, weight in zip(ways, weights, strict=True):
        assert abs(drawn[way] / 4_000 - weight / sum(weights)) < 0.04


def test_full_dropout_of_bpe_leaves_characters(tmp_path):
    vocabulary = trained(tmp_path / "v.model")
    assert [vocabulary.pieces[id] for id in vocabulary.sample("mari ko", 1.0, 3)] == list("▁mari▁ko")


def test_a_symbol_cannot_be_drawn_from_text(tmp_path):
    vocabulary = trained(tmp_path / "v.model", symbols=("€", "<ma>"))
    tags = {vocabulary.pieces.index("€"), vocabulary.pieces.index("<ma>")}
    drawn = [vocabulary.sample("€ <ma> </s> <0x41>", dropout, 3) for dropout in (1e-9, 0.1, 1.0)]
    assert not (tags | {PAD, UNK, BOS, EOS}) & {id for ids in drawn for id in ids}
    assert {vocabulary.decode(ids) for ids in drawn} == {"€ <ma> </s> <0x41>"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_process_trains_the_same_file_from_the_same_sentences(tmp_path, algorithm):
    config = VocabularyConfig(size=331, algorithm=algorithm)
    here = train_vocabulary(sentences(), config, tmp_path / "here.model")
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        there = workers.apply(train_vocabulary, (sentences(), config, tmp_path / "there.model"))
    assert (tmp_path / "here.model").read_bytes() == (tmp_path / "there.model").read_bytes()
    assert here.digest == there.digest != trained(tmp_path / "other.model", sentences(200)).digest


def test_a_vocabulary_survives_the_disk_and_pickle(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.model")
    for copy in (Vocabulary.load(tmp_path / "v.model"), pickle.loads(pickle.dumps(vocabulary))):
        assert copy.digest == vocabulary.digest
        assert copy.encode_all(sentences(23)) == vocabulary.encode_all(sentences(23))
    assert os.listdir(tmp_path) == ["v.model"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_long_line_is_trained_on_and_not_dropped(tmp_path, algorithm):
    text = [*sentences(), "zq " * 3_001]
    assert any("zq" in piece for piece in trained(tmp_path / "v.model", text, algorithm=algorithm).pieces)


def test_a_line_with_the_reserved_character_is_trained_on_and_not_dropped(tmp_path):
    text = [*sentences(), "zq \u2585 zq"]
    assert {"z", "q"} <= set(trained(tmp_path / "v.model", text).pieces)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_size_too_large_for_the_text_is_refused_with_the_largest_that_works(tmp_path, algorithm, capfd):
    path = tmp_path / "v.model"
    with pytest.raises(InputError, match=r"--data\.vocabulary\.size=8000 is more .* the largest possible") as caught:
        trained(path, algorithm=algorithm, size=8_000)
    assert os.listdir(tmp_path) == []
    largest = int(re.findall(r"size=(\d+)", str(caught.value))[1])
    assert len(trained(path, algorithm=algorithm, size=largest)) == largest
    with pytest.raises(InputError):
        trained(path, algorithm=algorithm, size=largest + 1)
    assert capfd.readouterr() == ("", "")


def test_a_size_too_small_for_the_characters_is_refused_with_the_smallest_that_works(tmp_path):
    with pytest.raises(InputError, match=r"--data\.vocabulary\.size=97 has no room") as caught:
        trained(tmp_path / "v.model", size=97)
    smallest = int(re.findall(r"size=(\d+)", str(caught.value))[1])
    assert len(trained(tmp_path / "v.model", size=smallest)) == smallest


@pytest.mark.parametrize("normalization", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("text", [[], [""], [" ", "\t \u3000"]])
def test_no_text_is_refused(tmp_path, text, normalization):
    with pytest.raises(InputError, match="no text to train a vocabulary on"):
        trained(tmp_path / "v.model", text, normalization=normalization)


def test_text_that_normalization_removes_is_no_text(tmp_path):
    with pytest.raises(InputError, match="no text to train a vocabulary on"):
        trained(tmp_path / "v.model", ["\x01\u200b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ma\nri", r"sentence 3 .* U\+000A at character 3, .*'ma\\nri'"),
        ("\0ma", r"sentence 3 .* U\+0000 at character 1"),
        ("m\ud83da", r"sentence 3 .* lone surrogate\) at character 2"),
    ],
)
def test_a_sentence_that_is_no_line_of_text_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "v.model", ["ma", "ri", text])


def test_what_the_reader_of_the_sentences_raises_arrives_as_it_is(tmp_path):
    def reader():
        yield "ma"
        raise InputError("corpus.de.gz: cut short")

    with pytest.raises(InputError, match=r"^corpus\.de\.gz: cut short$"):
        trained(tmp_path / "v.model", reader())


def test_half_a_character_cannot_be_encoded(vocabulary):
    for encode in (vocabulary.encode, lambda text: vocabulary.encode_all(["ma", text])):
        with pytest.raises(InputError, match="lone surrogate.* at character 4"):
            encode("ma \udcff")


def test_a_file_with_other_special_ids_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_prefix=str(tmp_path / "default"), vocab_size=53, minloglevel=2
    )
    message = r"default\.model: .* are \(-1, 0, 1, 2\) and have to be \(0, 1, 2, 3\): train it with --pad_id=0"
    with pytest.raises(InputError, match=message):
        Vocabulary.load(tmp_path / "default.model")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\x00" * 10, "damaged"), (b"not a model", "damaged"), (None, "No such file")],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, content, message):
    path = tmp_path / "v.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"v\.model: .*{message}"):
        Vocabulary.load(path)


def test_every_damaged_file_is_refused_or_has_another_digest(vocabulary, tmp_path):
    draw = Random(7)
    accepted = 0
    for _ in range(150):
        damaged = bytearray(vocabulary.model)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        (tmp_path / "v.model").write_bytes(damaged)
        try:
            assert Vocabulary.load(tmp_path / "v.model").digest != vocabulary.digest
            accepted += 1
        except InputError:
            pass
    assert accepted < 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=4), r"--data\.vocabulary\.size=4: give more than 4"),
        (dict(character_coverage=0.9), r"character_coverage=0\.9: .* 0\.98 to 1"),
        (dict(dropout=-0.1), r"dropout=-0\.1: .* 0 to 1"),
        (dict(symbols=("<2de>", "<2de>")), "symbols=.* each once"),
        (dict(symbols=("",)), "none empty"),
        (dict(symbols=("</s>",)), "none of .*</s>"),
        (dict(target_model="b.model"), r"target_model=b\.model needs --data\.vocabulary\.joint=false"),
    ],
)
def test_a_config_that_contradicts_itself_names_the_flags(options, message):
    with pytest.raises(ValueError, match=message):
        VocabularyConfig(**options)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_vocabulary_of_8000_trains_on_multi30k_and_brings_its_captions_back(tmp_path, algorithm):
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("TRANSFORMER_CORE_DATA", root / "../shared/data")) / "multi30k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set TRANSFORMER_CORE_DATA")
    text = [line for side in ("de", "en") for line in gzip.open(folder / f"train.{side}.gz", "rt").read().split("\n")]
    vocabulary = trained(tmp_path / "v.model", text, size=8_000, algorithm=algorithm, normalization="identity")
    assert [vocabulary.decode(ids) for ids in vocabulary.encode_all(text)] == text
