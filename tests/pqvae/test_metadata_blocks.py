"""Blocks beside the pixels: which are taken out of a file, and what is read in them."""

import struct

import pytest

from pqvae.metadata import Metadata, split_file

EXIF = b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif(order: str, kind: str, value: int, before: int = 0) -> bytes:
    """A block with so many other tags before the orientation, which is of type B, H or I."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    number = {"B": 1, "H": 3, "I": 4}[kind]
    entries = b"".join(struct.pack(f"{order}HHII", 0x0100 + i, 4, 1, 9) for i in range(before))
    held = struct.pack(order + kind, value).ljust(4, b"\0")
    entries += struct.pack(f"{order}HHI", 0x0112, number, 1) + held
    return mark + struct.pack(f"{order}IH", 8, before + 1) + entries


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["B", "H", "I"])
@pytest.mark.parametrize("before", [0, 3])
def test_orientation_is_read_in_both_orders_of_bytes_and_every_type(
    order: str, kind: str, before: int
) -> None:
    block = exif(order, kind, 6, before)
    assert Metadata(exif=block).orientation == 6
    assert Metadata(exif=EXIF + block).orientation == 6
    assert Metadata(exif=block, xmp=b'tiff:Orientation="3"').orientation == 6
    assert Metadata(exif=block[:-5], xmp=b'tiff:Orientation="3"').orientation == 3
    assert Metadata(xmp=b"<tiff:Orientation>8<").orientation == 8
    assert Metadata(exif=b"XX" + block[2:]).orientation == 1


def test_what_a_jpeg_says_beside_its_pixels_is_taken_out_of_it() -> None:
    block = exif("<", "H", 6)
    jfif, adobe = segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe\0")
    tables = segment(0xDB, b"tables")
    pixels = segment(0xDA, b"scan") + b"pixels \xff\xe1\0\x08Exif\0\0 and no segment \xff\xd9"
    data = b"".join(
        [
            b"\xff\xd8",
            jfif,
            segment(0xE1, EXIF + block[:12]),
            segment(0xE1, EXIF + block[12:]),  # what is too long for one goes on in the next
            segment(0xE1, XMP + b"text"),
            segment(0xE2, b"ICC_PROFILE\0\2\2second"),
            segment(0xE2, b"ICC_PROFILE\0\1\2first "),
            segment(0xE2, b"FPXR"),
            b"\xff",  # padding
            segment(0xED, b"Photoshop"),
            adobe,
            segment(0xEF, b"any"),
            segment(0xFE, b"a comment"),
            tables,
            pixels,
        ]
    )
    bare, metadata = split_file(data)
    assert bare == b"\xff\xd8" + jfif + b"\xff" + adobe + tables + pixels
    assert metadata.profile == b"first second"
    assert metadata.xmp.endswith(b"text")
    assert metadata.exif == block
    assert metadata.orientation == 6


def test_a_segment_that_ends_behind_the_file_is_left_in_it() -> None:
    cut = b"\xff\xd8" + segment(0xE1, EXIF + exif("<", "H", 6))[:-3]
    assert split_file(cut) == (cut, Metadata())
