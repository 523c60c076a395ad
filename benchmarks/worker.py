"""A contender of a duel and the process in which it works, with threads, allocator and precision of its own."""

import multiprocessing
import re
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Self

import psutil
import torch

from benchmarks.result import Entry
from recipes.inspection.flops import flop_counter
from recipes.processes import use_machine

Setting = Literal["plain", "knobs", "bf16"]
LEAGUES: dict[Setting, str] = {"plain": "out of the box", "knobs": "our knobs, float32", "bf16": "our knobs, bf16"}
Step = Callable[[], float]
"""Does one piece of work and returns how many units it was: tokens, images, sentences."""
Maker = Callable[..., Step]
"""Makes what a contender does, in its process, from its setting and arguments that can be pickled."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One library in one setting."""

    name: str
    make: Maker
    """Called with the setting and `arguments`."""
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
        try:
            if command != "start":
                self.connection.send(command)
            good, answer = self.connection.recv()
        except (EOFError, OSError):
            good, answer = False, "the process died; the system may have had no memory left"
        if not good:
            raise Failed(answer)
        return answer

    def demand(self, command: str) -> Any:
        """Ask, but of a peer that fails only note why, and from then on return None. Raises Failed for one of ours."""
        if self.entry.failure:
            return None
        try:
            return self.ask(command)
        except Failed as failure:
            if self.contender.ours:
                raise Failed(f"{self.contender.name}, {self.entry.league}: {failure}") from None
            self.entry.failure = str(failure).partition("\n")[0]
            return None

    def take_turn(self) -> None:
        """Let the process do the steps of a turn, if it can, and note how long they took."""
        if (turn := self.demand("turn")) is not None:
            units, seconds = turn
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
