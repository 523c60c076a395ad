"""Saying what is in images: one line each, in the order of their paths, with what the run folder holds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes import classify
from recipes.checkpoint import write_tensors
from recipes.config import launch, recipe_of, write_config
from recipes.image_runs import Recipe, load
from tasks.errors import InputError
from tasks.image_classification.data import Images
from tasks.image_classification.model import ImageModelConfig, build_model
from tasks.image_classification.vit import VitConfig
from transformer_core import BlockConfig

CLASSES = ["blue", "grün", "red hot"]
PATHS = ["a.png", "b/10.JPG", "b/c/deep.png", "b/9.png", "z.gif"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with a model of random weights."""
    folder = tmp_path_factory.mktemp("run")
    block = BlockConfig(dim=16, num_heads=2, hidden_dim=24, position="learned", order="pre", dropout=0.3)
    config = ImageModelConfig(image_size=(8, 12), block=block, vit=VitConfig(depth=2, patch_size=(4, 4)))
    torch.manual_seed(3)
    model = build_model(config, len(CLASSES), channels=3)
    torch.nn.init.normal_(model.head.weight)
    write_config(Recipe(model=config, data=Images(batch=3)), folder / "recipe.yaml")
    (folder / "classes.json").write_text(json.dumps(CLASSES), encoding="utf-8")
    write_tensors(folder / "model.safetensors", model.state_dict())
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images at several depths, and files that are none."""
    folder, generator = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(5)
    for number, path in enumerate(PATHS):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8 + 3 * number, 12 + number, 3), generator=generator)
        Image.fromarray(pixels.byte().numpy()).save(folder / path)
    (folder / "b" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def say(capfd):
    """Run the program and return what it writes, line by line."""

    def say(*arguments: str | Path) -> list[str]:
        capfd.readouterr()
        launch(classify.Recipe, classify.main, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines()

    return say


@pytest.fixture
def refusal(capfd):
    """Return the one line that the program leaves with."""

    def refusal(*arguments: str | Path) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            launch(classify.Recipe, classify.main, [str(argument) for argument in arguments])
        err = capfd.readouterr().err
        assert left.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
        return err

    return refusal


def test_an_image_gets_a_line_with_its_likeliest_class(run, photos, say):
    path = photos / "a.png"
    (best,) = load(run)(path, top=1)
    assert say(run, path) == [f"{path}\t{best.name} {100 * best.probability:.1f}%"]


def test_the_images_of_a_folder_come_at_any_depth_in_the_order_of_their_paths(run, photos, say):
    (photos / ".hidden.png").write_bytes(b"")
    lines = [line.split("\t")[0] for line in say(run, photos)]
    (photos / ".hidden.png").unlink()
    assert lines == [str(photos / path) for path in ("a.png", "b/10.JPG", "b/9.png", "b/c/deep.png", "z.gif")]


def test_more_images_than_a_batch_keep_their_guesses(run, photos, say, monkeypatch):
    together = say(run, photos)
    assert together == [line for path in sorted(PATHS) for line in say(run, photos / path)]
    original = classify.load

    def in_twos(*arguments, **options):
        classifier = original(*arguments, **options)
        classifier.size = 2
        return classifier

    monkeypatch.setattr(classify, "load", in_twos)
    assert say(run, photos) == together and len(set(together)) == 5


@pytest.mark.parametrize("top", [1, 2, 3, 9])
def test_top_says_how_many_classes_are_named_the_likeliest_first(run, photos, say, top):
    classifier = load(run)
    (line,) = say(run, photos / "z.gif", "--top", str(top))
    probabilities = classifier.probabilities(classifier.prepare(photos / "z.gif")[None])[0]
    order = probabilities.argsort(descending=True).tolist()[:top]
    assert line.split("\t")[1:] == [f"{CLASSES[place]} {probabilities[place]:.1%}" for place in order]
    assert len(order) == min(top, 3)


def test_json_has_an_object_for_each_image(run, photos, say):
    lines = say(run, photos, "--json", "true", "--top", "3")
    assert any("grün" in line for line in lines)
    objects = [json.loads(line) for line in lines]
    assert [Path(each["image"]).relative_to(photos).as_posix() for each in objects] == sorted(PATHS)
    for each in objects:
        guesses = load(run)(each["image"], top=3)
        assert [found["class"] for found in each["classes"]] == [guess.name for guess in guesses]
        assert [found["probability"] for found in each["classes"]] == [
            pytest.approx(guess.probability, abs=1e-6) for guess in guesses
        ]
        assert sum(found["probability"] for found in each["classes"]) == pytest.approx(1, abs=1e-5)


def test_other_weights_may_be_named(run, photos, say, tmp_path):
    recipe = classify.Recipe(run=str(run), images=[str(photos)])
    model = load(recipe.run).model
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    write_tensors(tmp_path / "other.safetensors", model.state_dict())
    said = say(run, photos, "--weights", tmp_path / "other.safetensors")
    assert all(line.endswith(" 33.3%") for line in said) and said != say(run, photos)


def test_an_image_in_memory_is_classified_as_one_of_a_file(run, photos):
    classifier = load(run)
    pixels = torch.tensor(list(Image.open(photos / "a.png").tobytes()), dtype=torch.uint8).view(8, 12, 3)
    assert classifier(pixels.permute(2, 0, 1)) == classifier(photos / "a.png")


def test_a_damaged_image_is_named(run, photos, refusal, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    path = folder / "b" / "9.png"
    path.write_bytes(path.read_bytes()[:60])
    for images in (path, folder):
        assert f"{path}: cannot be decoded" in refusal(run, images)
    path.write_bytes(b"")
    assert f"{path}: no image of a known kind" in refusal(run, path)


def test_an_image_of_more_pixels_than_the_run_admits_is_refused(run, photos, say, refusal, tmp_path):
    folder, recipe = shutil.copytree(run, tmp_path / "run"), recipe_of(Recipe, run)
    write_config(replace(recipe, data=replace(recipe.data, max_pixels=8 * 12)), folder / "recipe.yaml")
    assert say(folder, photos / "a.png") == say(run, photos / "a.png")
    assert f"{photos / 'z.gif'}: more pixels than max_pixels=96" in refusal(folder, photos / "z.gif")


def test_damaged_images_may_be_left_out_and_several_paths_given(run, photos, say, capfd, tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"no image")
    whole = [photos / "a.png", photos / "z.gif"]
    expected = [line for path in whole for line in say(run, path)]
    arguments = [run, whole[0], tmp_path, whole[1], "--corrupt", "skip"]
    launch(classify.Recipe, classify.main, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert out.splitlines() == expected
    assert [line.partition(": no image")[0] for line in err.splitlines()] == [
        f"left out: {tmp_path}/{name}" for name in ("1.png", "2.png")
    ]


def test_an_image_named_twice_is_classified_twice(run, photos, say):
    one, other = photos / "a.png", photos / "z.gif"
    said = say(run, one, one, other)
    assert [line.split("\t")[0] for line in said] == [str(one), str(one), str(other)] and said[0] == said[1]


def test_what_is_not_there_is_named(run, photos, refusal, tmp_path):
    assert f"{tmp_path / 'no.png'} does not exist" in refusal(run, tmp_path / "no.png")
    assert f"{tmp_path} holds no images" in refusal(run, tmp_path)
    assert f"{tmp_path / 'run'} is no run folder" in refusal(tmp_path / "run", photos)
    assert "--top 0 names no class" in refusal(run, photos, "--top", "0")


@pytest.mark.parametrize(
    ("name", "reason"), [("model.safetensors", "the run has not ended"), ("classes.json", "cannot be read")]
)
def test_a_run_that_lacks_a_file_is_refused(run, photos, refusal, tmp_path, name, reason):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / name).unlink()
    message = refusal(folder, photos)
    assert str(folder / name) in message and reason in message


def test_weights_of_another_model_are_refused(run, photos, refusal, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "classes.json").write_text('["blue", "red hot"]')
    assert "head.weight is (3, 16) float32, the model has (2, 16) float32" in refusal(folder, photos)
    assert "recipe.yaml" in refusal(run, photos, "--weights", run / "recipe.yaml")
    with pytest.raises(InputError, match="does not exist"):
        load(run, weights=tmp_path / "none.safetensors")
