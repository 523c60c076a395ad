"""Names that are settings."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin


def check_choice(name: str, value: object, literal: object) -> None:
    """Refuse a value that is none of those of its `Literal` type, which would silently mean another one.

    Raises:
        ValueError: it is another; the message lists them.
    """
    if value not in get_args(literal):
        raise ValueError(f"{name}={value!r} is unknown: choose among {', '.join(get_args(literal))}.")


def check_choices(config: Any) -> None:
    """Check every field of a dataclass whose type is a `Literal`.

    Raises:
        ValueError: one is another; the message lists them.
    """
    for field in fields(config):
        if get_origin(field.type) is Literal:
            check_choice(field.name, getattr(config, field.name), field.type)
