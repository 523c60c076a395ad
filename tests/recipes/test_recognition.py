"""The walk through the third task, run as it is written, and the program that reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/new_task.md").read_text(encoding="utf-8"), re.DOTALL)
QUOTED = [block for block in BLOCKS if block.startswith("# tasks/")]
CODE = "\n".join(block for block in BLOCKS if not block.startswith("# tasks/"))


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("block", QUOTED)
def test_what_the_walk_quotes_stands_in_the_file(block):
    place, _, quoted = block.partition("\n")
    assert quoted in (ROOT / place.removeprefix("# ")).read_text(encoding="utf-8")


def test_the_walk_runs_and_its_model_reads(tmp_path):
    done = python(tmp_path, "-c", CODE)
    assert done.returncode == 0, done.stderr
    assert re.search(r"cer +│ +[\d.]+", done.stderr) and done.stdout.splitlines()[-1].startswith("['")
    from PIL import Image

    Image.new("L", (200, 30), 255).save(tmp_path / "white.png")
    read = python(tmp_path, "-m", "recipes.read_text", "runs/try", "white.png", "--output", "read.png")
    assert read.returncode == 0 and read.stdout.startswith("white.png\t")
    assert Image.open(tmp_path / "read.png").width > 100
    (tmp_path / "text.png").write_text("no image")
    wrong = python(tmp_path, "-m", "recipes.read_text", "runs/try", "text.png")
    assert wrong.returncode == 2 and wrong.stderr.strip().count("\n") == 0 and "text.png" in wrong.stderr


def test_a_font_that_is_not_there_is_one_line(tmp_path):
    done = python(tmp_path, "-m", "recipes.train_recognition", "--data.fonts", "['nowhere.ttf']")
    assert done.returncode == 2 and "nowhere.ttf: no fonts there" in done.stderr and "Traceback" not in done.stderr
