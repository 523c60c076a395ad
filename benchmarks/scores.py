"""Every score in every place: one translator and one image classifier with each way to compare queries and keys.

    python -m benchmarks.scores
    python -m benchmarks.scores --translation_steps 20 --image_steps 20 --pairs 2000 --out PATH     # a trial

Each is trained by the real recipe in a process of its own, recipes.train_translation on the embedded corpus and
recipes.train_images on the embedded digits, with `--model.block.score` as the only difference. Quality is that of the
test part; few updates say how quickly a score learns, not what it reaches in the end. Speed is the median over the
intervals between two reports, after the first; the runs come one after the other, so a machine that others use as well
makes it uncertain.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import psutil
import torch

from benchmarks.result import command, machine
from benchmarks.tables import Sheet, keep
from recipes.config import launch
from recipes.tracking import number
from tasks.errors import InputError
from transformer_core.score import ScoreName

PlaceName = Literal["translation", "images"]


@dataclass(frozen=True)
class Place:
    """A recipe that trains a model whose blocks have a score."""

    program: str
    config: str
    unit: str
    """What its speed counts."""
    metric: str
    """Its quality beside the loss, and how the table calls it."""
    title: str


PLACES: dict[PlaceName, Place] = {
    "translation": Place("recipes.train_translation", "recipes/embedded_en_de.yaml", "tokens", "bleu", "BLEU"),
    "images": Place("recipes.train_images", "recipes/embedded_digits.yaml", "images", "top1", "accuracy"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Train with each score in each place; the defaults are made for a quarter of an hour on two cores."""

    scores: list[ScoreName] = field(default_factory=lambda: list(get_args(ScoreName)))
    """What compares queries and keys."""
    places: list[PlaceName] = field(default_factory=lambda: list(PLACES))
    """What is trained."""
    translation_steps: int = 500
    """Updates of each translator."""
    image_steps: int = 600
    """Updates of each image classifier."""
    pairs: int = 20_000
    """Pairs of the embedded corpus to train on; the recipe has 60,000, which take longer to generate."""
    seed: int = 1
    """Weights and dropout, the same for all scores."""
    out: str = "benchmarks/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name in ("translation_steps", "image_steps", "pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: choose 1 or more.")
        for name in ("scores", "places"):
            if not getattr(self, name):
                raise ValueError(f"--{name} names nothing to train: leave it out to have all.")


@dataclass(frozen=True)
class Trained:
    """What was seen of one run."""

    place: PlaceName
    score: ScoreName
    quality: float
    loss: float
    rates: list[float]
    """Units a second, of each interval but the first."""
    peak: int
    """Bytes that the process held at most."""

    @property
    def rate(self) -> float:
        """Units a second, the median of the intervals."""
        return statistics.median(self.rates)


def main(recipe: Recipe) -> None:
    """Train one after the other, and write the table."""
    runs: list[Trained] = []
    with TemporaryDirectory() as folder:
        for place in recipe.places:
            for score in recipe.scores:
                runs.append(train(place, score, recipe, Path(folder, f"{place}_{score}")))
                print(f"{place}, {score}: {number(runs[-1].quality)} {PLACES[place].title}", file=sys.stderr)
    keep(sheet(runs, recipe), recipe.out, "scores", runs=[asdict(run) for run in runs])


def arguments(place: PlaceName, score: ScoreName, recipe: Recipe, folder: Path) -> list[str]:
    """Return the command of one run."""
    steps = recipe.translation_steps if place == "translation" else recipe.image_steps
    settings = {
        "--config": PLACES[place].config,
        "--model.block.score": score,
        "--train.out": folder,
        "--train.steps": steps,
        "--train.warmup": steps // 10,
        "--train.evaluate_every": steps,
        "--train.save_every": steps,
        "--train.log_every": max(1, min(20, steps // 4)),
        "--train.seed": recipe.seed,
        "--train.tensorboard": "false",
        "--expected.metric": "",
    }
    if place == "translation":
        settings["--data.embedded"] = recipe.pairs
    words = [f"{flag}={value}" for flag, value in settings.items()]
    return [sys.executable, "-m", PLACES[place].program, *words]


def train(place: PlaceName, score: ScoreName, recipe: Recipe, folder: Path) -> Trained:
    """Train in a process of its own, and read what it left in its run folder.

    Raises InputError where it fails, with the last line it wrote.
    """
    log = folder.with_suffix(".log")
    with log.open("w", encoding="utf-8") as lines:
        root = Path(__file__).parents[1]
        process = subprocess.Popen(
            arguments(place, score, recipe, folder), stdout=lines, stderr=subprocess.STDOUT, cwd=root
        )
    try:
        peak = watch(process)
    finally:
        process.kill()
    if process.returncode:
        said = log.read_text(encoding="utf-8").strip().splitlines() or ["nothing was said"]
        raise InputError(f"{PLACES[place].program} with score {score} ended with {process.returncode}: {said[-1]}")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line[name] for line in metrics if (name := f"train/{PLACES[place].unit}_per_second") in line]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    test = report["results"][report["chosen"]]["test"]
    return Trained(place, score, test[PLACES[place].metric], test["loss"], rates[1:] or rates, peak)


def watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process to end, and return the bytes that it held at most."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, held(process.pid))
        time.sleep(0.05)
    return peak


def held(pid: int) -> int:
    """Return the bytes that a process has held at most, or, where Linux does not say, that it holds; 0 once it ends."""
    try:
        status = Path(f"/proc/{pid}/status")
        if not status.exists():
            return psutil.Process(pid).memory_info().rss
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    except (psutil.Error, OSError):
        return 0


def sheet(runs: Sequence[Trained], recipe: Recipe) -> Sheet:
    """Lay out the runs, a row for each score; several columns for each place."""
    head = ["score"]
    for place in recipe.places:
        unit, title = PLACES[place].unit, PLACES[place].title
        head += [f"{place}: {title}", "loss", f"{unit}/s", "peak MB"]
    rows: list[list[str]] = []
    for score in recipe.scores:
        row: list[str] = [score]
        for run in (run for place in recipe.places for run in runs if (run.place, run.score) == (place, score)):
            row += [f"{run.quality:.1f}", f"{run.loss:.3f}", f"{run.rate:,.0f}", f"{run.peak / 2**20:,.0f}"]
        rows.append(row)
    facts = machine()
    note = (
        f"`{command()}`. {facts['processor']}, {facts['cores']} cores, load {facts['load']:.1f} at the end, torch "
        f"{torch.__version__}. Test part after {recipe.translation_steps:,} updates of translation and "
        f"{recipe.image_steps:,} of images, one seed."
    )
    return Sheet("Every score in every place", head, rows, [note])


if __name__ == "__main__":
    launch(Recipe, main)
