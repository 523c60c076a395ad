"""The metrics of training between two reports."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from recipes.state import Progress
from tasks.errors import InputError


class Meter:
    """Sums of the updates since the last report, kept on the device until they are asked for."""

    def __init__(self, accelerator: Accelerator, unit: str) -> None:
        self.accelerator, self.unit = accelerator, unit
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.sums: dict[str, Tensor] = {}
        self.norms: list[Tensor] = []
        self.rows: list[list[int]] = []
        self.targets, self.waited, self.began = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, sums: dict[str, Tensor], *, counts: bool) -> None:
        """Add the sums of a micro-batch; one that does not count still names them, as every process has to."""
        for name, value in sums.items():
            value = value if counts else torch.zeros_like(value)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def updated(self, norm: Tensor, targets: int, rows: list[int]) -> None:
        """Note an update: its gradient norm, the targets and the examples of this process."""
        self.norms.append(norm)
        self.rows.append(rows)
        self.targets += targets

    def report(self, stop: bool, max_skipped: int, progress: Progress) -> tuple[dict[str, float], bool]:
        """Return the metrics of the interval over all processes, and whether any of them was asked to stop.

        What is not finite because of an update that was left out is not reported.

        Raises InputError where too many updates were left out, naming the examples of the last one.
        """
        names = sorted(self.sums)
        norms = torch.stack(self.norms).double()
        elapsed = time.perf_counter() - self.began
        local = torch.tensor([self.targets, self.waited / elapsed, float(stop)], dtype=torch.float64)
        sums = torch.stack([self.sums[name].double() for name in names] + list(local.to(norms.device)))
        if self.accelerator.num_processes > 1:
            sums = cast(Tensor, self.accelerator.reduce(sums, "sum"))
        *totals, targets, waited, stopping = sums.tolist()
        broken = (~norms.isfinite()).nonzero()[:, 0].tolist()
        progress.skipped += len(broken)
        if broken and progress.skipped > max_skipped:
            last = progress.step - len(norms) + 1 + broken[-1]
            raise InputError(
                f"{progress.skipped} updates had a gradient that is not finite, more than --train.max_skipped "
                f"{max_skipped}; the last one, update {last}, was made of the training examples "
                f"{self.rows[broken[-1]][:20]}: look at them, or lower --train.lr in "
                "another --train.out."
            )
        finite = norms[norms.isfinite()]
        means = {f"train/{name}": total / max(1, targets) for name, total in zip(names, totals, strict=True)}
        values = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        values |= {
            **({"train/grad_norm": float(finite.mean())} if len(finite) else {}),
            f"train/{self.unit}_per_second": targets / elapsed,
            "train/waiting": waited / self.accelerator.num_processes,
            "train/skipped": progress.skipped,
            "train/epoch": progress.epoch,
        }
        self.restart()
        return values, stopping > 0
