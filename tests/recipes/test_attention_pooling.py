import re
from pathlib import Path

import pytest

from recipes import attention_pooling
from recipes.config import read
from tasks.errors import InputError

TUTORIAL = Path(__file__).parents[2] / "docs" / "attention_pooling.md"


def test_the_errors_of_the_tutorial_are_those_of_its_command(tmp_path, capsys):
    attention_pooling.main(attention_pooling.Recipe(output=str(tmp_path / "fits.png")))
    assert (tmp_path / "fits.png").read_bytes().startswith(b"\x89PNG")
    shown, text = capsys.readouterr().err, TUTORIAL.read_text(encoding="utf-8")
    for name in ("average", "fixed", "learned"):
        told = re.search(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)[1].replace("∞", "inf")
        printed = re.search(rf"│ {name}\s*│(.*)│", shown)[1]
        assert [float(x) for x in told.split("|")] == pytest.approx([float(x) for x in printed.split("│")], abs=2e-3)


def test_the_example_of_the_tutorial_learns_a_narrower_kernel():
    (code,) = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert 0.05 < names["learned"].width < 0.6


def test_one_point_is_refused():
    with pytest.raises(InputError, match="--points 1: a point is predicted from the others"):
        read(attention_pooling.Recipe, ["--points", "1"])
