"""Run the short set of benchmarks and write the section on speed of benchmarks/RESULTS.md.

    python -m benchmarks
    python -m benchmarks --run runs/multi30k --input test_2016_flickr.en.gz
    python -m benchmarks --programs '[]'     # write the section from what was measured before

No data are needed: translation trains on the embedded corpus, images are noise. Only translation with a trained run
needs that run and a text. The section holds the tables of all results in the folder, also those of longer runs
of one program.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import recipes
from benchmarks import attention, decoding, forward_images, growth, tables, training_images, training_text
from benchmarks.duel import DuelConfig
from recipes.config import launch, read
from tasks.errors import InputError

Program = Literal["training_text", "training_images", "forward_images", "attention", "decoding", "growth"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure speed beside the peers."""

    programs: list[Program] = field(
        default_factory=lambda: ["training_text", "training_images", "forward_images", "attention"]
    )
    """What to run; `decoding` also runs where a run is given."""
    run: str | None = None
    """Run folder of train_translation to translate with."""
    input: str | None = None
    """File of sentences to translate, one a line."""
    duel: DuelConfig = field(default_factory=lambda: DuelConfig(rounds=4, warmup=1))


def main(recipe: Recipe) -> None:
    """Run one program after the other; each keeps its table, and all tables make the section."""
    programs = [*recipe.programs, *(["decoding"] if recipe.run and "decoding" not in recipe.programs else [])]
    for program in programs:
        start(program, recipe)
    tables.write_section(recipe.duel.out)


def start(program: str, recipe: Recipe) -> None:
    """Run a program with all shapes that it takes little time for."""
    match program:
        case "training_text":
            data = Path(recipes.__file__ or "").with_name("embedded_en_de.yaml")
            duel = replace(recipe.duel, steps=6, warmup=6)
            training_text.main(replace(read(training_text.Recipe, [f"--config={data}"]), duel=duel))
        case "training_images":
            training_images.main(training_images.Recipe(shape="tiny", duel=recipe.duel))
            training_images.main(training_images.Recipe(shape="small_images", duel=recipe.duel))
        case "forward_images":
            forward_images.main(forward_images.Recipe(shape="tiny", duel=replace(recipe.duel, steps=5)))
        case "attention":
            attention.main(attention.Recipe(duel=recipe.duel))
        case "growth":
            growth.main(growth.Recipe(out=recipe.duel.out))
        case _:
            if recipe.run is None or recipe.input is None:
                raise InputError("translation needs a trained run and a text: give --run and --input.")
            decoding.main(decoding.Recipe(run=recipe.run, input=recipe.input, duel=replace(recipe.duel, warmup=0)))


if __name__ == "__main__":
    launch(Recipe, main)
