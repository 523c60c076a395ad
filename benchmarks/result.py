"""What a duel found, as numbers: kept as JSON, from which every table is made."""

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import psutil
import torch

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "x-transformers",
    "vit-pytorch",
    "ctranslate2",
    "joeynmt",
    "numpy",
)


@dataclass(kw_only=True)
class Entry:
    """What was measured of one contender."""

    name: str
    setting: str
    league: str
    ours: bool = False
    sitting: int = 1
    units: list[float] = field(default_factory=list)
    """Per turn, what was done."""
    seconds: list[float] = field(default_factory=list)
    """Per turn, how long it took."""
    peak: int = 0
    """Bytes that the process held at most."""
    remark: str = ""
    """What the last column of the table says of it."""
    failure: str = ""
    """Why the contender could not go on; empty: it could."""
    output: Any = None
    """What the work produced, to be compared; not kept."""

    @property
    def rates(self) -> list[float]:
        """Units a second, of each turn."""
        return [units / seconds for units, seconds in zip(self.units, self.seconds, strict=True)]

    @property
    def rate(self) -> float:
        """Units a second, the median of all turns."""
        return statistics.median(self.rates)


@dataclass(kw_only=True)
class Result:
    """A duel: who took part, and how fast each was."""

    title: str
    unit: str
    """What is counted: tokens, images, calls, sentences."""
    flops: float = 0.0
    """Floating-point operations of a unit, counted on our model; 0: not counted."""
    remarks: str = ""
    """Head of the column of remarks; empty: there is none."""
    entries: list[Entry] = field(default_factory=list)
    limits: list[Entry] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Who did not take part, and why: contenders that are not installed by name, others with their league."""
    sittings: int = 0
    """Groups of processes that were alive together; 1: all met all."""
    date: str = field(default_factory=lambda: now())
    command: str = field(default_factory=lambda: command())
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def add(self, entry: Entry) -> None:
        """Take up an entry, among the limits if it is one; who failed is left out."""
        if entry.failure:
            self.leave_out(f"{entry.name}, {entry.league}", entry.failure)
            return
        (self.limits if entry.league == "limit" else self.entries).append(entry)

    def leave_out(self, name: str, reason: str) -> None:
        """Note that a contender did not take part."""
        self.left_out.setdefault(name, reason)

    def fastest_peer(self, league: str) -> Entry | None:
        """Return the fastest contender of a league that is not ours; None where there is none."""
        peers = [entry for entry in self.entries if entry.league == league and not entry.ours]
        return max(peers, key=lambda entry: entry.rate, default=None)

    def limit(self, entry: Entry) -> float | None:
        """Return 10^9 operations a second of the machine, in the precision and the sitting of a contender.

        None where that was not measured.
        """
        narrow = entry.setting == "bf16"
        for limit in self.limits:
            if limit.sitting == entry.sitting and (limit.setting == "bf16") == narrow:
                return limit.rate
        return None

    def save(self, path: Path) -> None:
        """Write everything but outputs as JSON."""
        record = asdict(self)
        for entry in (*record["entries"], *record["limits"]):
            del entry["output"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read back what `save` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        for part in ("entries", "limits"):
            record[part] = [Entry(**entry) for entry in record[part]]
        return cls(**record)


def command() -> str:
    """Return the command line of this program; of a path outside this folder only the name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words: Iterable[str] = [spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0], *sys.argv[1:]]
    return "python -m " + shlex.join(f"PATH/{Path(word).name}" if word.startswith("/") else word for word in words)


def now() -> str:
    """Return the date and the time of day, as they stand beside figures."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": model or platform.processor(),
        "extensions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else 0,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": platform.platform(terse=True),
        "load": psutil.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that were measured, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
