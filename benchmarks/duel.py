"""A duel: several libraries do the same work by turns, each setting of each library in a process of its own.

Threads, allocator and precision belong to a process, so what is measured "out of the box" really is. All processes stay
alive and idle but the one whose turn it is. In a round each has a turn, and the next round begins with another one, so
that a slow minute of the machine hits all alike.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import psutil
import torch

from benchmarks.result import Result
from benchmarks.worker import Contender, Maker, Setting, Step, Worker, league_of
from recipes.tracking import console
from transformer_core.packing import has_bfloat16


def settings_of_this_machine() -> list[Setting]:
    """Return all settings that are worth a measurement here."""
    return ["plain", "knobs", *(["bf16"] if torch.backends.mkldnn.is_available() and has_bfloat16() else [])]


@dataclass(frozen=True, kw_only=True)
class DuelConfig:
    """How contenders are measured, and which."""

    rounds: int = 8
    """Turns of each contender."""
    steps: int = 1
    """Steps of a turn, timed together."""
    warmup: int = 2
    """Steps of each before the first round."""
    only: list[str] = field(default_factory=list)
    """Names of the contenders that take part; empty: all that are installed."""
    settings: list[Setting] = field(default_factory=settings_of_this_machine)
    """Out of the box, with the threads and the allocator of our programs, and with those under bf16 autocast; the last
    by default where the CPU has instructions for it."""
    pause: float = 0.3
    """Seconds between two turns, in which the threads of the last one go to sleep."""
    memory: float = 0.8
    """Share of the free memory for processes that are alive together; those beyond it sit in a later sitting."""
    together: int = 8
    """On a GPU: processes that compile and warm up at the same time, each with the memory of a step; all then stay."""
    out: str = "benchmarks/results"
    """Folder of the JSON files."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--duel.{name} {getattr(self, name)}: choose 1 or more.")


def in_all_settings(needs: Mapping[str, str], make: Maker, work: Any, config: DuelConfig) -> list[Contender]:
    """Name contenders for each setting: `needs` holds the package of each by its name, `make` gets name and `work`."""
    return [
        Contender(
            name=name,
            needs=package,
            make=make,
            arguments=(name, work),
            setting=setting,
            ours=name.startswith("transformer_core"),
        )
        for setting in config.settings
        for name, package in needs.items()
    ]


def duel(
    title: str,
    unit: str,
    contenders: Sequence[Contender],
    config: DuelConfig,
    *,
    flops: bool = True,
    on_gpu: bool = False,
) -> Result:
    """Let contenders do the same work by turns. `flops`: count the operations of a unit on our model.

    A peer that is not installed, or cannot do the work, is left out, and the result says so. Raises Failed where one of
    ours cannot.
    """
    result = Result(title=title, unit=unit)
    chosen = [each for each in contenders if each.setting in config.settings or on_gpu]
    waiting = installed(chosen, config, result)
    budget = config.memory * psutil.virtual_memory().available
    if flops and (ours := next((contender for contender in waiting if contender.ours), None)) is not None:
        with Worker(ours, warmup=0) as worker:  # one that takes no further part, because this was a step
            worker.ask("start")
            result.flops = worker.ask("flops")
    while waiting:
        result.sittings += 1
        with ExitStack() as stack:
            if on_gpu:
                workers = warmed_up([(each, result) for each in (GPU_LIMIT, *waiting)], config, stack)
                waiting.clear()
            else:
                workers = list(seated(waiting, stack, config, budget, result))
            play(workers, config)
            for worker in workers:
                worker.entry.sitting = result.sittings
                result.add(worker.entry)
    return result


def installed(contenders: Sequence[Contender], config: DuelConfig, result: Result) -> list[Contender]:
    """Return those that are asked for and whose package is there; the result says who is not."""
    found: list[Contender] = []
    for contender in contenders:
        if config.only and contender.name not in config.only:
            continue
        if contender.needs and find_spec(contender.needs) is None:
            result.leave_out(contender.name, "not installed")
        else:
            found.append(contender)
    return found


def play(workers: Sequence[Worker], config: DuelConfig) -> None:
    """Give everybody a turn in each round, then ask what they held and what came out.

    A peer that fails has no more turns, as its entry says. Raises Failed where one of ours does.
    """
    for turn in range(config.rounds):
        for place in range(len(workers)):
            workers[(turn + place) % len(workers)].take_turn()
            time.sleep(config.pause)
    for worker in workers:
        worker.entry.peak = worker.demand("peak") or 0
        worker.entry.output = worker.demand("output")


def seated(
    waiting: list[Contender], stack: ExitStack, config: DuelConfig, budget: float, result: Result
) -> Iterator[Worker]:
    """Start the processes of a sitting, one after the other, as long as their memory suffices: the limits, then others.

    Each is taken from `waiting` and counts with the most it held so far; the next is expected to need as much as the
    largest of those before it. A league begins only where there is room for all of it.
    """
    held, largest, league = 0.0, 0.0, None
    limits = [limit for limit in LIMITS if limit.setting == "plain" or limit.setting in config.settings]
    for place, contender in enumerate((*limits, *waiting.copy())):
        fellows = sum(league_of(other) == league_of(contender) for other in waiting)
        needed = largest * (1 if league_of(contender) == league else fellows)
        if place > len(limits) and held + needed > budget:
            return
        if place >= len(limits):
            waiting.pop(0)
            league = league_of(contender)
        worker = stack.enter_context(Worker(contender, warmup=config.warmup, steps=config.steps))
        if (peak := wait_until_ready(worker, result)) is None:
            continue
        held, largest = held + peak, max(largest, peak)
        yield worker


def warmed_up(places: Sequence[tuple[Contender, Result]], config: DuelConfig, stack: ExitStack) -> list[Worker]:
    """Start the process of each contender, some at a time, and return those that can do their work.

    The result beside a contender says where it cannot. Raises Failed where one of ours cannot.
    """
    ready: list[Worker] = []
    for first in range(0, len(places), config.together):
        starting = [
            (stack.enter_context(Worker(contender, warmup=config.warmup, steps=config.steps)), result)
            for contender, result in places[first:][: config.together]
        ]
        ready.extend(worker for worker, result in starting if wait_until_ready(worker, result) is not None)
    return ready


def wait_until_ready(worker: Worker, result: Result) -> int | None:
    """Wait until a process is ready, and return the bytes that it held at most.

    None where it cannot do the work, which the result then says. Raises Failed where it is one of ours.
    """
    peak: int | None = worker.demand("start")
    if peak is None:
        result.add(worker.entry)
    else:
        name = f"{worker.contender.name}, {worker.entry.league}"
        console().print(f"ready: {name}, {peak / 2**20:,.0f} MB", soft_wrap=True)
    return peak


def matrix_product(setting: Setting, size: int, device: str = "cpu") -> Step:
    """Multiply square matrices, the most arithmetic that a machine can do; a unit is 10^9 operations."""
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def step() -> float:
        for _ in range(4):
            torch.mm(a, b, out=out)
        return 4 * 2 * size**3 / 1e9

    return step


LIMITS = [
    Contender(name="matrix product", make=matrix_product, arguments=(2048,), setting=setting, league="limit")
    for setting in ("plain", "bf16")
]
"""What the machine can do, measured like everybody else."""
GPU_LIMIT = Contender(
    name="matrix product", make=matrix_product, arguments=(8192, "cuda"), setting="bf16", league="limit", ours=True
)
