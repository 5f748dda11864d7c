"""Colours of every kind become 8 bits of sRGB over white, or the picture is refused by name."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pqvae.images import ImageError, decode_image

SIDE = 16
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def filled(mode: str, colour: int | tuple[int, ...]) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def colour_of(data: bytes) -> list[int]:
    image = decode_image(data, SIDE)
    assert (image == image[:, :1, :1]).all()
    return image[:, 0, 0].tolist()


def png(pixels: np.ndarray, depth: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (H, W, 1 or 3) with so many bits a channel; below 8 bits of one channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, depth, 0 if channels == 1 else 2, 0, 0, 0)
    bits = pixels.reshape(height, -1, 1) >> np.arange(depth)[::-1] & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def wide_profile() -> bytes:
    """The profile of sRGB with the primaries of Display P3."""
    profile = bytearray(SRGB)
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for name, numbers in primaries.items():
        entry = profile.index(name)
        at = int.from_bytes(profile[entry + 4 : entry + 8], "big") + 8
        profile[at : at + 12] = struct.pack(">3i", *(round(65536 * n) for n in numbers))
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [65535, 4095, 255])
def test_16_bits_reach_to_65535_also_in_a_dark_picture(kind: str, top: int) -> None:
    values = np.linspace(0, top, SIDE * SIDE).reshape(SIDE, SIDE)
    image = decode_image(encoded(Image.fromarray(values.astype(np.uint16)), kind), SIDE)
    expected = torch.from_numpy((values.astype(np.uint16) / 257).round())
    assert torch.equal(image[0].double(), expected)
    assert image.double().mean() == pytest.approx(127.5 * top / 65535, abs=0.5)


def test_big_endian_and_netpbm_16_bits_are_alike() -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(">u2")
    expected = decode_image(encoded(Image.fromarray(values.astype("<u2"))), SIDE)
    assert torch.equal(decode_image(encoded(Image.fromarray(values), "TIFF"), SIDE), expected)
    netpbm = b"P5 %d %d 65535\n" % (SIDE, SIDE) + values.tobytes()
    assert torch.equal(decode_image(netpbm, SIDE), expected)


@pytest.mark.parametrize("top", [1.0, 255.0, 254.5])
def test_floats_are_read_by_their_range(top: float) -> None:
    values = np.linspace(0, top, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    image = decode_image(encoded(Image.fromarray(values), "TIFF"), SIDE)
    expected = torch.from_numpy(values * (255 if top == 1 else 1))
    assert (image.float() - expected).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(0, 300, "0 to 300"), (-1, 1, "-1 to 1"), (0, np.inf, "inf"), (np.nan, 1, "nan")],
)
def test_floats_of_another_range_are_refused_by_name(low: float, high: float, named: str) -> None:
    values = np.array([[low, high]], np.float32)
    with pytest.raises(ImageError, match=f"mode F with values from .*{named}"):
        decode_image(encoded(Image.fromarray(values), "TIFF"), SIDE)


def test_32_bits_are_refused_by_name() -> None:
    data = encoded(Image.fromarray(np.full((SIDE, SIDE), 200, np.int32)), "TIFF")
    with pytest.raises(ImageError, match=r"mode I .*white is not known"):
        decode_image(data, SIDE)


@pytest.mark.parametrize(
    ("depth", "channels", "key", "near"),
    [(16, 1, 1000, 1001), (16, 3, 1000, 1001), (8, 3, 7, 8), (8, 1, 7, 8), (4, 1, 3, 4)],
)
def test_the_transparent_colour_of_a_png_is_compared_in_all_its_bits(
    depth: int, channels: int, key: int, near: int
) -> None:
    pixels = np.full((SIDE, SIDE, channels), near)
    pixels[: SIDE // 2] = key
    chunk = struct.pack(f">{channels}H", *[key] * channels)
    image = decode_image(png(pixels, depth, (b"tRNS", chunk)), SIDE)
    assert (image[:, : SIDE // 2] == 255).all()
    # Pillow cuts colours of 16 bits instead of rounding them.
    assert (image[:, SIDE // 2 :] - near * 255 / (2**depth - 1)).abs().max() < 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(filled("LA", (0, 51)), "TIFF"), [204, 204, 204]),
        (encoded(filled("RGBA", (255, 0, 0, 51)), "TGA"), [255, 204, 204]),
        (encoded(filled("RGBA", (255, 0, 0, 51)), "ICO", sizes=[(SIDE, SIDE)]), [255, 204, 204]),
        (encoded(filled("YCbCr", (76, 85, 255)), "TIFF"), [254, 0, 0]),
        (encoded(filled("LAB", (136, 208, 195)), "TIFF"), [250, 3, 11]),
    ],
    ids=["LA", "TGA", "ICO", "YCbCr", "LAB"],
)
def test_other_modes_become_rgb_over_white(data: bytes, expected: list[int]) -> None:
    assert np.abs(np.array(colour_of(data)) - expected).max() <= 1


P3_COLOURS = [((220, 90, 40), (238, 78, 4)), ((40, 200, 60), (0, 204, 12))]


@pytest.mark.parametrize(("colour", "expected"), P3_COLOURS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_of_a_profile_become_those_of_srgb(
    kind: str, colour: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
    }.get(kind, {})
    data = encoded(filled("RGB", colour), kind, icc_profile=wide_profile(), **options)
    assert np.abs(np.array(colour_of(data)) - expected).max() <= 2


def test_transparent_and_palette_pictures_with_a_profile_are_converted_before_white() -> None:
    colour, (r, g, b) = P3_COLOURS[0]
    image = filled("RGBA", (*colour, 51))
    found = colour_of(encoded(image, icc_profile=wide_profile()))
    assert np.abs(np.array(found) - [204 + c / 5 for c in (r, g, b)]).max() <= 2
    found = colour_of(encoded(filled("RGB", colour).quantize(2), icc_profile=wide_profile()))
    assert np.abs(np.array(found) - [r, g, b]).max() <= 2


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", SRGB),
        ("RGB", wide_profile()[:200]),
        ("RGB", b"no profile"),
        ("RGB", bytes(5 << 20)),
        ("L", wide_profile()),
    ],
    ids=["sRGB", "cut", "junk", "5 MB", "of another mode"],
)
def test_profiles_of_srgb_and_those_that_say_nothing_leave_the_pixels(
    mode: str, profile: bytes
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    expected = decode_image(encoded(image), SIDE)
    assert torch.equal(decode_image(encoded(image, icc_profile=profile), SIDE), expected)
