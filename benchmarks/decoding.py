"""Sentences a second of translation, the same trained weights in every tool: greedy search and beam search.

    python -m benchmarks.decoding --run runs/multi30k --input test_2016_flickr.en.gz
    python -m benchmarks.decoding --run runs/multi30k --input test_2016_flickr.en.gz --beams '[5]' --duel.rounds 3

The run is one of train_translation with sinusoidal positions and one matrix for all embeddings. "2 x 1" are two workers
of one thread, "1 x 2" one of two. The last column says how many sentences are translated exactly as we do in float32.
What the tools are told, and where their searches differ, is said in benchmarks/peers/translate.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.duel import DuelConfig, duel
from benchmarks.peers.translate import DecodingWork, ctranslate2, ours, transformers
from benchmarks.result import Result
from benchmarks.tables import publish
from benchmarks.worker import LEAGUES, Contender, Setting, Step
from recipes.config import launch, recipe_of
from recipes.runs import load
from recipes.train_translation import Recipe as Translation
from tasks.errors import InputError
from tasks.translation.files import read_lines
from transformer_core.packing import Precision


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Measure translation with a trained run."""

    run: str
    """Run folder of train_translation."""
    input: str
    """File of sentences, one a line, plain or .gz."""
    beams: list[int] = field(default_factory=lambda: [1, 5])
    """Beams of each comparison; 1 is greedy search."""
    sentences: int = 0
    """Translate only so many, spread over the file; 0: all."""
    duel: DuelConfig = field(default_factory=lambda: DuelConfig(rounds=4, warmup=0))


def main(recipe: Recipe) -> None:
    """Let all translate, once for each number of beams."""
    model = recipe_of(Translation, recipe.run).model
    if model.tie != "all" or model.block.position != "sinusoidal" or model.block.score != "scaled_dot":
        raise InputError(f"{recipe.run}: the peers know tie=all, position=sinusoidal and score=scaled_dot only.")
    translator = load(recipe.run)
    if translator.search.length_penalty == "gnmt":
        raise InputError(f"{recipe.run}: the peers divide by length^alpha, not as search.length_penalty=gnmt does.")
    lines = [line for line in read_lines(Path(recipe.input)) if line.strip()]
    pieces = translator.source.encode_all(lines[:: max(1, len(lines) // (recipe.sentences or len(lines)))])
    for beams in recipe.beams:
        search = replace(translator.search, beams=beams, n_best=1, stop="first_k")
        work = DecodingWork(recipe.run, [ids[: translator.max_length] for ids in pieces], search)
        title = f"Translation, {'greedy' if beams == 1 else f'beam {beams}'}, {len(pieces)} sentences"
        on_gpu = torch.cuda.is_available()
        taking_part = contenders_on_gpu(work) if on_gpu else contenders(work)
        result = duel(title, "sentences", taking_part, recipe.duel, flops=False, on_gpu=on_gpu)
        compare(result)
        publish(result, recipe.duel.out, f"decoding_{beams}")


def contenders(work: DecodingWork) -> list[Contender]:
    """Name all tools with their precisions and workers. CTranslate2 out of the box is its float32, one worker."""
    cores = torch.get_num_threads()
    found = [
        tool("transformers", "plain", LEAGUES["plain"], work),
        tool("transformer_core", "plain", LEAGUES["plain"], work, "fp32", 0),
    ]
    for label, setting, precision in PRECISIONS:
        for workers, threads in dict.fromkeys(((1, cores), (cores, 1))):
            league = f"{label}, {workers} x {threads}"
            found.append(tool("transformer_core", setting, league, work, precision, workers))
            if label != "bf16":
                found.append(tool("CTranslate2", setting, league, work, label, workers, threads))
            if label != "int8" and workers == 1:
                found.append(tool("transformers", setting, league, work))
    return found


def contenders_on_gpu(work: DecodingWork) -> list[Contender]:
    """Name those that translate on a GPU: ours, and `generate` with a cache that grows and with a static one."""
    found: list[Contender] = []
    for label, setting, precision in PRECISIONS[:2]:
        found.append(tool("transformer_core", setting, label, work, precision, 1))
        found.append(tool("transformers", setting, label, work))
        found.append(replace(tool("transformers", setting, label, work, "static"), name="transformers, static cache"))
    return found


def tool(name: str, setting: Setting, league: str, *arguments: Any) -> Contender:
    """Name a tool; `arguments` are those of its function."""
    make, needs = TOOLS[name]
    return Contender(
        name=name, needs=needs, make=make, arguments=arguments, setting=setting, ours=make is ours, league=league
    )


def compare(result: Result) -> None:
    """Say of each how many sentences it translates exactly as we do in float32."""
    mine = [entry for entry in result.entries if entry.ours and entry.league.startswith(("float32", LEAGUES["plain"]))]
    if not mine:
        return
    result.remarks = "same as ours"
    for entry in result.entries:
        same = [one == other for one, other in zip(entry.output, mine[-1].output, strict=True)]
        entry.remark = f"{sum(same) / len(same):.1%}"


TOOLS: dict[str, tuple[Callable[..., Step], str]] = {
    "transformer_core": (ours, ""),
    "transformers": (transformers, "transformers"),
    "CTranslate2": (ctranslate2, "ctranslate2"),
}
"""What makes each, and the package it needs."""
PRECISIONS: list[tuple[str, Setting, Precision]] = [
    ("float32", "knobs", "fp32"),
    ("bf16", "bf16", "bf16"),
    ("int8", "knobs", "int8"),
]
"""What the tables and CTranslate2 call each, how a process is set up for it, and what we call it."""


if __name__ == "__main__":
    launch(Recipe, main)
