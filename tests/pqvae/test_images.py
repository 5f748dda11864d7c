"""Pixels in every form: what each kind of file decodes to, and the conversions between forms."""

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.images import (
    EXTENSIONS,
    FORMATS,
    SNIFFED_BYTES,
    UNREAD_EXTENSIONS,
    ImageError,
    decode_image,
    encode_png,
    is_image_data,
    psnr,
    save_grid,
    to_float,
    to_uint8,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def filled(mode: str, colour: int | tuple[int, ...]) -> Image.Image:
    return Image.new(mode, (16, 16), colour)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


def assert_filled(image: Tensor, colour: tuple[int, int, int], tolerance: int = 0) -> None:
    assert image.dtype == torch.uint8
    difference = image.int() - torch.tensor(colour)[:, None, None]
    assert difference.abs().max() <= tolerance, image[:, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_a_lossless_file_of_the_right_size_keeps_every_pixel(kind: str) -> None:
    image = noise(16, 16)
    options = {"lossless": True} if kind == "WEBP" else {}
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(decode_image(encoded(image, kind, **options), 16), expected)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(filled("L", 77)), (77, 77, 77)),
        (encoded(filled("1", 1)), (255, 255, 255)),
        (palette(), (10, 20, 30)),
        (palette(transparency=1), (255, 255, 255)),
        (encoded(filled("RGBA", (255, 0, 0, 0))), (255, 255, 255)),
        (encoded(filled("RGBA", (255, 0, 0, 255))), RED),
        (encoded(filled("RGBA", (255, 0, 0, 51))), (255, 204, 204)),  # a fifth red, the rest white
        (encoded(filled("LA", (0, 51))), (204, 204, 204)),
        (encoded(filled("RGB", RED), transparency=RED), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((16, 16), 0x8080, np.uint16))), (128, 128, 128)),
        (encoded(filled("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    ],
    ids=["L", "1", "P", "P0", "clear", "opaque", "RGBA", "LA", "RGB0", "I;16", "CMYK"],
)
def test_every_mode_becomes_rgb_over_white(data: bytes, colour: tuple[int, int, int]) -> None:
    assert_filled(decode_image(data, 16), colour)


def test_a_cmyk_jpeg_decodes_to_its_colour() -> None:
    data = encoded(filled("CMYK", (0, 255, 255, 0)), "JPEG", quality=95)
    assert_filled(decode_image(data, 16), RED, tolerance=3)  # JPEG rounds


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [filled("RGB", RED), filled("RGB", BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert_filled(decode_image(data, 16), RED)


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1)])
def test_an_extreme_aspect_is_cropped_to_its_centre(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), RED, np.uint8)
    pixels.reshape(-1, 3)[900:1100] = BLUE
    assert_filled(decode_image(encoded(Image.fromarray(pixels)), 16), BLUE)


def test_resizing_keeps_the_mean_colour_of_the_central_square() -> None:
    pixels = np.full((64, 128, 3), RED, np.uint8)
    pixels[:, 32:96] = 0
    pixels[:, 32:96:2] = 200
    image = decode_image(encoded(Image.fromarray(pixels)), 16)
    # Lanczos rings by a few levels next to the borders.
    assert (image[:, :, 2:-2].float().mean() - 100).abs() < 2


