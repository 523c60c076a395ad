"""Lines of text drawn as images, in fonts of one's own choice."""

import random
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tasks.errors import InputError, one_line


def cut(text: str, longest: int, draw: random.Random) -> str:
    """Return words of the text that follow each other, from a drawn one on; one long word is cut itself."""
    words = text.split()
    kept = words[draw.randrange(len(words)) if len(text) > longest else 0 :]
    while len(" ".join(kept)) > longest and len(kept) > 1:
        kept.pop()
    return " ".join(kept)[:longest]


def render(text: str, font: Path, draw: random.Random) -> Image.Image:
    """Draw a line of text in a drawn size, slant, ink and paper, with blur and noise."""
    face, margin = _face(font, draw.randint(18, 30)), draw.randint(2, 8)
    left, top, right, bottom = face.getbbox(text)
    ink, paper = draw.randint(0, 90), draw.randint(150, 255)
    ink, paper = (paper, ink) if draw.random() < 0.2 else (ink, paper)
    image = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=face)
    image = image.rotate(draw.uniform(-2, 2), Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.8)))
    noise = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.uniform(0, 20), (image.height, image.width))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def find_fonts(names: Sequence[str]) -> list[Path]:
    """Return the files that `TextImages.fonts` names, sorted. Raises InputError where a name gives none."""
    found: list[Path] = []
    for name in names:
        package, _, pattern = name.partition(":")
        spec = None if Path(name).exists() or not package.isidentifier() else find_spec(package)
        folders = [Path(name)] if spec is None else map(Path, spec.submodule_search_locations or [])
        files = [path for folder in folders for path in sorted(folder.rglob(pattern.lstrip("/") or "*.[ot]tf"))]
        files = [Path(name)] if Path(name).is_file() else files
        if not files:
            raise InputError(f"{name}: no fonts there: give a font file, a folder of them, or package:pattern.")
        found += files
    if not found:
        raise InputError("no fonts are named: give data.fonts and data.test_fonts one each, or more.")
    return found


def check_fonts(fonts: Sequence[Path], lines: Sequence[str]) -> None:
    """Raise InputError for a line that no font can write as a whole, before anything is trained."""
    for line in lines:
        text = " ".join(line.split())
        if not any(_characters(font).issuperset(text) for font in fonts):
            able(fonts, text)


def able(fonts: Sequence[Path], text: str) -> list[Path]:
    """Return the fonts that have all characters of a text. Raises InputError if none has."""
    found = [font for font in fonts if _characters(font).issuperset(text)]
    if not found:
        raise InputError(f"no font has all characters of {text!r:.60}: add one that does, or leave the line out.")
    return found


@cache
def _characters(font: Path) -> set[str]:
    try:
        with font.open("rb") as file, TTFont(file, lazy=True) as opened:
            return {chr(code) for code in opened.getBestCmap() or ()}
    except (TTLibError, OSError) as error:
        raise InputError(f"{font} cannot be read as a font ({one_line(error)}): take it out, or replace it.") from None


@cache
def _face(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)
