"""Images with text: lines rendered in real fonts, or a data set of images with their texts."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.decode import file_content, open_image
from tasks.errors import InputError, one_line
from tasks.task import Split
from tasks.text_recognition.render import able, check_fonts, cut, find_fonts, render

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class TextImages:
    """What is to be read."""

    text: str = ""
    """File of text to render, UTF-8, one or more sentences a line; empty: the embedded corpus."""
    dataset: str = ""
    """A hub data set, or a folder that `datasets` loads, with splits train, validation and test, to read instead."""
    image_column: str = "image"
    """Its column of images."""
    text_column: str = "text"
    """Its column of texts: what is written in the image, or what is to be said about it."""
    fonts: list[str] = field(
        default_factory=lambda: [
            "matplotlib:DejaVuS*.ttf",
            "matplotlib:STIXGeneral*.ttf",
            "font_roboto:*.ttf",
            "font_manrope:*.ttf",
            "font_source_sans_pro:*.ttf",
            "font_source_serif_pro:*.ttf",
        ]
    )
    """Fonts of training and validation: a font file, a folder, or `package:pattern` for those that a package brings."""
    test_fonts: list[str] = field(default_factory=lambda: ["font_caladea:*.ttf", "font_hanken_grotesk:*.otf"])
    """Fonts of the test lines."""
    size: tuple[int, int] = (32, 256)
    """Height and width of an image in pixels; others are scaled into it."""
    channels: int = 1
    """1 reads grey, 3 colours."""
    longest: int = 24
    """Characters of a rendered line; longer text is cut between words."""
    lines: int = 20_000
    """Rendered lines of an epoch; each is new."""
    held_out: int = 500
    """Lines of the text that are kept for validation, and as many for the test."""
    batch: int = 64
    """Images of a micro-batch."""
    seed: int = 1
    """What is drawn, and the order of a data set."""

    def __post_init__(self) -> None:
        for name in ("longest", "lines", "held_out", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--data.{name}={getattr(self, name)}: choose 1 or more.")
        if self.channels not in (1, 3) or min(self.size) < 1 or self.seed < 0:
            raise ValueError("--data.channels is 1 or 3, --data.size two numbers from 1 on, --data.seed 0 or more.")


class Lines:
    """The splits of `TextImages`, opened: `sizes` examples each, images of (channels, height, width) in uint8."""

    def __init__(self, config: TextImages, corpus: Sequence[str]) -> None:
        self.config = config
        if config.dataset:
            names = {"train": "train", "valid": "validation", "test": "test"}
            self.tables = {split: _table(config, name) for split, name in names.items()}
            self.sizes = {split: len(table) for split, table in self.tables.items()}
            self.characters = sorted({char for text in self.tables["train"][config.text_column] for char in text})
            return
        held_out = config.held_out
        text = [line for line in (_read(config.text) if config.text else corpus) if line.strip()]
        if len(text) < 3 * held_out:
            raise InputError(f"{len(text)} lines of text are too few for data.held_out={held_out}: lower it.")
        random.Random("held out").shuffle(text)  # the same for every seed
        self.text = {"valid": text[:held_out], "test": text[held_out : 2 * held_out], "train": text[2 * held_out :]}
        self.characters = sorted({char for line in self.text["train"] for char in line} | {" "})
        fonts = find_fonts(config.fonts)
        self.fonts = {"train": fonts, "valid": fonts, "test": find_fonts(config.test_fonts)}
        for split, lines in self.text.items():
            check_fonts(self.fonts[split], lines)
        self.sizes = {"train": config.lines, "valid": held_out, "test": held_out}

    def digest(self) -> str:
        """Hash the texts to train and validate on."""
        column, splits = self.config.text_column, ("train", "valid")
        texts = [list(self.tables[each][column]) if self.config.dataset else self.text[each] for each in splits]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def example(self, split: Split, row: int, epoch: int) -> tuple[Tensor, str]:
        """Return an image and its text; a rendered line of training is drawn by (seed, epoch, row)."""
        config = self.config
        if config.dataset:
            found = self.tables[split][row]
            image, name = found[config.image_column], f"{config.dataset} {split} row {row + 1}"
            data = image["bytes"] or file_content(image["path"])
            return fit(open_image(data, channels=config.channels, name=name), config), found[config.text_column]
        draw = random.Random(f"{config.seed}-{split}-{epoch}-{row}")
        lines = self.text[split]
        text = cut(draw.choice(lines) if split == "train" else lines[row], config.longest, draw)
        return fit(render(text, draw.choice(able(self.fonts[split], text)), draw), config), text


def fit(image: Image.Image, config: TextImages) -> Tensor:
    """Scale an image into the size, its shape kept, and fill what is left with the colour of its corner."""
    image = image.convert("L" if config.channels == 1 else "RGB")
    height, width = config.size
    scale = min(height / image.height, width / image.width)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    whole = Image.new(image.mode, (width, height), image.getpixel((0, 0)))
    whole.paste(image, (0, (height - image.height) // 2))
    return torch.from_numpy(np.array(whole)).view(height, width, config.channels).permute(2, 0, 1)


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {one_line(error)}: data.text wants a file of text in UTF-8.") from None


def _table(config: TextImages, split: str) -> "Dataset":
    from datasets import Image, load_dataset

    try:
        table = load_dataset(config.dataset, split=split)
        missing = [name for name in (config.image_column, config.text_column) if name not in table.column_names]
        if not missing:  # images stay encoded, because those that are read later are decoded by us as well
            return table.cast_column(config.image_column, Image(decode=False))
    except Exception as error:  # of many kinds; all of them concern the name, the network or the data
        raise InputError(f"{config.dataset}: {one_line(error.__cause__ or error)}") from error
    raise InputError(f"{config.dataset} has no column {missing[0]}: choose among {', '.join(table.column_names)}.")
