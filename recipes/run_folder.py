"""The folder of a run while it trains: whose it is, and which settings may change when it is continued."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recipes.checkpoint import check_writable, list_checkpoints
from recipes.config import RECIPE, describe_difference, flatten, load_config, write_config
from recipes.state import CHECKPOINTS
from tasks.errors import InputError

CLAIM = ".training.lock"
"""File that the process holds that trains in the folder."""
PATIENCE = 15.0
"""Seconds to wait for it: processes that read for a killed run hold it until they notice."""
LOCK = ".lock"
"""File that the process holds that changes the folder."""
MAY_CHANGE = (
    "out",
    "steps",
    "log_every",
    "evaluate_every",
    "monitor",
    "average",
    "average_of",
    "keep_last",
    "keep_every",
    "max_skipped",
    "save_every",
    "patience",
    "workers",
    "threads",
    "tune",
    "tensorboard",
)
"""Settings of training that a run may be continued with although they differ from those it began with."""
NOT_TRAINING = ("expected.", "scores.", "search.", "data.folder", "data.keep", "data.on_device", "data.test_fonts")
"""Beginnings of further settings that change nothing in training."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Let no other run train in the folder meanwhile; the main process speaks for all.

    Raises InputError where one does, or nothing can be written there.
    """
    check_writable(folder)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FileLock(folder / CLAIM, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder} is being trained in by another process: wait for it, or choose another --train.out."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def opened(folder: Path, recipe: Any) -> Iterator[None]:
    """Open the folder as `open_run` does; what raises inside, before anything is trained, leaves nothing new there."""
    before = set(folder.iterdir()) if folder.is_dir() else set()
    began = open_run(folder, recipe)
    try:
        yield
    except Exception:
        if began:  # nothing was trained with these settings, so others may follow, and find nothing of these
            for path in set(folder.iterdir()) - before:
                if path.is_file() and path.name not in (LOCK, CLAIM):
                    path.unlink(missing_ok=True)
        raise


def open_run(folder: Path, recipe: Any) -> bool:
    """Make the run folder and keep the configuration there, or compare it with the one that is kept.

    Return whether the folder had none.

    Raises InputError where the folder belongs to another configuration: nothing is overwritten.
    """
    kept = folder / RECIPE
    with FileLock(folder / LOCK):
        began = not kept.exists()
        if not began:
            ignored = [key for key in flatten(recipe) if key.startswith(NOT_TRAINING)]
            ignored += [f"train.{name}" for name in MAY_CHANGE]
            differences = describe_difference(load_config(type(recipe), kept), recipe, ignore=ignored)
            if differences and not list_checkpoints(folder / CHECKPOINTS):
                raise InputError(
                    f"{folder} was begun with another configuration ({'; '.join(differences)}) and has no "
                    "checkpoint yet: remove the folder to start afresh."
                )
            if differences:
                raise InputError(
                    f"{folder} belongs to a run of another configuration ({'; '.join(differences)}): "
                    "choose another --train.out, or give the settings of that run."
                )
        elif (folder / CHECKPOINTS).exists():
            raise InputError(f"{folder} has checkpoints but no recipe.yaml: choose another --train.out.")
        write_config(recipe, kept)
    return began
