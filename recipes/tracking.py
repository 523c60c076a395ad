"""What a run says of itself: a progress bar, lines to read, `metrics.jsonl`, TensorBoard."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker
from rich.console import Console
from tqdm import tqdm

from recipes.config import mute
from tasks.writing import whole


class JsonLines(GeneralTracker):
    """A tracker of accelerate that appends one JSON object a line; a resumed run forgets what it will do again."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, resumed_at: int) -> None:
        super().__init__()
        kept = [line for line in _lines(path) if _step(line) <= resumed_at]
        with whole(path) as aside:
            aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", buffering=1)

    @property
    def tracker(self) -> Any:
        """Return the open file."""
        return self.file

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The configuration has a file of its own, `recipe.yaml`."""

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append one line."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def finish(self) -> None:
        """Close the file."""
        self.file.close()


def _step(line: str) -> float:
    """Return the update that a line is of; infinity where the line is broken, as a power cut may leave it."""
    try:
        return json.loads(line)["step"]
    except (ValueError, LookupError, TypeError):
        return math.inf


class Display:
    """The progress bar and the lines above it, on the main process; silent on the others."""

    def __init__(self, *, steps: int, done: int, main: bool) -> None:
        # A bar is for people: in a log file it would be a thousand lines.
        self.bar = tqdm(total=steps, initial=done, unit="update", disable=not (main and sys.stderr.isatty()))
        self.main = main

    def step(self) -> None:
        """Move on by one update."""
        self.bar.update()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Show the metrics of training beside the bar, or as a line where there is no bar."""
        shown = {name.removeprefix("train/"): number(value) for name, value in values.items()}
        if self.bar.disable:
            self.line(f"update {step}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))
        else:
            self.bar.set_postfix(shown)

    def line(self, text: str) -> None:
        """Print a line to keep."""
        if self.main:
            try:
                tqdm.write(text, file=sys.stderr)
            except BrokenPipeError:
                mute()

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def number(value: float) -> str:
    """Write a metric with the digits that matter."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 0.01:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class _Lasting(Console):
    """A console that goes on where nobody reads any more."""

    def on_broken_pipe(self) -> None:
        mute()


def console() -> Console:
    """Return where tables go; names in brackets, of classes say, are names."""
    return _Lasting(stderr=True, markup=False)


def _lines(path: Path) -> list[str]:
    """Read the whole lines of a file; a kill may have left half of one, and a power cut anything."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()
