"""Translate with a trained run: one sentence, a file, a pipe, or what is typed.

    python -m recipes.translate runs/demo --text "The meeting is on March 3, 2027 at 4:30 PM."
    python -m recipes.translate runs/demo --input talks.en.gz --output talks.de
    python -m recipes.translate runs/demo < talks.en > talks.de
    python -m recipes.translate runs/demo            # interactive, in a terminal

Line n of the output translates line n of the input. `--json true` writes an object a line instead, with the n best
translations and their scores.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TextIO

from recipes.config import launch
from recipes.processes import use_machine
from recipes.runs import load
from tasks.errors import InputError
from tasks.translation.files import read_lines
from tasks.translation.translator import Translator
from transformer_core.search import SearchConfig

LINES_AT_ONCE = 2_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Translate text with a trained run."""

    run: str
    """Run folder of train_translation."""
    text: str | None = None
    """One sentence to translate, instead of a file."""
    input: str | None = None
    """File of sentences, one a line, plain or .gz; without it and `text`, standard input is read."""
    output: str | None = None
    """File to write; without it, standard output."""
    prefixes: str | None = None
    """File of the words that each translation must begin with; line n belongs to line n of the input."""
    weights: list[str] = field(default_factory=list)
    """Other weights than the final ones: .safetensors files or checkpoint folders; several make an ensemble."""
    json: bool = False
    """Write one JSON object a line, with all n best translations and their scores."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How translations are searched for."""


def main(recipe: Recipe) -> None:
    """Translate whatever was given."""
    if recipe.text is not None and recipe.input is not None:
        raise InputError("--text and --input are both given: choose one.")
    if recipe.prefixes is not None and recipe.input is None:
        raise InputError("--prefixes needs --input, whose lines they belong to.")
    use_machine(0)
    translator = load(recipe.run, weights=recipe.weights, search=recipe.search)
    with ExitStack() as files:
        output = sys.stdout
        if recipe.output is not None:
            output = files.enter_context(open(recipe.output, "w", encoding="utf-8"))
        if recipe.text is not None:
            write(translator, [recipe.text], None, recipe.json, output)
        elif recipe.input is not None:
            lines = read_lines(Path(recipe.input))
            prefixes = read_lines(Path(recipe.prefixes)) if recipe.prefixes is not None else None
            if prefixes is not None and len(prefixes) != len(lines):
                raise InputError(
                    f"{recipe.prefixes} has {len(prefixes)} lines and {recipe.input} {len(lines)}: give as many."
                )
            write(translator, lines, prefixes, recipe.json, output)
        else:
            for lines in asked(sys.stdin):
                write(translator, lines, None, recipe.json, output)


def asked(stream: TextIO) -> Iterator[list[str]]:
    """Yield lines as they are typed in a terminal, in large groups from a pipe."""
    if stream.isatty():
        print("A sentence a line; an empty line or Ctrl-D ends.", file=sys.stderr)
        while line := input("> ").strip() if not stream.closed else "":
            yield [line]
        return
    while lines := [line.removesuffix("\n").removesuffix("\r") for line in islice(stream, LINES_AT_ONCE)]:
        yield lines


def write(translator: Translator, lines: list[str], prefixes: list[str] | None, as_json: bool, output: TextIO) -> None:
    """Translate lines and write them in their order."""
    for begin in range(0, len(lines), LINES_AT_ONCE):
        chunk = slice(begin, begin + LINES_AT_ONCE)
        forced = None if prefixes is None else prefixes[chunk]
        for source, found in zip(lines[chunk], translator.n_best(lines[chunk], forced), strict=True):
            if as_json:
                record = {"source": source, "translations": [translated._asdict() for translated in found]}
                print(json.dumps(record, ensure_ascii=False), file=output)
            else:
                print(found[0].text, file=output)
        output.flush()


if __name__ == "__main__":
    launch(Recipe, main)
