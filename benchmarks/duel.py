"""A duel: several libraries do the same work by turns, each setting of each library in a process of its own.

Threads, allocator and precision belong to a process, so what is measured "out of the box" really is. All processes stay
alive and idle but the one whose turn it is. In a round each has a turn, and the next round begins with another one, so
that a slow minute of the machine hits all alike.
"""

import multiprocessing
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Self

import psutil
import torch

from benchmarks.result import Entry, Result
from recipes.inspection.flops import flop_counter
from recipes.processes import use_machine
from recipes.tracking import console
from transformer_core.packing import has_bfloat16

Setting = Literal["plain", "knobs", "bf16"]
LEAGUES: dict[Setting, str] = {"plain": "out of the box", "knobs": "our knobs, float32", "bf16": "our knobs, bf16"}
Step = Callable[[], float]
"""Does one piece of work and returns how many units it was: tokens, images, sentences."""


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


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One library in one setting."""

    name: str
    make: Callable[..., Step]
    """Called in the process of the contender, with the setting and `arguments`; all of it must be picklable."""
    arguments: tuple[Any, ...] = ()
    setting: Setting = "plain"
    ours: bool = False
    needs: str = ""
    """Package without which this contender stays away."""
    league: str = ""
    """Contenders of a league are compared with each other; by default the setting."""


def league_of(contender: Contender) -> str:
    """Return the name of the league that a contender is in."""
    return contender.league or LEAGUES[contender.setting]


def in_all_settings(
    needs: Mapping[str, str], make: Callable[..., Step], work: Any, config: DuelConfig
) -> list[Contender]:
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


class Failed(Exception):
    """A contender cannot do the work; the first line says why, the others hold its traceback."""


class Worker:
    """The process of a contender; it lives inside a `with`."""

    def __init__(self, contender: Contender, *, warmup: int, steps: int = 1) -> None:
        self.contender, self.warmup, self.steps = contender, warmup, steps
        self.entry = Entry(
            name=contender.name,
            setting=contender.setting,
            league=league_of(contender),
            ours=contender.ours,
        )

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.contender, self.warmup, self.steps))
        self.process.start()
        other.close()
        return self

    def __exit__(self, *details: Any) -> None:
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()

    def ask(self, command: str) -> Any:
        """Let the process do something and return its answer. Raises Failed."""
        if command != "start":
            self.connection.send(command)
        try:
            good, answer = self.connection.recv()
        except EOFError:
            good, answer = False, "the process died; the system may have had no memory left"
        if not good:
            raise Failed(answer)
        return answer

    def take_turn(self) -> None:
        """Let the process do the steps of a turn and note how long they took."""
        units, seconds = self.ask("turn")
        self.entry.units.append(units)
        self.entry.seconds.append(seconds)


def serve(connection: Connection, contender: Contender, warmup: int, steps: int) -> None:
    """Do what is asked for until nobody is there to ask."""
    try:
        if contender.setting != "plain":
            use_machine(0)
        step = contender.make(contender.setting, *contender.arguments)
        for _ in range(warmup):
            step()
        answer: Any = peak_memory()
        while True:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            connection.send((True, answer))
            match connection.recv():
                case "turn":
                    if torch.cuda.is_initialized():
                        step()  # takes back the memory that others have had in the meantime
                        torch.cuda.synchronize()
                    began = time.perf_counter()
                    units = sum(step() for _ in range(steps))
                    if torch.cuda.is_initialized():
                        torch.cuda.synchronize()
                    answer = units, time.perf_counter() - began
                case "flops":
                    with flop_counter() as counter:
                        units = step()
                    answer = counter.get_total_flops() / units
                case "output":
                    answer = getattr(step, "output", None)
                case _:
                    answer = peak_memory()
    except EOFError:
        pass
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


def peak_memory() -> int:
    """Return the bytes that this process held at most, and what its children hold; on a GPU those of its tensors."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    children = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 + children  # getrusage would count what the parent held as it started this one
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + children


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
    waiting: list[Contender] = []
    for contender in contenders:
        if (contender.setting not in config.settings and not on_gpu) or (
            config.only and contender.name not in config.only
        ):
            continue
        if contender.needs and find_spec(contender.needs) is None:
            result.leave_out(contender.name, "not installed")
        else:
            waiting.append(contender)
    budget = config.memory * psutil.virtual_memory().available
    if flops and (ours := next((contender for contender in waiting if contender.ours), None)) is not None:
        with Worker(ours, warmup=0) as worker:  # one that takes no further part, because this was a step
            worker.ask("start")
            result.flops = worker.ask("flops")
    while waiting:
        result.sittings += 1
        with ExitStack() as stack:
            if on_gpu:
                workers = warmed_up([GPU_LIMIT, *waiting], config, stack, result)
                waiting.clear()
            else:
                workers = list(seated(waiting, stack, config, budget, result))
            play(workers, config)
            for worker in workers:
                worker.entry.sitting = result.sittings
                result.add(worker.entry)
    return result


def play(workers: Sequence[Worker], config: DuelConfig) -> None:
    """Give everybody a turn in each round, then ask what they held and what came out."""
    for turn in range(config.rounds):
        for place in range(len(workers)):
            workers[(turn + place) % len(workers)].take_turn()
            time.sleep(config.pause)
    for worker in workers:
        worker.entry.peak = worker.ask("peak")
        worker.entry.output = worker.ask("output")


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
        try:
            peak = worker.ask("start")
        except Failed as failure:
            if contender.ours:
                raise
            result.leave_out(contender.name, str(failure).partition("\n")[0])
            continue
        console().print(f"ready: {contender.name}, {worker.entry.league}, {peak / 2**20:,.0f} MB", soft_wrap=True)
        held, largest = held + peak, max(largest, peak)
        yield worker


def warmed_up(contenders: Sequence[Contender], config: DuelConfig, stack: ExitStack, *results: Result) -> list[Worker]:
    """Start processes, some at a time, and return those that can do their work; the results say who cannot.

    Raises Failed where one of ours cannot.
    """
    installed = [each for each in contenders if not each.needs or find_spec(each.needs) is not None]
    ready: list[Worker] = []
    for begin in range(0, len(installed), config.together):
        some = (Worker(each, warmup=config.warmup, steps=config.steps) for each in installed[begin:][: config.together])
        for worker in [stack.enter_context(each) for each in some]:
            name = f"{worker.contender.name}, {worker.entry.league}"
            try:
                peak = worker.ask("start")
            except Failed as failure:
                if worker.contender.ours:
                    raise
                for result in results:
                    result.leave_out(name, str(failure).partition("\n")[0])
                continue
            console().print(f"ready: {name}, {peak / 2**20:,.0f} MB", soft_wrap=True)
            ready.append(worker)
    return ready


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
