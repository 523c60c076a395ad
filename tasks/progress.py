"""How far long work is, for people who wait: a bar on standard error, once it has taken some seconds."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS = 5.0
"""Shorter work shows nothing."""


def shown(items: Iterable[Item], what: str, *, total: int | None = None, size: int = 1) -> Iterator[Item]:
    """Yield the items, each of which stands for `size` of `total`, and show how many are done.

    Of several processes of a launcher the first alone shows it.
    """
    silent = os.environ.get("RANK", "0") != "0"
    pause = 0.5 if sys.stderr.isatty() else 20.0  # a log file keeps every one
    with tqdm(total=total, desc=what, delay=SECONDS, mininterval=pause, leave=False, disable=silent) as bar:
        for item in items:
            yield item
            bar.update(size)
