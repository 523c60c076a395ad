"""The table of docs/mechanisms.md names classes and tests that exist, and leaves out no score and no position."""

import ast
import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

import transformer_core
from transformer_core import PositionBias, Rotary, Score, make_score
from transformer_core.position import PositionName
from transformer_core.score import ScoreName

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "mechanisms.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|") and "`" in line]
POSITIONS = {"sinusoidal": "Sinusoidal", "learned": "Learned", "rotary": "Rotary", "relative": "RelativeBias"}


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def exists(test: str) -> bool:
    path, _, name = test.partition("::")
    file = TESTS / path
    return file.is_file() and name in {
        part.name for part in ast.parse(file.read_text()).body if isinstance(part, ast.FunctionDef)
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_what_the_table_names_exists(row):
    _, implementations, tests, against = row
    assert quoted(implementations) and quoted(tests) and against.strip()
    for name in quoted(implementations):
        module, _, thing = name.rpartition(".")
        assert hasattr(importlib.import_module(module), thing), name
    for test in quoted(tests):
        assert exists(test), test


def test_a_test_that_is_not_there_is_found():
    assert exists("tasks/test_mechanisms.py::test_a_test_that_is_not_there_is_found")
    assert not exists("tasks/test_mechanisms.py::test_nobody_wrote") and not exists("tasks/no_file.py::test_x")


def test_the_table_leaves_out_no_score_and_no_position():
    named = {name.rpartition(".")[2] for row in ROWS for name in quoted(row[1])}
    public = [getattr(transformer_core, name) for name in transformer_core.__all__]
    compared = (Score, Rotary, PositionBias)
    wanted = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, compared)}
    wanted |= {type(make_score(name, 4)).__name__ for name in get_args(ScoreName)}
    wanted |= {POSITIONS[name] for name in get_args(PositionName) if name != "none"}
    wanted |= {name for name in transformer_core.__all__ if name.endswith(("Attention", "Pooling"))}
    assert wanted - {"PositionBias"} <= named
