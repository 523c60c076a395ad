"""Text in images: rendering, data sets, batches, and a reader whose steps equal its logits at once."""

import random
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tasks.errors import InputError
from tasks.text_recognition.lines import Lines, TextImages, fit
from tasks.text_recognition.model import BOS, EOS, PAD, UNKNOWN, ReaderConfig
from tasks.text_recognition.render import able, cut, find_fonts, render
from tasks.text_recognition.task import TextRecognition
from transformer_core import BlockConfig
from transformer_core.search import SearchConfig

CORPUS = [f"{word} {number} of {other}" for word in ("one", "two", "Ten") for number in range(5) for other in "abcd"]
SMALL = {"fonts": ["matplotlib:DejaVuSans.ttf"], "test_fonts": ["matplotlib:DejaVuSerif.ttf"], "held_out": 8}
BLOCK = BlockConfig(dim=24, num_heads=3, hidden_dim=32, dropout=0.0)


@pytest.fixture
def task(tmp_path: Path) -> TextRecognition:
    data = TextImages(**SMALL, lines=20, batch=6)
    model = ReaderConfig(block=BLOCK, encoder_depth=1, decoder_depth=2, patch_size=(16, 16))
    task = TextRecognition(data, model, SearchConfig(beams=1, max_length=12), CORPUS)
    task.prepare(tmp_path)
    return task


def test_a_line_is_drawn_anew_in_each_epoch_and_the_same_by_everyone():
    one, other = (Lines(TextImages(**SMALL), CORPUS) for _ in range(2))
    image, text = one.example("train", 3, 0)
    again, same = other.example("train", 3, 0)
    assert text == same and torch.equal(image, again)
    assert not torch.equal(image, one.example("train", 3, 1)[0])
    assert image.shape == (1, 32, 256) and image.dtype == torch.uint8


def test_splits_do_not_share_their_draws():
    lines = Lines(TextImages(**{**SMALL, "test_fonts": SMALL["fonts"]}), ["same text"] * 40)
    assert not torch.equal(lines.example("valid", 3, 0)[0], lines.example("test", 3, 0)[0])


def test_no_text_is_in_two_splits_and_the_test_has_its_own_fonts():
    lines = Lines(TextImages(**SMALL), CORPUS)
    texts = {split: set(own) for split, own in lines.text.items()}
    assert sum(map(len, texts.values())) == len(set(CORPUS)) == len(set.union(*texts.values()))
    assert [len(texts[split]) for split in ("valid", "test")] == [8, 8]
    assert lines.fonts["test"] != lines.fonts["train"] == lines.fonts["valid"]
    assert lines.example("test", 2, 0)[1] == lines.text["test"][2]


def test_a_long_line_is_cut_between_words():
    draws = {cut("some words that are too many", 12, random.Random(seed)) for seed in range(40)}
    assert max(map(len, draws)) <= 12 and "some words" in draws and "too many" in draws
    assert cut("short", 12, random.Random(0)) == "short"
    assert cut("incomprehensibilities", 5, random.Random(0)) == "incom"


def test_ink_is_where_the_text_is():
    (font,) = find_fonts(["matplotlib:DejaVuSans.ttf"])
    short, long = (render(text, font, random.Random(5)) for text in ("i", "iiiiiiiiiiii"))
    assert long.width > 2 * short.width and abs(long.height - short.height) < short.height
    low, high = short.getextrema()
    assert high - low > 40


