"""The walk through the third task, run as it is written, and the program that reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import run
from PIL import Image

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
    assert wrong.codes == [2] and wrong.text.strip().count("\n") == 0 and "white.png is no image" in wrong.text


def test_a_font_that_is_not_there_is_one_line(tmp_path):
    given = ["--data.fonts=['nowhere.ttf']", f"--train.out={tmp_path / 'run'}"]
    done = run("recipes.train_recognition", given, tmp_path / "log")
    assert done.codes == [2] and "nowhere.ttf: no fonts there" in done.text and "Traceback" not in done.text
