"""Translate with a trained run: one sentence, a file, a pipe, or what is typed.

    python -m recipes.translate runs/demo --text "The meeting is on March 3, 2027 at 4:30 PM."
    python -m recipes.translate runs/demo --input talks.en.gz --output talks.de
    python -m recipes.translate runs/demo < talks.en > talks.de
    python -m recipes.translate runs/demo            # interactive, in a terminal

Line n of the output translates line n of the input. `--json true` writes an object a line instead, with the n best
translations and their scores.
"""

import gzip
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TextIO, cast

from recipes import train_translation
from recipes.config import launch, recipe_of
from recipes.processes import use_machine
from recipes.runs import load
from tasks.errors import InputError
from tasks.progress import shown
from tasks.translation.evaluate import check_aligned
from tasks.translation.files import decoded, read_lines
from tasks.writing import whole
from transformer_core.packing import Precision
from transformer_core.search import SearchConfig

LINES_AT_ONCE = 2_000

Group = tuple[Sequence[str], Sequence[str] | None]
"""Sentences, and the words that their translations must begin with."""


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
    """File to write, plain or .gz, which is there once it is whole; without it, standard output."""
    prefixes: str | None = None
    """File of the words that each translation must begin with; line n belongs to line n of the input."""
    weights: list[str] = field(default_factory=list)
    """Other weights than the final ones: .safetensors files or checkpoint folders; several make an ensemble."""
    json: bool = False
    """Write one JSON object a line, with all n best translations and their scores."""
    precision: Precision = "fp32"
    """Of the matrix products: bf16 is quicker where the processor or GPU has it, int8 on most CPUs; both round."""
    workers: int = 0
    """Processes that translate their own sentences on a CPU, one core each; 0: one a core."""
    shortlist: bool = False
    """Consider only the target pieces that `python -m recipes.make_shortlist RUN` has found likely: quicker."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How translations are searched for; what is not given is as the run was scored with."""


def main(recipe: Recipe) -> None:
    """Translate whatever was given."""
    if recipe.text is not None and recipe.input is not None:
        raise InputError("--text and --input are both given: choose one.")
    if recipe.prefixes is not None and recipe.input is None:
        raise InputError("--prefixes needs --input, whose lines they belong to.")
    if recipe.search.n_best > 1 and not recipe.json:
        raise InputError(f"--search.n_best {recipe.search.n_best} needs --json: a line of text holds one translation.")
    groups = given(recipe)
    use_machine(0)
    translator = load(
        recipe.run,
        weights=recipe.weights,
        search=recipe.search,
        precision=recipe.precision,
        workers=recipe.workers,
        shortlist=recipe.shortlist,
    )
    with opened(recipe.output) as output:
        # A bar would come between lines that are printed.
        for lines, prefixes in groups if recipe.output is None else shown(groups, "lines", size=LINES_AT_ONCE):
            for source, found in zip(lines, translator.n_best(lines, prefixes, scores=recipe.json), strict=True):
                if recipe.json:
                    record = {"source": source, "translations": [translated._asdict() for translated in found]}
                    print(json.dumps(record, ensure_ascii=False), file=output)
                else:
                    # A model can spell a line break by its byte, and line n must stay line n.
                    print(found[0].text.replace("\n", " "), file=output)
            output.flush()


def given(recipe: Recipe) -> Iterable[Group]:
    """Return what is to be translated, in groups; files are read at once, so that mistakes come before any output."""
    if recipe.text is not None:
        return [([recipe.text], None)]
    if recipe.input is None:
        return ((lines, None) for lines in asked(sys.stdin))
    lines = read_lines(Path(recipe.input))
    prefixes = read_lines(Path(recipe.prefixes)) if recipe.prefixes is not None else None
    if prefixes is not None:
        check_aligned({str(recipe.prefixes): prefixes, recipe.input: lines})
    chunks = [slice(begin, begin + LINES_AT_ONCE) for begin in range(0, len(lines), LINES_AT_ONCE)]
    return [(lines[chunk], None if prefixes is None else prefixes[chunk]) for chunk in chunks]


def asked(stream: TextIO) -> Iterator[list[str]]:
    """Yield lines as they are typed in a terminal, in large groups from a pipe."""
    if stream.isatty():
        print("A sentence a line; an empty line or Ctrl-D ends.", file=sys.stderr)
        while line := typed(stream):
            yield [line]
        return
    # As bytes, because only a line feed ends a line, and to name the line where the text is not UTF-8.
    lines = decoded(stream.buffer, "standard input")
    while group := list(islice(lines, LINES_AT_ONCE)):
        yield group


def typed(stream: TextIO) -> str:
    """Ask for a line, on standard error so that standard output holds translations alone."""
    print("> ", end="", file=sys.stderr, flush=True)
    return stream.readline().strip()


@contextmanager
def opened(path: str | None) -> Iterator[TextIO]:
    """Open a file to write, which takes its name once it is whole, or standard output."""
    if path is None:
        try:
            yield sys.stdout
        except BrokenPipeError:  # who reads has seen enough; Python would complain of it once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    place = Path(path)
    write = gzip.open if place.suffix == ".gz" else open
    device = place.exists() and not place.is_file()  # which cannot be renamed into place
    with nullcontext(place) if device else whole(place) as aside:
        try:
            with cast(TextIO, write(aside, "wt", encoding="utf-8")) as file:
                yield file
        except OSError as error:
            raise InputError(f"--output {path}: cannot be written ({error.strerror}): choose another file.") from None


if __name__ == "__main__":
    launch(
        Recipe,
        main,
        defaults=lambda recipe: replace(recipe, search=recipe_of(train_translation.Recipe, recipe.run).search),
    )
