"""The walk through the third task, run as it is written, and the program that reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import run
from PIL import Image

from recipes import train_recognition
from recipes.config import read, write_config
from recipes.read_text import TextReader
from tasks.decode import file_content, open_image
from tasks.errors import InputError

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/new_task.md").read_text(encoding="utf-8"), re.DOTALL)
QUOTED = [block for block in BLOCKS if block.startswith("# tasks/")]
CODE = "\n".join(block for block in BLOCKS if not block.startswith("# tasks/"))


@pytest.mark.parametrize("block", QUOTED)
def test_what_the_walk_quotes_stands_in_the_file(block):
    place, _, quoted = block.partition("\n")
    assert quoted in (ROOT / place.removeprefix("# ")).read_text(encoding="utf-8")


def test_the_walk_runs_and_its_model_reads(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"cer +│ +[\d.]+", done.stderr) and done.stdout.splitlines()[-1].startswith("['")

    white, picture, trained = tmp_path / "white.png", tmp_path / "read.png", str(tmp_path / "runs/try")
    Image.new("L", (200, 30), 255).save(white)
    read = run("recipes.read_text", [trained, f"--images={white}", f"--output={picture}"], tmp_path / "log")
    assert read.codes == [0] and read.text.startswith(f"{white}\t")
    with Image.open(picture) as drawn:
        assert drawn.width > 100
    white.write_text("no image")
    wrong = run("recipes.read_text", [trained, f"--images={white}"], tmp_path / "log")
    assert wrong.codes == [2] and wrong.text.strip().count("\n") == 0 and "white.png: no image" in wrong.text


def test_a_font_that_is_not_there_is_one_line(tmp_path):
    given = ["--data.fonts=['nowhere.ttf']", f"--train.out={tmp_path / 'run'}"]
    done = run("recipes.train_recognition", given, tmp_path / "log")
    assert done.codes == [2] and "nowhere.ttf: no fonts there" in done.text and "Traceback" not in done.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--data.size=[30,250]", "--data.size [30, 250] cannot be cut into --model.patch_size [32, 4]"),
        ("--data.longest=70", "--search.max_length 64 ends before the 70 characters of --data.longest"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(setting, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(train_recognition.Recipe, [setting])


def test_images_are_read_as_they_are_seen(tmp_path):
    grey = np.full((20, 60), 230, dtype=np.uint8)
    grey[5:15, 10:30] = 20
    image = Image.fromarray(grey)
    image.save(tmp_path / "plain.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    clear = Image.new("RGBA", image.size)
    clear.paste((0, 0, 0, 255), (10, 5, 30, 15))
    clear.save(tmp_path / "clear.png")
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    plain, sixteen, clear, turned = (
        np.asarray(open_image(file_content(tmp_path / f"{name}.png"), channels=1, name=name)).astype(int)
        for name in ("plain", "sixteen", "clear", "turned")
    )
    assert np.abs(plain - grey).max() <= 1 and np.abs(sixteen - grey).max() <= 1 and np.abs(turned - grey).max() <= 1
    assert clear[0, 0] == 255 and clear[10, 20] == 0
    with pytest.raises(InputError, match="nothing.png: no file that can be read"):
        file_content(tmp_path / "nothing.png")


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    write_config(train_recognition.Recipe(), tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="characters.json: cannot be read .* name the folder of a training run"):
        TextReader(tmp_path)


def test_the_fonts_can_write_the_embedded_corpus(tmp_path):
    task = train_recognition.make_task(train_recognition.Recipe())
    task.prepare(tmp_path)
    assert len(task.corpus) > 9000 and set(task.names[4:]) == set("".join(task.corpus))
