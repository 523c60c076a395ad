"""Names that a run folder keeps, of classes or of characters: what a model learned of each goes by its place."""

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import InputError, one_line
from tasks.writing import whole


def read_names(path: Path) -> list[str]:
    """Return the names that a file of a run folder holds, in their order; raises InputError without them."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}): name the folder of a training run.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: not a list of names: put back the file that the run began with.")
    return names


def keep_names(names: Sequence[str], path: Path, *, of: str) -> None:
    """Write the names at first; later raise InputError where they are others, or in another order.

    `of` says what they name, in the plural.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as aside:
            aside.write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    elif (kept := read_names(path)) != names:
        differing = difference(kept, names, "is gone", "is new") or "in another order"
        raise InputError(
            f"{path}: the run began with other {of} ({differing}): give back the data that it began with, or start a "
            "new run."
        )


def listed(names: Sequence[str]) -> str:
    """Write names for a message, not too many."""
    return f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def difference(first: Sequence[str], second: Sequence[str], only_first: str, only_second: str) -> str:
    """Write which names stand in one list alone and what is said of them; empty where only the orders differ."""
    groups = (
        ([name for name in first if name not in second], only_first),
        ([name for name in second if name not in first], only_second),
    )
    return "; ".join(f"{listed(names)} {said}" for names, said in groups if names)
