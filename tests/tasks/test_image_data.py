"""Labelled images are read from folders, tables and data sets; what does not fit is named. Images are 5 rows of 7."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from io import BytesIO, StringIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets.table import MemoryMappedTable
from PIL import Image
from rich.console import Console

from tasks.decode import ImageError
from tasks.errors import InputError
from tasks.image_classification.data import Images, ImageSource, LabelledImages
from tasks.names import read_names

ROOT = Path(__file__).parents[2]
ANIMALS = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(value):
    """A grey image whose pixels are all of one value, by which it is known again."""
    return Image.new("L", (7, 5), value)


def png(value):
    buffer = BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path)


def animals(folder, counts=(3, 2, 4), names=ANIMALS):
    """Write an image folder; image n of class c is of value 20 c + n."""
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        for number in range(count):
            save(folder / name / f"{number}.png", 20 * index + number)
    return ImageSource(folder=str(folder))


def parquet(path, labels, names=None, first=0):
    """Write a table as `datasets` does: structs of bytes and path; the image of row n is of value `first` + n."""
    kind = ClassLabel(names=list(names)) if names else Value("string" if isinstance(labels[0], str) else "int64")
    images = [{"bytes": png(first + n), "path": None} for n in range(len(labels))]
    features = Features({"image": datasets.Image(), "label": kind})
    Dataset.from_dict({"image": images, "label": list(labels)}, features=features).to_parquet(str(path))
    return ImageSource(table=str(path))


def read(tmp_path, *train, run="run", **options):
    config = Images(**{"train": list(train), "valid": list(train[:1]), "channels": 1} | options)
    return LabelledImages(config, tmp_path / run)


def refusal(tmp_path, *train, **options):
    with pytest.raises(InputError) as caught:
        read(tmp_path, *train, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def value(data, split, row):
    image = data.image(split, row)
    assert image.dtype == torch.uint8 and image.shape == (data.config.channels, 5, 7)
    assert image.min() == image.max()
    return int(image[0, 0, 0])


def content(data, split="train"):
    """Pairs of the value of an image and the name of its class."""
    return [(value(data, split, row), data.classes[data.label(split, row)]) for row in range(data.sizes[split])]


def printed(table):
    text = StringIO()
    Console(width=300, file=text).print(table)
    return text.getvalue()


# Folders.


def test_the_folders_are_the_classes_in_the_order_of_their_names(tmp_path):
    data = read(tmp_path, animals(tmp_path / "zoo", (3, 2, 4), ("eel", "cat", "dog")))
    assert data.classes == ["cat", "dog", "eel"]
    assert data.labels("train").tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2] and data.labels("train").dtype == np.int64
    by_class = {"cat": [20, 21], "dog": [40, 41, 42, 43], "eel": [0, 1, 2]}
    assert content(data) == [(shade, name) for name, shades in by_class.items() for shade in shades]
    assert data.name("train", 3) == f"{tmp_path}/zoo/dog/1.png"


def test_images_at_any_depth_and_of_any_suffix_are_taken_and_other_files_are_not(tmp_path):
    folder = tmp_path / "zoo"
    for place, shade in [("cat/a/b/1.PNG", 1), ("cat/2.bmp", 2), ("cat/a/3.tiff", 3), ("dog/4.webp.png", 4)]:
        save(folder / place, shade)
    for place in ("cat/.5.png", "cat/.hidden/6.png", ".git/7.png", "8.png"):
        save(folder / place, 99)
    for place in ("cat/notes.txt", "dog/Thumbs.db", "cat/png"):
        (folder / place).write_text("no image")
    assert sorted(content(read(tmp_path, ImageSource(folder=str(folder))))) == [
        (1, "cat"), (2, "cat"), (3, "cat"), (4, "dog"),
    ]  # fmt: skip


def test_a_class_and_a_folder_in_it_may_be_links(tmp_path):
    animals(tmp_path / "zoo")
    (tmp_path / "part" / "cat").mkdir(parents=True)
    (tmp_path / "part" / "cat" / "more").symlink_to(tmp_path / "zoo" / "cat")
    (tmp_path / "part" / "eel").symlink_to(tmp_path / "zoo" / "eel")
    expected = [(0, "cat"), (1, "cat"), (2, "cat"), (40, "eel"), (41, "eel"), (42, "eel"), (43, "eel")]
    assert content(read(tmp_path, ImageSource(folder=str(tmp_path / "part")))) == expected


def test_a_link_to_a_folder_around_it_is_not_walked_again(tmp_path):
    animals(tmp_path / "data")
    (tmp_path / "data" / ANIMALS[0] / "self").symlink_to(tmp_path / "data" / ANIMALS[0])
    data = read(tmp_path, ImageSource(folder=str(tmp_path / "data")))
    assert data.sizes["train"] == 9


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    data = animals(tmp_path / "data")
    save(tmp_path / "data" / ANIMALS[0] / os.fsdecode(b"caf\xe9.png"), 1)
    assert "the name is not UTF-8" in refusal(tmp_path, data)


def test_relative_paths_start_in_the_folder_and_the_home_folder_has_its_sign(tmp_path, monkeypatch):
    animals(tmp_path / "zoo")
    parquet(tmp_path / "train.parquet", ["cat"])
    Dataset.from_dict({"image": [png(7)], "label": ["cat"]}).save_to_disk(str(tmp_path / "saved"))
    for source in (ImageSource(folder="zoo"), ImageSource(table="train.parquet"), ImageSource(dataset="saved")):
        assert read(tmp_path, source, folder=str(tmp_path), run=str(source)).sizes["train"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path, ImageSource(folder="~/zoo")).sizes["train"] == 9


def test_no_image_is_opened_before_it_is_asked_for(tmp_path):
    source = animals(tmp_path / "zoo")
    (tmp_path / "zoo" / "cat" / "1.png").write_text("no image")
    data = read(tmp_path, source)
    assert data.report is None
    assert value(data, "train", 0) == 0
    with pytest.raises(ImageError) as caught:
        data.image("train", 1)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/zoo/cat/1.png: no image of a known kind (it begins with b'no image')")
    assert "--data.corrupt skip" in message


def test_images_that_are_kept_are_decoded_once(tmp_path):
    folder = animals(tmp_path / "animals")
    kept, other = (read(tmp_path, folder, run=str(keep), keep=keep) for keep in (True, False))
    before = content(kept)
    for path in (tmp_path / "animals").rglob("*.png"):
        path.unlink()
    assert content(kept) == before
    with pytest.raises(ImageError):
        content(other)


def test_a_file_that_went_away_is_named(tmp_path):
    data = read(tmp_path, animals(tmp_path / "zoo"))
    (tmp_path / "zoo" / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"zoo/cat/1.png: no file that can be read \(No such file"):
        data.image("train", 1)


# Tables and data sets.


def test_a_table_as_datasets_writes_it_is_read_and_mapped_from_disk(tmp_path):
    labels = [2, 0, 1, 1, 0]
    data = read(tmp_path, parquet(tmp_path / "a.parquet", labels, ANIMALS))
    assert data.classes == list(ANIMALS)
    assert content(data) == [(n, ANIMALS[label]) for n, label in enumerate(labels)]
    assert data.name("train", 2) == f"{tmp_path}/a.parquet row 3"
    assert isinstance(data._splits["train"].sources[0].images.data, MemoryMappedTable)


def test_the_channels_are_those_that_were_asked_for(tmp_path):
    data = read(tmp_path, parquet(tmp_path / "a.parquet", ["cat", "dog"]), channels=3)
    assert data.image("train", 1).tolist() == torch.full((3, 5, 7), 1).tolist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([png(0), png(1)]),
        pa.array([png(0), png(1)], pa.large_binary()),
        pa.array([{"bytes": png(0)}, {"bytes": png(1)}]),
        pa.array(["here/0.png", "here/1.png"]),
        pa.array([{"path": "here/0.png"}, {"path": "here/1.png"}]),
        pa.array([{"path": "here/0.png", "bytes": None}, {"path": "nowhere.png", "bytes": png(1)}]),
    ],
    ids=["bytes", "large bytes", "struct of bytes", "paths", "struct of paths", "some of both"],
)
def test_images_may_be_bytes_or_paths_that_start_where_the_table_lies(tmp_path, column):
    for number in range(2):
        save(tmp_path / "here" / f"{number}.png", number)
    pq.write_table(pa.table({"img": column, "kind": ["cat", "dog"], "id": [7, 8]}), tmp_path / "a.parquet")
    source = ImageSource(table=str(tmp_path / "a.parquet"), image_column="img", label_column="kind")
    assert content(read(tmp_path, source)) == [(0, "cat"), (1, "dog")]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["pig", "ant", "pig", "cow"], ["ant", "cow", "pig"]),
        ([3, 0, 1, 2, 3], ["0", "1", "2", "3"]),
        ([10, 2, 1, 10], ["1", "2", "10"]),
    ],
)
def test_labels_without_names_are_named_by_their_values(tmp_path, labels, classes):
    data = read(tmp_path, parquet(tmp_path / "a.parquet", labels))
    assert data.classes == classes
    assert content(data) == [(n, str(label)) for n, label in enumerate(labels)]


def test_a_data_set_that_datasets_saved_is_read_by_its_splits(tmp_path):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["dog", "cat"])})
    rows = {"image": [picture(5), picture(6)], "label": [1, 0]}
    one = Dataset.from_dict(rows, features=features)
    DatasetDict(train=one, extra=one.select([1])).save_to_disk(str(tmp_path / "both"))
    one.select([1, 0]).save_to_disk(str(tmp_path / "one"))
    assert content(read(tmp_path, ImageSource(dataset=str(tmp_path / "both")))) == [(5, "cat"), (6, "dog")]
    assert content(read(tmp_path, ImageSource(dataset=str(tmp_path / "both"), split="extra"))) == [(6, "dog")]
    assert content(read(tmp_path, ImageSource(dataset=str(tmp_path / "one")))) == [(6, "dog"), (5, "cat")]
    for name, there in (("both", "train, extra"), ("one", "train")):
        message = refusal(tmp_path, ImageSource(dataset=str(tmp_path / name), split="test"))
        assert message.startswith(f"dataset {tmp_path}/{name} test: ") and f"these splits: {there}:" in message


def test_a_data_set_of_files_is_read_by_its_splits_and_slices(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        parquet(folder / f"{split}.parquet", ["cat", "dog", "cat", "dog"][:count], first=10 * count)
    assert [n for n, _ in content(read(tmp_path, ImageSource(dataset=str(folder))))] == [40, 41, 42, 43]
    assert [n for n, _ in content(read(tmp_path, ImageSource(dataset=str(folder), split="test")))] == [20, 21]
    assert [n for n, _ in content(read(tmp_path, ImageSource(dataset=str(folder), split="train[2:]")))] == [42, 43]
    message = refusal(tmp_path, ImageSource(dataset=str(folder), split="validation"))
    assert message.startswith(f"dataset {folder} validation: cannot be loaded (") and "validation" in message


def test_paths_in_a_data_set_start_in_its_folder(tmp_path):
    save(tmp_path / "set" / "here" / "0.png", 7)
    Dataset.from_dict({"image": ["here/0.png"], "label": ["cat"]}).save_to_disk(str(tmp_path / "set"))
    assert content(read(tmp_path, ImageSource(dataset=str(tmp_path / "set")))) == [(7, "cat")]


# Several sources.


def test_sources_with_the_same_names_in_the_same_order_keep_it(tmp_path):
    names = ["eel", "cat", "dog"]
    sources = [parquet(tmp_path / f"{n}.parquet", [n, 2], names, first=10 * n) for n in range(2)]
    data = read(tmp_path, *sources)
    assert data.classes == names
    assert content(data) == [(0, "eel"), (1, "dog"), (10, "cat"), (11, "dog")]
    assert data.name("train", 3) == f"{tmp_path}/1.parquet row 2"


def test_classes_of_several_sources_are_united_by_name(tmp_path):
    first = parquet(tmp_path / "a.parquet", [0, 1], ["eel", "cat"])
    second = parquet(tmp_path / "b.parquet", ["dog", "cat"], first=50)
    data = read(tmp_path, first, second, animals(tmp_path / "zoo", (1, 1, 1), ("cat", "ant", "fox")))
    assert data.classes == ["ant", "cat", "dog", "eel", "fox"]
    shades = [(0, "eel"), (1, "cat"), (50, "dog"), (51, "cat"), (20, "ant"), (0, "cat"), (40, "fox")]
    assert content(data) == shades


def test_the_classes_of_validation_and_test_are_found_by_name(tmp_path):
    train, other = animals(tmp_path / "zoo"), parquet(tmp_path / "a.parquet", [1, 0, 1], ["eel", "cat", "yak"][:2])
    data = read(tmp_path, train, valid=[other], test=[other, parquet(tmp_path / "b.parquet", ["dog"])])
    assert data.labels("valid").tolist() == [0, 2, 0] and data.labels("test").tolist() == [0, 2, 0, 1]
    assert data.sizes == {"train": 9, "valid": 3, "test": 4}


def test_a_class_that_training_lacks_is_refused(tmp_path):
    train, other = animals(tmp_path / "zoo"), parquet(tmp_path / "a.parquet", ["cat", "yak", "cow"])
    for split in ("valid", "test"):
        message = refusal(tmp_path, train, **{split: [other]})
        assert f"{tmp_path}/a.parquet: no training image is of class cow, yak; there are cat, dog, eel" in message


def test_a_class_that_is_declared_and_not_used_does_no_harm(tmp_path):
    other = parquet(tmp_path / "a.parquet", [0, 0], ["dog", "yak"])
    assert read(tmp_path, animals(tmp_path / "zoo"), valid=[other]).labels("valid").tolist() == [1, 1]


# The run folder.


def test_the_class_names_are_kept_in_the_run_folder(tmp_path):
    source = animals(tmp_path / "zoo", names=("Käfer", "ant", "bee"))
    read(tmp_path, source)
    kept = (tmp_path / "run" / "classes.json").read_text(encoding="utf-8")
    assert json.loads(kept) == read_names(tmp_path / "run/classes.json") == ["Käfer", "ant", "bee"]
    assert os.listdir(tmp_path / "run") == ["classes.json"]
    read(tmp_path, source)
    assert (tmp_path / "run" / "classes.json").read_text(encoding="utf-8") == kept


@pytest.mark.parametrize(
    ("kept", "difference"),
    [
        (["cat", "dog", "yak"], r"\(yak is gone; eel is new\)"),
        (["cat", "dog"], r"\(eel is new\)"),
        (["cat", "dog", "eel", "fox", "yak"], r"\(fox, yak is gone\)"),
        (["eel", "cat", "dog"], r"\(in another order\)"),
    ],
)
def test_a_run_that_began_with_other_classes_is_refused(tmp_path, kept, difference):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "classes.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match=f"run/classes.json: the run began with other classes {difference}:"):
        read(tmp_path, animals(tmp_path / "zoo"))
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == kept


def test_other_images_are_other_data_wherever_they_lie(tmp_path):
    digest = read(tmp_path, animals(tmp_path / "zoo"), valid=[]).digest()
    shutil.copytree(tmp_path / "zoo", tmp_path / "moved")
    moved = ImageSource(folder=str(tmp_path / "moved"))
    assert read(tmp_path, moved, valid=[]).digest() == digest
    assert read(tmp_path, moved, valid=[], held_out=0.3).digest() != digest
    first = sorted((tmp_path / "moved" / "cat").iterdir())[0]
    renamed = first.rename(first.with_name("a_other.png"))
    assert read(tmp_path, moved, valid=[]).digest() != digest
    renamed.rename(tmp_path / "moved" / "dog" / first.name)
    assert read(tmp_path, moved, valid=[]).digest() != digest
    labels = [[0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0]]
    tables = [parquet(tmp_path / f"{i}.parquet", each, ["ant", "bee"]) for i, each in enumerate(labels)]
    first, same, other = (read(tmp_path, table, run="tables").digest() for table in tables)
    assert first == same != other


@pytest.mark.parametrize("text", ["", "[", '{"cat": 0}', "[0, 1]"])
def test_class_names_that_cannot_be_read_are_refused(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(InputError, match="classes.json: "):
        read_names(tmp_path / "classes.json")


# What is left out.


@pytest.fixture
def damaged(tmp_path):
    """Nine images of which three cannot be read: two cut short, one a text."""
    source = animals(tmp_path / "zoo")
    for name in ("cat/1.png", "eel/3.png"):
        path = tmp_path / "zoo" / name
        path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "zoo" / "dog" / "0.png").write_text("no image")
    return source


def test_unreadable_images_are_left_out_counted_and_named(tmp_path, damaged):
    good = animals(tmp_path / "good", (1, 1, 1))
    data = read(tmp_path, damaged, valid=[good], test=[damaged], corrupt="skip")
    assert data.sizes == {"train": 6, "valid": 3, "test": 6}
    expected = [(0, "cat"), (2, "cat"), (21, "dog"), (40, "eel"), (41, "eel"), (42, "eel")]
    assert content(data) == content(data, "test") == expected
    assert data.labels("train").tolist() == [0, 0, 1, 2, 2, 2]
    assert [data.name("train", row).split("/")[-2:] for row in (1, 2)] == [["cat", "2.png"], ["dog", "1.png"]]
    lines = [line.strip("│ \n").split("│") for line in printed(data.report).splitlines() if "zoo" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    zoo = f"{tmp_path}/zoo"
    assert cells == [
        [split, *rest]
        for split in ("train", "test")
        for rest in (
            ["cannot be decoded", "2", f"{zoo}/cat/1.png, {zoo}/eel/3.png"],
            ["no image of a known kind", "1", f"{zoo}/dog/0.png"],
        )
    ]


def test_empty_rows_and_too_many_pixels_are_left_out_too(tmp_path):
    buffer = BytesIO()
    Image.new("L", (6, 6)).save(buffer, "PNG")
    columns = {"image": [png(0), None, buffer.getvalue(), png(3)], "label": ["cat", "dog", "cat", "dog"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = ImageSource(table=str(tmp_path / "a.parquet"))
    data = read(tmp_path, source, corrupt="skip", max_pixels=35)
    assert content(data) == [(0, "cat"), (3, "dog")] and data.name("train", 1).endswith("a.parquet row 4")
    text = printed(data.report)
    assert "no image there" in text and "more pixels than max_pixels=35" in text
    with pytest.raises(ImageError, match=r"a.parquet row 2: no image there"):
        read(tmp_path, source).image("train", 1)


def test_nothing_is_reported_where_nothing_is_left_out(tmp_path):
    assert read(tmp_path, animals(tmp_path / "zoo"), corrupt="skip").report is None


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path, damaged):
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "0.png").write_text("no image")
    message = refusal(tmp_path, damaged, test=[ImageSource(folder=str(tmp_path / "bad"))], corrupt="skip")
    assert message.startswith(f"no image of the test split can be read; the first is {tmp_path}/bad/cat/0.png: ")


# What is held out.


def names(data, split):
    return [data.name(split, row) for row in range(data.sizes[split])]


def test_a_share_of_the_training_images_is_held_out_once_for_all(tmp_path):
    source = animals(tmp_path / "zoo", (17, 11, 13))
    data = read(tmp_path, source, valid=[], held_out=0.2, seed=3)
    assert data.sizes == {"train": 33, "valid": 8}
    every = [str(path) for path in (tmp_path / "zoo").rglob("*.png")]
    assert sorted(names(data, "train") + names(data, "valid")) == sorted(every)
    assert {Path(name).parent.name for name in names(data, "valid")} == set(ANIMALS)
    assert [Path(data.name("valid", row)).parent.name for row in range(8)] == [
        data.classes[label] for label in data.labels("valid")
    ]
    assert names(read(tmp_path, source, valid=[], held_out=0.2, seed=4), "valid") != names(data, "valid")
    program = (
        "from pathlib import Path\n"
        "from tasks.image_classification.data import Images, ImageSource, LabelledImages\n"
        f"config = Images(train=[{source!r}], held_out=0.2, seed=3)\n"
        f"data = LabelledImages(config, Path({str(tmp_path / 'run')!r}))\n"
        "print([data.name('valid', row) for row in range(data.sizes['valid'])])"
    )
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(names(data, "valid"))


def test_what_is_held_out_does_not_depend_on_what_is_unreadable(tmp_path, damaged):
    whole, rest = (read(tmp_path, damaged, valid=[], held_out=0.4, corrupt=corrupt) for corrupt in ("stop", "skip"))
    bad = {f"{tmp_path}/zoo/{name}.png" for name in ("cat/1", "dog/0", "eel/3")}
    for split in ("train", "valid"):
        assert names(rest, split) == [name for name in names(whole, split) if name not in bad]


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_held_out_in_proportion_and_trained_on(tmp_path, seed):
    counts = {"few": 5, "many": 100, "one": 1, "some": 20}
    source = animals(tmp_path / "zoo", tuple(counts.values()), tuple(counts))
    data = read(tmp_path, source, valid=[], held_out=0.25, seed=seed)
    held, trained = (np.bincount(data.labels(split), minlength=4) for split in ("valid", "train"))
    assert (held + trained).tolist() == list(counts.values()) and held.sum() == round(0.25 * 126)
    assert trained.min() == 1 and (np.abs(held - 0.25 * (held + trained)) < 2).all()


def test_too_few_images_to_hold_some_out_are_refused(tmp_path):
    source = animals(tmp_path / "zoo", (1,), ("cat",))
    assert "held_out=0.1 of 1 training images" in refusal(tmp_path, source, valid=[])


def test_what_is_there_is_shown(tmp_path):
    data = read(tmp_path, animals(tmp_path / "zoo"), valid=[ImageSource(folder=str(tmp_path / "zoo"))])
    console = Console(width=100, file=StringIO())
    console.print(data.table())
    shown = " ".join(console.file.getvalue().replace("│", " ").split())
    assert "train 9 3 dog (2) eel (4)" in shown and "3 classes: cat, dog, eel" in shown


def test_splits_are_not_taken_for_classes(tmp_path):
    source = animals(tmp_path / "zoo", (1, 1), ("train", "val"))
    message = refusal(tmp_path, source)
    assert f"{tmp_path}/zoo: its folders are called train, val, which are no classes" in message
    animals(tmp_path / "zoo", (1,), ("bus",))
    assert read(tmp_path, source).classes == ["bus", "train", "val"]


# The embedded digits.


def test_the_embedded_digits_are_split_once_for_all(tmp_path):
    from sklearn.datasets import load_digits

    data, other = (LabelledImages(Images(channels=1, seed=seed), tmp_path) for seed in (1, 2))
    assert data.sizes == {"train": 1297, "valid": 200, "test": 300}
    assert data.classes == list("0123456789")
    rows = {split: [int(name.split()[-1]) - 1 for name in names(data, split)] for split in data.sizes}
    assert rows == {split: [int(name.split()[-1]) - 1 for name in names(other, split)] for split in other.sizes}
    assert sorted(rows["train"] + rows["valid"] + rows["test"]) == list(range(1797))
    images, labels = load_digits(return_X_y=True)
    for split, chosen in rows.items():
        assert data.labels(split).tolist() == labels[chosen].tolist()
        assert set(data.labels(split)) == set(range(10))
        for row in (0, 9):
            image = data.image(split, row)[0].flatten().tolist()
            assert image == [(255 * int(light) + 8) // 16 for light in images[chosen[row]]]


def test_a_digit_is_scaled_to_full_light_and_repeated_over_the_channels(tmp_path):
    data = LabelledImages(Images(), tmp_path)
    row = next(row for row in range(1297) if data.name("train", row) == "handwritten digits row 2")
    # The second digit of scikit-learn, a one; its first line reads 0 0 0 12 13 5 0 0.
    assert data.label("train", row) == 1
    image = data.image("train", row)
    assert image.shape == (3, 8, 8)
    assert image[:, 0].tolist() == [[0, 0, 0, 191, 207, 80, 0, 0]] * 3
    assert int(image.max()) == 255


# Other processes.


def test_a_copy_in_another_process_reads_the_same(tmp_path):
    data = read(tmp_path, parquet(tmp_path / "a.parquet", ["cat", "dog"]), animals(tmp_path / "zoo"))
    copy = pickle.loads(pickle.dumps(data))
    assert content(copy) == content(data)
    loader = torch.utils.data.DataLoader(Rows(data), batch_size=None, num_workers=1)
    assert [int(image[0, 0, 0]) for image in loader] == [shade for shade, _ in content(data)]


class Rows(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return self.data.sizes["train"]

    def __getitem__(self, row):
        return self.data.image("train", row)


# What is refused.


def test_a_missing_folder_or_file_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere}: no such folder" in refusal(tmp_path, ImageSource(folder=str(nowhere)))
    assert f"{nowhere}.parquet: no such file" in refusal(tmp_path, ImageSource(table=f"{nowhere}.parquet"))
    message = refusal(tmp_path, ImageSource(dataset=str(nowhere)))
    assert message.startswith(f"dataset {nowhere} train: cannot be loaded (")


def test_a_folder_without_classes_or_a_class_without_images_is_refused(tmp_path):
    folder = tmp_path / "zoo"
    save(folder / "1.png", 1)
    assert f"{folder}: no folders in it" in refusal(tmp_path, ImageSource(folder=str(folder)))
    save(folder / "cat" / "1.png", 1)
    (folder / "dog" / "deep").mkdir(parents=True)
    (folder / "dog" / "deep" / "notes.txt").write_text("no image")
    message = refusal(tmp_path, ImageSource(folder=str(folder)))
    assert f"{folder}/dog: no images of this class" in message and ".jpg" in message


def test_a_missing_column_is_refused_with_those_there_are(tmp_path):
    parquet(tmp_path / "a.parquet", ["cat"])
    for column in ("image_column", "label_column"):
        message = refusal(tmp_path, ImageSource(table=str(tmp_path / "a.parquet"), **{column: "img"}))
        assert message == f"{tmp_path}/a.parquet: no column img; there are image, label: choose {column} among them."


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": [1, 2]}, "column image holds int64, neither encoded images nor paths"),
        ({"image": [[[0, 1]], [[2, 3]]]}, "column image holds list<"),
        ({"image": [{"bytes": b"", "width": 7}] * 2}, "column image holds struct<"),
        ({"label": [1.0, 2.0]}, "column label holds double, neither names nor whole numbers of classes"),
        ({"label": [True, False]}, "column label holds bool, neither"),
        ({"label": ["cat", None]}, "column label has no value in row 2: fill it or take the row out"),
        ({"label": [0, None]}, "column label has no value in row 2"),
        ({"label": [0, -1]}, "column label holds -1 in row 2, and labels are 0 or more"),
    ],
)
def test_columns_of_other_things_are_refused(tmp_path, columns, reason):
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": [0, 1]} | columns), tmp_path / "a.parquet")
    message = refusal(tmp_path, ImageSource(table=str(tmp_path / "a.parquet")))
    assert message.startswith(f"{tmp_path}/a.parquet: {reason}")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_beyond_the_names_is_refused(tmp_path, label):
    parquet(tmp_path / "a.parquet", [0, 2, 1], ANIMALS)
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array([0, 2, label])), tmp_path / "a.parquet")
    message = refusal(tmp_path, ImageSource(table=str(tmp_path / "a.parquet")))
    assert f"a.parquet: column label holds {label} in row 3, and labels are 0 to 2" in message


def test_a_table_without_rows_and_a_damaged_one_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}), path)
    assert f"{path}: " in refusal(tmp_path, ImageSource(table=str(path)))
    path.write_bytes(b"PAR1 and no more")
    assert f"{path}: cannot be read (" in refusal(tmp_path, ImageSource(table=str(path)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "given: none"),
        ({"folder": "a", "table": "b.parquet"}, "given: folder, table"),
        ({"table": "b.csv"}, "table=b.csv"),
        ({"folder": "a", "subset": "b"}, "subset=b"),
        ({"table": "b.parquet", "split": "test"}, "split=test"),
        ({"dataset": "a", "image_column": "x", "label_column": "x"}, "both x"),
    ],
)
def test_a_source_that_says_too_little_or_too_much_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        ImageSource(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"valid": [ImageSource(folder="a")]}, "--data.train"),
        ({"test": [ImageSource(folder="a")]}, "--data.train"),
        ({"held_out": 0.0}, "held_out=0.0"),
        ({"folder": "photos"}, "folder=photos is given, and no images in it"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"held_out": float("nan")}, "held_out=nan"),
        ({"max_pixels": 0}, "max_pixels=0"),
        ({"channels": 2}, "channels=2"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        Images(**fields)
