import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import transformer_core

ROOT = Path(__file__).parents[2]
LAYERS = ["transformer_core", "tasks", "recipes"]
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def imported(source: str, package: str) -> Iterator[str]:
    """Absolute dotted names of everything a file of `package` imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def trespasses(source: str, package: str) -> list[str]:
    """Imports that go right, and imports of one task by another."""
    layer, *inside = package.split(".")
    right = LAYERS[LAYERS.index(layer) + 1 :]
    found = []
    for name in imported(source, package):
        top, *rest = name.split(".")
        stranger = layer == top == "tasks" and (ROOT / "tasks" / rest[0]).is_dir() and rest[0] not in inside[:1]
        if top in right or stranger:
            found.append(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_only_go_left_and_no_task_knows_another(file):
    assert trespasses(file.read_text(), ".".join(file.relative_to(ROOT).parts[:-1])) == []


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import tasks.task", "transformer_core"),
        ("def f():\n    from recipes import loop", "transformer_core"),
        ("from recipes.loop import train", "tasks.translation"),
        ("from tasks import translation", "tasks.image_classification"),
        ("from ..translation import model", "tasks.image_classification"),
        ("from .translation import model", "tasks"),
    ],
)
def test_an_import_to_the_right_is_found(source, package, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name in ("translation", "image_classification"))
    assert trespasses(source, package)


def test_the_core_stands_on_torch_and_jaxtyping_alone():
    for file in (ROOT / "transformer_core").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(file.read_text(), "transformer_core")}
        assert tops - sys.stdlib_module_names <= {"torch", "jaxtyping", "transformer_core"}, file.name


@pytest.mark.parametrize("name", transformer_core.__all__)
def test_a_public_name_is_importable_from_the_package_and_says_what_it_is(name):
    thing = getattr(transformer_core, name)
    assert thing.__doc__
    assert inspect.getmodule(thing).__name__.startswith("transformer_core")


def test_the_list_of_public_names_is_whole():
    bound = {name for name, value in vars(transformer_core).items() if not inspect.ismodule(value)}
    assert sorted(name for name in bound if not name.startswith("_")) == transformer_core.__all__


def test_tests_of_the_core_check_its_annotations():
    with pytest.raises(TypeCheckError, match="valid_lens"):
        transformer_core.padding_mask(torch.ones(2), 4)
