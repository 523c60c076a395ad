"""Encoded images of many kinds, which nobody vouches for, made into pixels."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from tasks.errors import InputError, one_line

KINDS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, by Pillow's names: its other readers are rarely tried, and one of them starts Ghostscript."""
MAX_PIXELS = 100_000_000
"""Most pixels of an image unless told otherwise; decoding as many takes up to 800 MB."""


class ImageError(InputError):
    """An image that cannot be used.

    `reason` is a phrase that other images may share, with what is special to this one in brackets; `remedy` is what
    to do. It can be pickled, so it may cross from one process to another.
    """

    def __init__(self, name: str, reason: str, remedy: str = "replace it or take it out") -> None:
        super().__init__(name, reason, remedy)
        self.name, self.reason, self.remedy = name, reason, remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}: {self.remedy}."


def file_content(path: str | Path) -> bytes:
    """Return an encoded image. Raises ImageError, naming the file, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(str(path), f"no file that can be read ({error.strerror})") from error


def read_image(data: bytes, *, channels: int, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode one image as `open_image` does; uint8 (channels, height, width), where 255 is full light."""
    values = np.array(open_image(data, channels=channels, name=name, max_pixels=max_pixels))
    planes = values.reshape(*values.shape[:2], channels).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))  # PyTorch takes twice as long to lay out so few numbers


def open_image(data: bytes, *, channels: int, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image.

    `channels` is 3 (red, green, blue) or 1 (grey: 0.299 red, 0.587 green and 0.114 blue). The image stands as its EXIF
    orientation says, transparent parts lie on white, and of an animation the first frame is taken. Grey of 16 bits is
    scaled, 65535 to 255, and floating point too, 1.0 to 255.

    Raises `ImageError` with `name` for what is no image, damaged, cut short, or of more than `max_pixels` pixels, which
    is seen before they are decoded. Raises ValueError for any other number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} is neither grey nor colour: choose 1 or 3.")
    try:
        image = _open(data, name)
        pixels = image.width * image.height
        if pixels > max_pixels:
            size = f"{image.width} x {image.height} = {pixels:,}"
            raise ImageError(name, f"more pixels than max_pixels={max_pixels:,} ({size})")
        with _without_bomb_warning(pixels):
            upright = ImageOps.exif_transpose(image)
        return _flat(upright, name).convert("L" if channels == 1 else "RGB")
    except ImageError:
        raise
    except Exception as error:  # of many kinds, SyntaxError among them; all of them concern the data
        raise ImageError(name, f"cannot be decoded ({one_line(error)})") from error


def _open(data: bytes, name: str) -> ImageFile:
    """Read the header, as `Image.open` does, without its limit on pixels: that one is global, and warns."""
    Image.init()
    for kind, (read_header, accepts) in Image.OPEN.items():
        if kind in KINDS and accepts is not None and accepts(data[:16]):
            return read_header(BytesIO(data), "")
    found = f"it begins with {data[:12]!r}" if data else "it is empty"
    raise ImageError(name, f"no image of a known kind ({found})")


def _without_bomb_warning(pixels: int) -> AbstractContextManager[object]:
    """Silence Pillow's own limit where an image is above it; filters are global, so all others leave them alone."""
    if Image.MAX_IMAGE_PIXELS is None or pixels <= Image.MAX_IMAGE_PIXELS:
        return nullcontext()
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def _flat(image: Image.Image, name: str) -> Image.Image:
    """Return the image on white, with 8 bits a channel and nothing to see through: grey, or red, green and blue."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("1", "L") else image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale grey values of 16 bits or floating point; Pillow would clip them at 255."""
    values, white = np.asarray(image), 1 if image.mode == "F" else 65535
    if not ((values >= 0) & (values <= white)).all():
        span = f"from {values.min():g} to {values.max():g}"
        raise ImageError(name, f"grey values beyond 0 to {white}, which is black to white ({span})")
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], white, values)
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
