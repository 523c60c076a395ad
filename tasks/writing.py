"""Files that are there whole, or not at all."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import InputError, one_line


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a place beside `path` to write to, which takes its name at the end.

    Raises InputError where the disk refuses; then nothing is left, and a file that was there before stays.
    """
    aside = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or one_line(error)}.") from error
    finally:
        aside.unlink(missing_ok=True)
