"""Programs of `recipes` in processes of their own, alone or as the ranks of a group, which a test may break and kill.

The processes are forked from a server that has imported everything and run nothing, so that one costs little.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from recipes.config import launch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "torch._dynamo", "children", "recipes.reverse", "recipes.train_translation", "recipes.train_images"]
)


class Ended(NamedTuple):
    """What is left of the processes."""

    codes: list[int | None]
    """Exit code of each rank, negative for a signal."""
    text: str
    """What they wrote."""


def run(
    program: str, arguments: Sequence[str], log: Path, *changes: Callable[[], None], ranks: int = 1, limit: float = 240
) -> Ended:
    """Run a program to its end; `changes` are called in each of its processes before it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log.write_bytes(b"")
    group = [
        SERVER.Process(target=_rank, args=(program, arguments, log, changes, rank, ranks, port))
        for rank in range(ranks)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(limit)
        if process.is_alive():
            process.kill()
    return Ended([process.exitcode for process in group], log.read_text(encoding="utf-8", errors="replace"))


def _rank(
    program: str,
    arguments: Sequence[str],
    log: Path,
    changes: Sequence[Callable[[], None]],
    rank: int,
    ranks: int,
    port: int,
) -> None:
    os.environ |= {"ACCELERATE_USE_CPU": "true", "RANK": str(rank)}
    if ranks > 1:
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    multiprocessing.set_start_method("fork", force=True)  # as in a program that was started alone
    os.setpgrp()  # a signal to its group reaches its loader workers and nobody else
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for change in changes:
        change()
    module = importlib.import_module(program)
    launch(module.Recipe, module.main, arguments)


def die_at(event: int, counted: Any) -> None:
    """Kill this process at its `event`-th Python call after it has a checkpoint, wherever that is; count the calls."""
    from recipes.state import State

    counted.value = 0

    def watch(frame: Any, what: str, argument: Any) -> None:
        counted.value += 1
        if counted.value == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def then_watch(original: Callable[..., Any], *arguments: Any) -> Any:
        result = original(*arguments)
        sys.setprofile(watch)
        return result

    save, load = State.save, State.load
    State.save = lambda *arguments: then_watch(save, *arguments)
    State.load = lambda *arguments: then_watch(load, *arguments)


def change_losses(change: Callable[[Any], Any], *, calls: Sequence[int], rank: int = 0) -> None:
    """Change what the given calls of `Reverse.loss`, counted from 1, return in one rank."""
    from recipes.reverse import Reverse

    original, count = Reverse.loss, 0

    def loss(self: Any, model: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        result = original(self, model, batch)
        return change(result) if count in calls and os.environ["RANK"] == str(rank) else result

    Reverse.loss = loss


def not_a_number(loss: Any) -> Any:
    """Break a loss."""
    return loss._replace(total=loss.total * float("nan"))


def signal_oneself(number: int, loss: Any) -> Any:
    """Send a signal to this process in the middle of an update."""
    os.kill(os.getpid(), number)
    return loss


def signal_group(number: int, loss: Any) -> Any:
    """Let another process signal this one and its loader workers in the middle of an update."""
    group = os.getpgrp()
    assert group == os.getpid(), "this process leads a group of its own, so that nobody else is in it"
    sender = f"import os; os.setsid(); os.killpg({group}, {number:d})"
    subprocess.run([sys.executable, "-c", sender], check=True)
    return loss


killed = partial(signal_oneself, signal.SIGKILL)
