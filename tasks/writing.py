"""Files that are there whole, or not at all."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import InputError, one_line


@contextmanager
def whole(path: Path, *, remedy: str = "") -> Iterator[Path]:
    """Give a place beside `path` to write to, which takes its name at the end.

    Raises InputError, which ends with `remedy`, where the disk refuses; then nothing is left, and a file that was there
    before stays.
    """
    aside = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path} cannot be written: {reason}{remedy}.") from error
    finally:
        aside.unlink(missing_ok=True)
