"""What a file says beside its pixels turns the picture, and never costs it."""

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.images import decode_image
from pqvae.metadata import MAX_EXPANDED, split_file

SIDE = 16
ROOT = Path(__file__).parents[2]
ORIENTATION = 0x0112


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    best = {"quality": 100, "subsampling": 0}
    chosen = {"WEBP": {"lossless": True}, "JPEG": best, "MPO": best}.get(kind, {})
    buffer = io.BytesIO()
    image.save(buffer, kind, **chosen, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    block[0x010E] = "a description"
    return block.tobytes()


def with_chunk(data: bytes, name: bytes, content: bytes, damage: int = 0) -> bytes:
    """A PNG with another chunk after its header."""
    checksum = struct.pack(">I", zlib.crc32(name + content) ^ damage)
    return data[:33] + struct.pack(">I", len(content)) + name + content + checksum + data[33:]


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """A JPEG with another segment at its start."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


TURNS: list[Callable[[Tensor], Tensor]] = [
    lambda image: image,
    lambda image: image.flip(2),
    lambda image: image.rot90(2, (1, 2)),
    lambda image: image.flip(1),
    lambda image: image.transpose(1, 2),
    lambda image: image.rot90(-1, (1, 2)),
    lambda image: image.rot90(2, (1, 2)).transpose(1, 2),
    lambda image: image.rot90(1, (1, 2)),
]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture(kind: str, orientation: int) -> None:
    expected = TURNS[orientation - 1](decode_image(encoded(noise(), kind), SIDE))
    found = decode_image(encoded(noise(), kind, exif=exif(orientation)), SIDE)
    assert torch.equal(found, expected)


def test_orientation_is_found_in_xmp_and_in_the_text_of_older_pngs() -> None:
    expected = TURNS[5](decode_image(encoded(noise()), SIDE))
    xmp = b'<rdf tiff:Orientation="6"/>'
    lines = b"\nexif\n%8d\n%s\n" % (len(exif(6)), exif(6).hex().encode())
    for name, content in (
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp)),
        (b"tEXt", b"Raw profile type exif\0" + lines),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines)),
    ):
        data = with_chunk(encoded(noise()), name, content)
        assert torch.equal(decode_image(data, SIDE), expected), content
    jpeg = encoded(noise(), "JPEG")
    data = with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    assert torch.equal(decode_image(data, SIDE), TURNS[5](decode_image(jpeg, SIDE)))


def damaged_pngs() -> list[bytes]:
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"  # orientation; count and value follow
    profile = b"\nexif\n      20\n4949zz\n"
    blocks = [
        (b"eXIf", b"\x12\x34 no TIFF header"),
        (b"eXIf", tag[:-6]),
        (b"eXIf", tag + b"\xff\xff\0\xff\xff\xff"),
        (b"tEXt", b"Raw profile type exif\0" + profile),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        (b"zTXt", b"a comment\0\0 not compressed"),
        (b"iTXt", b""),
        (b"iCCP", b"profile"),
        (b"acTL", bytes(8)),  # an animation of no frames
    ]
    return [with_chunk(encoded(noise()), *block) for block in blocks] + [
        with_chunk(encoded(noise()), b"eXIf", exif(6)[6:], damage=1)
    ]


def test_damaged_blocks_in_pngs_leave_the_picture_as_it_is() -> None:
    expected = decode_image(encoded(noise()), SIDE)
    for data in damaged_pngs():
        assert torch.equal(decode_image(data, SIDE), expected)


def test_damaged_segments_of_jpegs_never_cost_the_picture() -> None:
    jpeg, rng = encoded(noise(), "JPEG"), random.Random(0)
    upright = decode_image(jpeg, SIDE)
    allowed = [turn(upright) for turn in TURNS]
    phone = encoded(noise(), "MPO", save_all=True, append_images=[noise()])
    at = phone.index(b"MPF\0")
    segments = [
        (0xE1, exif(6)),
        (0xE2, phone[at : at + 100]),
        (0xE2, b"ICC_PROFILE\0\1"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4" + bytes(9)),
    ]
    for marker, content in segments:
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(rng.choice([1, 2, 5])):
                damaged[rng.randrange(6, len(damaged))] = rng.choice([0, 255, rng.randrange(256)])
            found = decode_image(with_segment(jpeg, marker, bytes(damaged)), SIDE)
            assert any(torch.equal(found, picture) for picture in allowed)


def test_orientation_counts_where_another_tag_is_damaged() -> None:
    block = bytearray(exif(6))
    at = block.index(b"\x01\x0e\0\x02") + 8  # where the description lies: far away now
    block[at : at + 4] = b"\x7f\0\0\0"
    for kind in ("PNG", "JPEG"):
        expected = TURNS[5](decode_image(encoded(noise(), kind), SIDE))
        assert torch.equal(decode_image(encoded(noise(), kind, exif=bytes(block)), SIDE), expected)


def test_frames_after_the_first_and_bytes_after_the_end_do_not_count() -> None:
    expected = decode_image(encoded(noise(), "JPEG"), SIDE)
    other = Image.new("RGB", (SIDE, SIDE))
    phone = encoded(noise(), "MPO", save_all=True, append_images=[other])
    assert torch.equal(decode_image(phone, SIDE), expected)
    assert torch.equal(decode_image(encoded(noise(), "JPEG") + bytes(999), SIDE), expected)


@pytest.mark.parametrize(
    ("name", "start"),
    [(b"zTXt", b"parameters\0\0"), (b"iTXt", b"workflow\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
)
@pytest.mark.parametrize("late", [False, True])
def test_text_and_profiles_of_any_size_are_passed_over(
    name: bytes, start: bytes, late: bool
) -> None:
    expected, data = decode_image(encoded(noise()), SIDE), encoded(noise())
    expander = zlib.compressobj()
    stream = b"".join(expander.compress(bytes(1 << 20)) for _ in range(40)) + expander.flush()
    large = with_chunk(data, name, start + stream)
    if late:  # after the pixels
        chunk = large[33 : len(large) - len(data) + 33]
        large = data[:-12] + chunk + data[-12:]
    assert torch.equal(decode_image(large, SIDE), expected)
    _, metadata = split_file(large)
    assert max(len(metadata.profile), len(metadata.xmp), len(metadata.exif)) <= MAX_EXPANDED


def test_nothing_of_pillow_reaches_stderr(tmp_path: Path) -> None:
    tag = b"MM\0*\0\0\0\x08\0\x01\x01\x0e\0\x02\0\0\xff\xff\0\xff\xff\xff"
    for index, data in enumerate([*damaged_pngs(), encoded(noise(), "WEBP", exif=tag)]):
        (tmp_path / f"{index:02d}").write_bytes(data)
    wide = encoded(Image.new("1", (10_000, 9_500)))  # above what Pillow warns of
    (tmp_path / "wide").write_bytes(wide)
    program = (
        "import sys; from pathlib import Path; from pqvae.images import decode_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()): decode_image(path.read_bytes(), 8)"
    )
    command = [sys.executable, "-W", "always", "-c", program, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