def texture(height: int, width: int) -> Image.Image:
    """Edges and grain at every scale, as in photographs."""
    generator, total = np.random.default_rng(0), np.zeros((height, width, 3))
    for side in (1, 2, 4, 8, 16, 32, 64):
        coarse = generator.random((-(-height // side), -(-width // side), 3))
        total += np.kron(coarse, np.ones((side, side, 1)))[:height, :width]
    return Image.fromarray(((total - total.min()) / np.ptp(total) * 255).astype(np.uint8))


# Decoded at a half, a quarter, an eighth; whole, as 3 is not among them; by the longer side, whose
# borders are far from the square, or not.
@pytest.mark.parametrize(
    ("shape", "size", "exact"),
    [
        ((256, 256), 32, False),
        ((512, 512), 32, False),
        ((768, 768), 32, False),
        ((257, 257), 32, True),
        ((256, 501), 32, False),
        ((256, 271), 32, True),
    ],
)
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_decodes_as_a_png_of_its_pixels(
    shape: tuple[int, int], size: int, exact: bool, subsampling: int
) -> None:
    jpeg = encoded(texture(*shape), "JPEG", quality=95, subsampling=subsampling)
    png = encoded(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    found, expected = decode_image(jpeg, size), decode_image(png, size)
    assert torch.equal(found, expected) == exact
    # Measured: 50 to 54 dB where JPEG decodes to three to six times the size, 44 to 48 at twice.
    assert psnr(found[None], expected[None]) > 49


def test_the_border_of_a_jpeg_weighs_as_in_the_picture_and_nothing_beyond_it_counts() -> None:
    pixels = np.full((257, 257, 3), 255, np.uint8)
    pixels[256] = pixels[:, 256] = RED
    edge = encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)
    corner = decode_image(edge, 32)[:, -1, -1].int()
    assert (corner - torch.tensor([255, 210, 210])).abs().max() <= 3

    for side in (249, 250):  # of a picture of as many blocks
        pixels = np.full((256, 256, 3), 128, np.uint8)
        pixels[side:] = pixels[:, side:] = RED
        data = bytearray(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
        corner = decode_image(bytes(data), 32)[:, -1, -1].int()
        assert (corner - 128).abs().max() <= 3


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_says_how_its_colours_are_coded(subsampling: int) -> None:
    image = Image.new("RGB", (64, 64), (200, 40, 90))
    kept = encoded(image, "JPEG", quality=95, subsampling=0, keep_rgb=True)  # not as YCbCr
    converted = encoded(image.convert("CMYK"), "JPEG", quality=95, subsampling=subsampling)
    for data in (kept, converted):
        colour = decode_image(data, 8).float().mean((1, 2))
        assert (colour - torch.tensor([200.0, 40, 90])).abs().max() <= 3


SAVED = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI", "DDS")
SAVED += ("ICO", "SGI", "PCX", "TGA", "MPO")


@pytest.mark.parametrize("kind", SAVED)
def test_a_format_is_known_by_its_first_bytes_and_read(kind: str) -> None:
    if kind != "MPO" and kind not in FORMATS:
        pytest.skip("this Pillow has no library for it")
    image = noise(8, 8).resize((64, 64), Image.Resampling.BICUBIC)
    data = encoded(image, kind)
    assert is_image_data(data[:SNIFFED_BYTES])
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert psnr(decode_image(data, 64)[None], expected[None]) > 25  # GIF has 256 colours
    endings = {end for end, name in Image.EXTENSION.items() if name == kind}
    assert endings and {end.removeprefix(".") for end in endings} <= EXTENSIONS


def test_no_extension_is_both_read_and_not() -> None:
    assert {"jpg", "jfif", "jpe", "png", "webp", "tif", "tga", "mpo", "pgm"} <= EXTENSIONS
    assert {"heic", "svg", "psd", "cr3", "dng", "exr", "jxl", "eps", "pdf"} <= UNREAD_EXTENSIONS
    assert not EXTENSIONS & UNREAD_EXTENSIONS
    assert ("avif" in EXTENSIONS) != ("avif" in UNREAD_EXTENSIONS)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"BMW, as a text may begin",
        b"P5 is what a text may begin with, too",
        b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(64),  # beside files from a Mac
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",  # in the container of AVIF
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"PK\x03\x04" + bytes(99),
        bytes(SNIFFED_BYTES),
        np.random.default_rng(0).bytes(SNIFFED_BYTES),
    ],
)
def test_what_is_no_image_is_not_taken_for_one(head: bytes) -> None:
    assert not is_image_data(head)


JPEG = encoded(noise(64, 64), "JPEG")
PNG = encoded(noise(64, 64))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not a picture", "not an image"),
        (b"PK\x03\x04" + bytes(99), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:20], "."),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:100], "."),
        (PNG[:3000] + b"damage!" + PNG[3007:], "."),
        (png_header(60_000, 60_000), "."),
        (png_header(10_100, 10_100), "."),
    ],
)
def test_what_cannot_be_decoded_raises_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data, 16)
    assert "\n" not in str(caught.value)


def test_all_byte_values_survive_float_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(images)
    assert (floats.min(), floats.max(), floats.dtype) == (-1, 1, torch.float32)
    assert torch.equal(to_uint8(floats), images)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_psnr_of_a_constant_error_is_the_formula() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    others = torch.stack([images[0] + 1, images[1] + 16])
    expected = torch.tensor([20 * math.log10(255), 20 * math.log10(255 / 16)], dtype=torch.float64)
    torch.testing.assert_close(psnr(others, images), expected)


def test_a_png_of_ours_decodes_to_the_same_pixels() -> None:
    image = decode_image(encoded(noise(16, 16)), 16)
    assert torch.equal(decode_image(encode_png(image), 16), image)


def test_a_grid_shows_each_image_in_its_place(tmp_path: Path) -> None:
    images = torch.stack([torch.full((3, 8, 8), 40 * i, dtype=torch.uint8) for i in range(1, 5)])
    path = tmp_path / "grid.png"
    save_grid(path, images, 3, captions=["a", "b", "c"], zoom=2)
    pixels = np.array(Image.open(path))
    values = [int(pixels[y, x, 0]) for y in (10, 28) for x in (10, 28, 46)]
    assert values == [40, 80, 120, 160, 238, 238]  # two places of the second row stay background
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
