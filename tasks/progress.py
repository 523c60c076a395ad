"""How far long work is, for people who wait: a bar on standard error, once it has taken some seconds."""

import os
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
    with tqdm(total=total, desc=what, delay=SECONDS, mininterval=1, leave=False, disable=silent) as bar:
        for item in items:
            yield item
            bar.update(size)
