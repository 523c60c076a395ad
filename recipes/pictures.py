"""Pictures that recipes draw."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import InputError

if TYPE_CHECKING:  # a recipe imports it if it draws
    from matplotlib.figure import Figure


def save_picture(figure: "Figure", path: str | Path, *, dpi: int = 100) -> None:
    """Write a figure in the format that the ending of `path` names. Raises InputError where that cannot be done."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise InputError(f"--output {path} cannot be written ({error}): choose another file, such as a.png.") from None
