"""Pixels in every form: what each kind of file decodes to, and the conversions between forms."""

import io
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.images import (
    ImageError,
    decode_image,
    encode_png,
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
        (encoded(Image.fromarray(np.full((16, 16), 200, np.int32)), "TIFF"), (200, 200, 200)),
        (encoded(filled("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    ],
    ids=["L", "1", "P", "P0", "clear", "opaque", "RGBA", "LA", "RGB0", "I;16", "I", "CMYK"],
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


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda image: image),
        (2, lambda image: image.flip(2)),
        (3, lambda image: image.rot90(2, (1, 2))),
        (6, lambda image: image.rot90(-1, (1, 2))),
        (8, lambda image: image.rot90(1, (1, 2))),
    ],
)
def test_exif_orientation_turns_the_picture(
    orientation: int, turn: Callable[[Tensor], Tensor]
) -> None:
    image = noise(16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(image), 16)
    assert torch.equal(decode_image(encoded(image, exif=exif), 16), turn(upright))


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


def test_a_large_jpeg_decoded_at_a_lower_scale_looks_the_same() -> None:
    smooth = noise(8, 8).resize((512, 512), Image.Resampling.BICUBIC)
    reference = smooth.resize((32, 32), Image.Resampling.LANCZOS)
    image = decode_image(encoded(smooth, "JPEG", quality=95), 32)
    expected = torch.from_numpy(np.array(reference)).permute(2, 0, 1)
    assert psnr(image[None], expected[None]) > 30


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
