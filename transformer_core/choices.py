"""Names that are settings."""

from typing import get_args


def check_choice(name: str, value: object, literal: object) -> None:
    """Refuse a value that is none of those of its `Literal` type, which would silently mean another one.

    Raises:
        ValueError: it is another; the message lists them.
    """
    if value not in get_args(literal):
        raise ValueError(f"{name}={value!r} is unknown: choose among {', '.join(get_args(literal))}.")
