"""Configuration: a recipe is a frozen dataclass, filled from YAML files and from the command line.

The defaults of a recipe hold the truth; `--config a.yaml` and flags such as `--train.lr 3e-4` hold what differs. They
are taken from left to right, and the last one wins. A file gives values only: nothing in it can name code to import.
"""

import atexit
import errno
import gc
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from recipes.settings import Settings, print_help
from tasks.errors import InputError, one_line
from tasks.writing import whole

Recipe = TypeVar("Recipe")
RECIPE = "recipe.yaml"
"""File of the configuration in a run folder."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk answers that takes no more."""


def read(recipe_class: type[Recipe], argv: Sequence[str] | None = None, *, default: Recipe | None = None) -> Recipe:
    """Fill a recipe from the command line, `sys.argv` unless `argv` is given; `default` holds what is not given there.

    Fields of the recipe without a default may also be given by position. `--help` prints every field and leaves.
    Raises InputError: one line with everything that cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        print_help(recipe_class)
        raise SystemExit(0)
    settings = Settings(recipe_class)
    settings.take_arguments(arguments)
    recipe = settings.build(default)
    if settings.problems:
        raise InputError("; ".join(one_line(problem).rstrip(".") for problem in settings.problems))
    return recipe


def launch(
    recipe_class: type[Recipe],
    main: Callable[[Recipe], None],
    argv: Sequence[str] | None = None,
    *,
    config: str = "",
    defaults: Callable[[Recipe], Recipe] | None = None,
) -> None:
    """Read a recipe and run `main` on it; on InputError print one line and leave with exit code 2.

    So it does where a model gives NaN, and where a disk is full.

    `config` is the file beside this one that is read where neither `--config` nor `--data.train` says what to train on.
    `defaults` makes, of the recipe as read, the one whose settings hold where nothing is given: those of a run, say.

    All processes of a launch read the same configuration, so only the first of a machine reports it. What `main` finds
    may have been seen by one process alone, so each reports it, all but the first with their rank.
    """
    # At its end Python looks through all that was imported for garbage, for more than a second, to free what is freed
    # anyhow.
    atexit.register(gc.freeze)
    if sys.stderr is None:  # closed by whoever started this
        mute()
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    arguments = list(sys.argv[1:] if argv is None else argv)
    if config and not any(argument.startswith(("--config", "--data.train")) for argument in arguments):
        arguments.insert(0, f"--config={Path(__file__).with_name(config)}")
    try:
        recipe = read(recipe_class, arguments)
        if defaults is not None:
            recipe = read(recipe_class, arguments, default=defaults(recipe))
    except InputError as error:
        if not first:
            time.sleep(10)  # a launcher ends all processes when one leaves: let the first one speak
        _leave(f"error: {error}" if first else "")
    try:
        main(recipe)
    except (InputError, FloatingPointError) as error:
        _leave(f"error: {error}" if first else f"error on rank {os.environ.get('RANK')}: {error}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _leave(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}; what was saved stays")
    except KeyboardInterrupt:
        interrupted = 128 + signal.SIGINT
        _leave("interrupted; what was saved stays" if first else "", interrupted)


def mute() -> None:
    """Say nothing from now on: whoever read standard error has left, and the work goes on."""
    sys.stderr = open(os.devnull, "w", encoding="utf-8")


def write_config(recipe: Any, path: Path) -> None:
    """Write every setting of a recipe as YAML, itself a valid `--config`; an older file is replaced as a whole."""
    with whole(path) as aside:
        aside.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


def load_config(recipe_class: type[Recipe], path: Path) -> Recipe:
    """Read back what `write_config` wrote."""
    return read(recipe_class, [f"--config={path}"])


def recipe_of(recipe_class: type[Recipe], run: str | Path) -> Recipe:
    """Return the configuration that a run was trained with. Raises InputError where the folder holds none."""
    path = Path(run, RECIPE)
    if not path.exists():
        raise InputError(f"{run} is no run folder: it has no {RECIPE}. Train first, or name another folder.")
    try:
        return load_config(recipe_class, path)
    except InputError as error:
        wanted = str(recipe_class.__doc__).partition(".")[0].lower()
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise InputError(f"{run} is no run to {wanted}, or its {RECIPE} was changed: {reason}") from None


def flatten(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """Return every setting under its dotted key, as plain numbers, text, lists and dicts."""
    settings: dict[str, Any] = {}
    for field in fields(recipe):
        value, key = getattr(recipe, field.name), prefix + field.name
        settings |= flatten(value, f"{key}.") if is_dataclass(value) else {key: _plain(value)}
    return settings


def describe_difference(run: Any, asked: Any, ignore: Collection[str] = ()) -> list[str]:
    """Name each setting that differs between the recipe of a run and the one asked for, with both values."""
    old, new = flatten(run), flatten(asked)
    keys = [key for key in old | new if key not in ignore and old.get(key, MISSING) != new.get(key, MISSING)]
    return [f"{key}: {old.get(key, 'nothing')} in the run, {new.get(key, 'nothing')} asked for" for key in keys]


def _plain(value: Any) -> Any:
    """Turn dataclasses, tuples and paths into what YAML knows."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _leave(message: str, code: int = 2) -> NoReturn:
    if message:
        print(one_line(message), file=sys.stderr)
    raise SystemExit(code)
