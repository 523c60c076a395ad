"""Whatever an image is stored as, the same pixels come out; whatever is none is named. 5 rows of 7, values by hand."""

import pickle
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.decode import ImageError, read_image
from tasks.errors import InputError

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
COLOURS = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)
SOLID, CLEAR = 255, 0


def encoded(image, kind="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, channels=3, max_pixels=1000):
    return read_image(data, channels=channels, name="cat.png", max_pixels=max_pixels)


def refusal(data, **options):
    with pytest.raises(ImageError) as caught:
        read(data, **options)
    message = str(caught.value)
    assert message.startswith("cat.png: ") and message.endswith(": replace it or take it out.") and "\n" not in message
    return message


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows, *between):
    """Write a PNG by the letter of its standard."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + b"".join(between) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def same(tensor, expected):
    """Compare with an array (height, width) or (height, width, channels)."""
    values = np.asarray(expected)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
    np.testing.assert_array_equal(tensor.numpy(), values)


def thrice(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


# What is read.


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_colours_come_out_as_they_went_in(kind):
    same(read(encoded(Image.fromarray(COLOURS), kind)), COLOURS)


def test_lossless_webp_and_jpeg_2000_come_out_as_they_went_in():
    same(read(encoded(Image.fromarray(COLOURS), "WEBP", lossless=True)), COLOURS)
    same(read(encoded(Image.fromarray(COLOURS), "JPEG2000")), COLOURS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_an_evenly_coloured_image_survives_compression(kind):
    image = Image.new("RGB", (7, 5), (200, 100, 50))
    got = read(encoded(image, kind, quality=95)).int()
    assert got.shape == (3, 5, 7)
    assert (got - torch.tensor([200, 100, 50]).view(3, 1, 1)).abs().max() <= 4


def test_grey_becomes_three_equal_channels_or_stays_one():
    data = encoded(Image.fromarray(GREY))
    same(read(data), thrice(GREY))
    same(read(data, channels=1), GREY)


def test_colour_becomes_grey_by_the_weights_of_itu_601():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [10, 20, 30], [0, 0, 0]]], np.uint8)
    # 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.1; 2.99 + 11.74 + 3.42 = 18.15
    same(read(encoded(Image.fromarray(colours)), channels=1), [[76, 150, 29], [255, 18, 0]])


def test_one_bit_is_black_or_white():
    data = png(7, 2, 1, 0, [bytes([0b1010_0010]), bytes([0b0111_1110])])
    expected = [[255, 0, 255, 0, 0, 0, 255], [0, 255, 255, 255, 255, 255, 255]]
    same(read(data, channels=1), expected)
    same(read(data), thrice(expected))


PALETTE = bytes([10, 20, 30, 255, 0, 0, 0, 0, 255])
LOOKED_UP = np.array([[[10, 20, 30], [255, 0, 0]], [[0, 0, 255], [10, 20, 30]], [[255, 0, 0], [255, 0, 0]]])


def test_a_palette_is_looked_up():
    data = png(2, 3, 8, 3, [b"\0\1", b"\2\0", b"\1\1"], chunk(b"PLTE", PALETTE))
    same(read(data), LOOKED_UP)
    same(read(data, channels=1), [[18, 76], [29, 18], [76, 76]])


def test_a_transparent_palette_lies_on_white():
    transparency = chunk(b"tRNS", bytes([CLEAR, SOLID, 51]))
    data = png(2, 3, 8, 3, [b"\0\1", b"\2\0", b"\1\1"], chunk(b"PLTE", PALETTE), transparency)
    # A fifth of blue over four fifths of white: 0.8 * 255 = 204.
    white, red = [255, 255, 255], [255, 0, 0]
    same(read(data), [[white, red], [[204, 204, 255], white], [red, red]])


def test_a_transparent_image_lies_on_white_in_colour_and_in_grey():
    rgba = np.array([[[9, 9, 9, CLEAR], [0, 100, 250, SOLID], [0, 0, 0, 51]]], np.uint8)
    same(read(encoded(Image.fromarray(rgba))), [[[255, 255, 255], [0, 100, 250], [204, 204, 204]]])
    la = np.array([[[9, CLEAR], [100, SOLID], [0, 51]]], np.uint8)
    for channels, expected in [(1, [[255, 100, 204]]), (3, thrice([[255, 100, 204]]))]:
        same(read(encoded(Image.fromarray(la, "LA")), channels), expected)


def test_a_single_transparent_colour_lies_on_white():
    same(read(encoded(Image.fromarray(GREY), transparency=14), channels=1), np.where(GREY == 14, 255, GREY))
    shown = COLOURS.copy()
    shown[0, 3] = 255
    same(read(encoded(Image.fromarray(COLOURS), transparency=tuple(COLOURS[0, 3].tolist()))), shown)


def test_ink_is_taken_from_white():
    # Light is 255 minus the ink of that colour, and then the share that black leaves; rounded.
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 51, 102, 0): (255, 204, 153)}
    inks |= {(0, 0, 0, 255): (0, 0, 0), (0, 0, 255, 102): (153, 153, 0)}
    data = encoded(Image.fromarray(np.array([list(inks)], np.uint8), "CMYK"), "TIFF")
    same(read(data), [list(inks.values())])


def test_the_inverted_inks_of_adobe_are_turned_back():
    image = Image.new("CMYK", (7, 5), (0, 51, 102, 0))
    data = encoded(image, "JPEG", quality=100)
    assert b"Adobe" in data and Image.open(BytesIO(data)).info["adobe_transform"] == 0
    assert (read(data).int() - torch.tensor([255, 204, 153]).view(3, 1, 1)).abs().max() <= 2


DEEP = np.array([[0, 257, 65535, 256], [128, 129, 32896, 1000], [40000, 65278, 65400, 65407]], np.uint16)
SHALLOW = [[0, 1, 255, 1], [0, 1, 128, 4], [156, 254, 254, 255]]  # by 257, to the nearest


def test_grey_of_16_bits_is_scaled_not_clipped():
    data = png(4, 3, 16, 0, [row.astype(">u2").tobytes() for row in DEEP])
    same(read(data, channels=1), SHALLOW)
    same(read(data), thrice(SHALLOW))


@pytest.mark.parametrize(
    ("kind", "values", "mode"),
    [("TIFF", DEEP, "I;16"), ("TIFF", DEEP.astype(">u2"), "I;16B"), ("TIFF", DEEP.astype(np.int32), "I"),
     ("PPM", DEEP, "I")],
)  # fmt: skip
def test_grey_of_16_bits_is_scaled_however_pillow_holds_it(kind, values, mode):
    data = encoded(Image.fromarray(values), kind)
    assert Image.open(BytesIO(data)).mode == mode
    same(read(data, channels=1), SHALLOW)


def test_a_transparent_grey_of_16_bits_is_white():
    data = png(4, 3, 16, 0, [row.astype(">u2").tobytes() for row in DEEP], chunk(b"tRNS", struct.pack(">H", 1000)))
    expected = np.array(SHALLOW)
    expected[1, 3] = 255
    same(read(data, channels=1), expected)


def test_floating_point_from_0_to_1_is_scaled_and_all_else_is_refused():
    values = np.array([[0, 1, 0.5, 0.2], [0.1, 0.9, 0.25, 0.75]], np.float32)
    same(read(encoded(Image.fromarray(values), "TIFF"), channels=1), [[0, 255, 128, 51], [26, 230, 64, 191]])
    for stray in (255.0, -0.1, float("nan")):
        values[1, 2] = stray
        assert "grey values beyond 0 to 1" in refusal(encoded(Image.fromarray(values), "TIFF"))


def test_grey_beyond_16_bits_is_refused():
    values = DEEP.astype(np.int32)
    values[2, 1] = 70_000
    assert "from 0 to 70000" in refusal(encoded(Image.fromarray(values), "TIFF"))


UPRIGHT = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: GREY[::-1].T,  # the first row shown is the first column stored, read upwards
    7: GREY[::-1, ::-1].T,
    8: GREY[:, ::-1].T,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_image_stands_as_its_exif_orientation_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    same(read(encoded(Image.fromarray(GREY), kind, exif=exif, **options), channels=1), UPRIGHT[orientation])


def test_a_photograph_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 16, axis=1).repeat(8, axis=0))
    turned = read(encoded(image, "JPEG", exif=exif), channels=1)
    assert turned.shape == (1, 16, 16)
    assert turned[0, :, 10:].max() < 9 and turned[0, :, :6].min() > 246  # what was on top is at the right


def test_deep_grey_and_palettes_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    same(read(encoded(Image.fromarray(DEEP), exif=exif), channels=1), np.array(SHALLOW)[::-1].T)
    image = Image.open(BytesIO(png(2, 3, 8, 3, [b"\0\1", b"\2\0", b"\1\1"], chunk(b"PLTE", PALETTE))))
    same(read(encoded(image, exif=exif)), LOOKED_UP[::-1].swapaxes(0, 1))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (7, 5), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert Image.open(BytesIO(data)).n_frames == 3
        same(read(data), np.full((5, 7, 3), (255, 0, 0)))


# What is refused.


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.9])
def test_an_image_that_was_cut_short_is_refused(kind, kept):
    noise = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    message = refusal(whole[: int(len(whole) * kept)], max_pixels=10_000)
    assert "cannot be decoded (" in message


def test_a_png_of_which_a_byte_was_changed_is_refused():
    data = bytearray(encoded(Image.fromarray(COLOURS)))
    data[-20] ^= 1
    assert "cannot be decoded (" in refusal(bytes(data))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "it is empty"),
        (b"<html>\nnot found", r"it begins with b'<html>\nnot f'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 5\n", "it begins with b'%!PS-Adobe-3'"),
        (bytes(100), "it begins with"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_begins_with(data, found):
    message = refusal(data)
    assert f"no image of a known kind ({found}" in message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_the_pixels_may_be_as_many_as_the_limit_and_no_more(kind):
    data = encoded(Image.fromarray(GREY), kind)
    assert read(data, max_pixels=35).shape == (3, 5, 7)
    assert "more pixels than max_pixels=34 (7 x 5 = 35)" in refusal(data, max_pixels=34)


def test_the_limit_is_seen_in_the_header_before_anything_is_decoded():
    data = png(50_000, 60_000, 8, 0, [b"no pixels"])
    assert "max_pixels=1,000 (50000 x 60000 = 3,000,000,000)" in refusal(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_limit_of_pillow_is_neither_heard_nor_moved(kind, monkeypatch):
    data = encoded(Image.fromarray(GREY), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(BytesIO(data)).load()
    before = list(warnings.filters)
    assert read(data, max_pixels=35).shape == (3, 5, 7)
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == (20, before)


def test_a_limit_above_the_one_of_pillow_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(Image.fromarray(GREY))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(data))
    same(read(data, channels=1), GREY)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"channels={channels} is neither grey nor colour: choose 1 or 3") as caught:
        read(encoded(Image.fromarray(GREY)), channels=channels)
    assert not isinstance(caught.value, InputError)


def test_the_error_crosses_from_one_process_to_another():
    error = ImageError("cat.png", "damaged", "paint it again")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, InputError)
    assert str(copy) == str(error) == "cat.png: damaged: paint it again."