@pytest.mark.parametrize(("width", "height"), [(400, 20), (30, 200), (256, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_keeps_its_shape_inside_the_size(width, height, channels):
    image = Image.new("RGB", (width, height), (10, 10, 10))
    image.paste((200, 100, 50), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    found = fit(image, TextImages(channels=channels))
    assert found.shape == (channels, 32, 256)
    rows, columns = (found[0] > 60).nonzero().T
    scale = min(32 / height, 256 / width)
    assert abs(int(columns.max() - columns.min()) + 1 - scale * width / 2) <= 3
    assert abs(int(rows.max() - rows.min()) + 1 - scale * height / 2) <= 3
    assert abs(int(rows.max() + rows.min()) - 31) <= 3  # in the middle


def test_what_is_left_beside_an_image_has_the_colour_of_its_corner():
    colour = 10, 20, 30
    whole = fit(Image.new("RGB", (10, 10), colour), TextImages(channels=3))
    assert (whole == torch.tensor(colour)[:, None, None]).all()


def test_a_font_without_a_character_is_not_asked_for_it(tmp_path):
    sans, math = find_fonts(["matplotlib:DejaVuSans.ttf", "matplotlib:cmex10.ttf"])
    assert able([sans, math], "Straße") == [sans]
    with pytest.raises(InputError, match="no font has all characters of 'Straße'"):
        able([math], "Straße")
    with pytest.raises(InputError, match="no fonts there"):
        find_fonts([str(tmp_path)])
    with pytest.raises(InputError, match="no fonts there"):
        find_fonts(["matplotlib:nothing*.ttf"])


def test_a_text_that_is_too_short_or_missing_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="held_out=8"):
        Lines(TextImages(**SMALL), CORPUS[:10])
    with pytest.raises(InputError, match="data.text"):
        Lines(TextImages(**SMALL, text=str(tmp_path / "none.txt")), [])


def test_a_line_that_no_font_can_write_is_told_before_training(tmp_path):
    for place in (0, -1):  # in one split or another
        with pytest.raises(InputError, match="no font has all characters of 'odd \U0001f9ff'"):
            Lines(TextImages(**SMALL), [*CORPUS[:place], "odd \U0001f9ff", *CORPUS[place:]])
    (tmp_path / "junk.ttf").write_text("no font")
    with pytest.raises(InputError, match="junk.ttf cannot be read as a font"):
        Lines(TextImages(**{**SMALL, "fonts": [str(tmp_path / "junk.ttf")]}), CORPUS)
    with pytest.raises(InputError, match="no fonts are named"):
        Lines(TextImages(**{**SMALL, "fonts": []}), CORPUS)


def test_a_run_keeps_to_the_characters_it_began_with(task, tmp_path):
    other = TextRecognition(task.data, task.model, task.search, [line.upper() for line in CORPUS])
    with pytest.raises(InputError, match="characters.json: the run began with other characters"):
        other.prepare(tmp_path)


@pytest.mark.parametrize("text", ["", "[", None])
def test_characters_that_cannot_be_read_are_told(task, tmp_path, text):
    path = tmp_path / "characters.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match="characters.json: cannot be read"):
        task.restore(tmp_path)


def test_other_texts_are_other_data():
    digest = Lines(TextImages(**SMALL), CORPUS).digest()
    assert Lines(TextImages(**SMALL, seed=7), CORPUS).digest() == digest
    assert Lines(TextImages(**SMALL), CORPUS[::-1]).digest() != digest


@pytest.mark.parametrize(
    ("config", "given"),
    [
        *((TextImages, given) for given in ({"longest": 0}, {"lines": 0}, {"held_out": 0}, {"batch": 0})),
        *((TextImages, given) for given in ({"channels": 2}, {"size": (0, 256)}, {"seed": -1})),
        *((ReaderConfig, given) for given in ({"encoder_depth": 0}, {"decoder_depth": 0}, {"patch_size": (0, 4)})),
    ],
)
def test_sizes_that_mean_nothing_are_refused(config, given):
    ((name, _),) = given.items()
    with pytest.raises(ValueError, match=name):
        config(**given)


def test_a_batch_says_what_follows_each_character(task):
    batch = task.batch("train", [4, 0, 9], 0)
    assert batch.images.shape == (3, 1, 32, 256) and task.targets(batch) == sum(len(text) + 1 for text in batch.texts)
    for row, text in enumerate(batch.texts):
        ids = [task.ids[char] for char in text]
        assert (
            batch.target[row, : len(ids) + 1].tolist() == [BOS, *ids]
            and (batch.target[row, len(ids) + 1 :] == PAD).all()
        )
        own = batch.positions // batch.target.size(1) == row
        assert batch.labels[own].tolist() == [*ids, EOS]
    assert sorted(row for rows in task.plan("train", 1) for row in rows) == list(range(20))
    assert task.plan("train", 1) != task.plan("train", 2) and task.plan("valid", 0) == [[*range(6)], [6, 7]]


def test_an_unknown_character_has_an_id_and_is_never_written(task):
    task.ids.pop("o")
    texts = task.batch("test", range(8), 0)
    assert UNKNOWN in texts.target
    model = task.build().eval()
    with torch.no_grad():
        model.output.weight[UNKNOWN] = 1e3
    assert all(read == "" or set(read) <= set(task.names) for read in task.read(model, texts.images))


def test_marks_and_the_unknown_character_are_never_written(task, monkeypatch):
    seen = {}
    monkeypatch.setattr("tasks.text_recognition.task.search", lambda *state, **given: seen.update(given) or [])
    task.read(task.build().eval(), torch.zeros(2, 1, 32, 256, dtype=torch.uint8))
    assert set(seen["banned"]) == {PAD, BOS, UNKNOWN} and seen["max_lengths"].tolist() == [12, 12]


def test_patches_know_their_places(task):
    model, images = task.build().eval(), torch.randint(256, (2, 1, 32, 256), dtype=torch.uint8)
    target, positions = torch.full((2, 1), BOS), torch.arange(2)
    one, other = (model(each, target, positions).hidden for each in (images, images.roll(128, 3)))
    assert (one - other).abs().max() > 1e-3  # without places the halves could change theirs


def test_the_output_layer_is_the_embedding(task):
    model = task.build()
    assert model.output.weight is model.embedding.tokens.weight


def test_step_by_step_it_says_what_it_says_at_once(task):
    model, batch = task.build().double().eval(), task.batch("train", range(5), 0)
    images = batch.images.double()
    state = model.start(images, beams=1, capacity=batch.target.size(1))
    steps = torch.stack([state.step(tokens) for tokens in batch.target.T], 1).flatten(0, 1)[batch.positions]
    hidden, weight = model(images, batch.target, batch.positions)
    assert_close(steps, hidden @ weight.T, rtol=0, atol=1e-10)


def test_error_rates_are_edits_over_what_is_written(task):
    found = task.measure("test", [("kitten", "sitting"), ("a b", "a b")])
    assert found["cer"] == pytest.approx(100 * 3 / 10) and found["wer"] == pytest.approx(100 * 1 / 3)
    assert {"cer", "wer"} <= task.falling


def test_word_errors_are_counted_per_written_word(task):
    assert task.measure("test", [("a b c", "a b")])["wer"] == pytest.approx(100 * 1 / 2)


def test_a_few_updates_learn_what_the_lines_have_in_common(task):
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for epoch in range(25):
        for rows in task.plan("train", epoch):
            batch = task.batch("train", rows, epoch)
            loss = task.loss(model, batch).total / task.targets(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[0] > 2.5 and sum(losses[-4:]) / 4 < 1.5
    outputs = [output for _, output in task.predict("valid", model.eval(), task.batch("valid", range(8), 0))]
    assert task.measure("valid", outputs)["cer"] < 90


def test_images_and_captions_of_a_data_set_are_the_same_task(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    for split, count in (("train", 6), ("validation", 3), ("test", 3)):
        images = [Image.new("RGB", (20 + row, 10), (row, 0, 0)) for row in range(count)]
        table = datasets.Dataset.from_dict(
            {"picture": images, "caption": [f"{split} {row}" for row in range(count)]},
            features=datasets.Features({"picture": datasets.Image(), "caption": datasets.Value("string")}),
        )
        table.to_parquet(folder / f"{split}.parquet")
    data = TextImages(dataset=str(folder), image_column="picture", text_column="caption", channels=3, batch=4)
    task = TextRecognition(data, ReaderConfig(block=BLOCK), SearchConfig(beams=2, max_length=5), ())
    (tmp_path / "run").mkdir()
    task.prepare(tmp_path / "run")
    assert task.batch("valid", [2], 0).texts == ["validation 2"] and task.lines.sizes["train"] == 6
    found = task.predict("test", task.build().eval(), task.batch("test", [0, 1], 0))
    assert [row for row, _ in found] == [0, 1] and found[1][1][1] == "test 1"
    with pytest.raises(InputError, match="no column words: choose among picture, caption"):
        Lines(TextImages(dataset=str(folder), image_column="picture", text_column="words"), ())


def test_images_of_a_data_set_are_learned_as_they_are_read(tmp_path):
    ink = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (10, 5, 30, 15))
    folder = tmp_path / "captions"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        datasets.Dataset.from_dict({"image": [ink], "text": ["a"]}, features=features).to_parquet(
            folder / f"{split}.parquet"
        )
    image, _ = Lines(TextImages(dataset=str(folder)), ()).example("train", 0, 0)
    assert image.max() == 255 and image.min() == 0  # black on what lies under transparency, which is white


@pytest.mark.parametrize("rows", ['{"image": ', '{"image": 5, "text": "a"}'])
def test_a_data_set_that_cannot_be_read_is_one_line(tmp_path, rows):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.json").write_text(rows)
    with pytest.raises(InputError, match=str(tmp_path)) as raised:
        Lines(TextImages(dataset=str(tmp_path)), ())
    assert "\n" not in str(raised.value)
