"""What an image file says beside its pixels, taken out of the file before Pillow opens it.

Pillow reads all of it on the way to the pixels, and gives the picture up where it is damaged or
large. Of no use here but orientation and colour profile, it is to cost neither.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAX_EXPANDED = 4 << 20  # bytes that a compressed block may grow to; profiles are up to 3 MB
_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = {0xE0, 0xEE}  # of JPEG's APP0 to APP15: how colours are coded (JFIF, Adobe)
_COMMENT, _START_OF_SCAN = 0xFE, 0xDA
_ORIENTATION, _NUMBERS = 0x0112, {1: "B", 3: "H", 4: "I"}  # of EXIF: a tag, and types by number
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


@dataclass(frozen=True)
class Metadata:
    """Blocks as they are, possibly damaged; empty where there is none."""

    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""  # ICC

    @property
    def orientation(self) -> int:
        """By EXIF, else by XMP: 1 to 8, where 1 is upright; 1 if neither can be read."""
        if (value := _orientation_in_exif(self.exif.removeprefix(b"Exif\0\0"))) is not None:
            return value
        found = _XMP_ORIENTATION.search(self.xmp)
        return int(found[1]) if found else 1


def _orientation_in_exif(block: bytes) -> int | None:
    """The value, whatever else in the block is damaged: Pillow would stop at the first such."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, at)
            if tag == _ORIENTATION and kind in _NUMBERS:
                return struct.unpack_from(order + _NUMBERS[kind], block, at + 8)[0]
    except struct.error:  # cut short
        pass
    return None


def split_file(data: bytes) -> tuple[bytes, Metadata]:
    """An image file without its metadata, and them; only of JPEG and PNG, else all as it is."""
    if data.startswith(_PNG):
        return _split_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _split_jpeg(data)
    return data, Metadata()


def _split_jpeg(data: bytes) -> tuple[bytes, Metadata]:
    view, begin, exif, xmp = memoryview(data), 0, b"", b""
    kept: list[bytes | memoryview] = []
    profile: dict[int, bytes] = {}  # its parts by number
    for marker, start, end in _segments(data):
        if marker != _COMMENT and (not 0xE0 <= marker <= 0xEF or marker in _NEEDED):
            continue
        kept.append(view[begin:start])
        begin = end
        content = data[start + 4 : end]
        if marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif += content[6:]  # what is longer than a segment goes on in the next
        elif marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = content
        elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
            profile[content[12]] = content[14:]
    kept.append(view[begin:])
    joined = b"".join(profile[number] for number in sorted(profile))
    return b"".join(kept), Metadata(exif, xmp, joined)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the first scan, as far as they are whole."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _START_OF_SCAN or end > len(data) or end < at + 4:
            return
        yield marker, at, end
        at = end


def _split_png(data: bytes) -> tuple[bytes, Metadata]:
    view, at = memoryview(data), len(_PNG)
    kept: list[bytes | memoryview] = [_PNG]
    found: dict[bytes, bytes] = {}
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        if not name[0] & 0x20 or name == b"tRNS":  # upper case: the pixels need it
            kept.append(view[at:end])
        elif zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
            keyword, content = _read_chunk(name, data[at + 8 : end - 4])
            found[keyword] = content
        at = end
    kept.append(view[at:])
    exif = found.get(b"eXIf") or _from_hex(found.get(b"Raw profile type exif", b""))
    xmp = found.get(b"XML:com.adobe.xmp", b"")
    return b"".join(kept), Metadata(exif, xmp, found.get(b"iCCP", b""))


def _read_chunk(name: bytes, content: bytes) -> tuple[bytes, bytes]:
    """What to call a chunk that is not needed for the pixels, and what it holds."""
    keyword, _, rest = content.partition(b"\0")
    if name == b"iCCP":
        return name, _expand(rest[1:])
    if name == b"tEXt":
        return keyword, rest
    if name == b"zTXt":
        return keyword, _expand(rest[1:])
    if name == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
        return keyword, _expand(text) if rest[:1] == b"\1" else text
    return name, content


def _expand(stream: bytes) -> bytes:
    """What a zlib stream holds; nothing where it is damaged or too much."""
    expander = zlib.decompressobj()
    try:
        expanded = expander.decompress(stream, MAX_EXPANDED)
    except zlib.error:
        return b""
    return expanded if expander.eof else b""


def _from_hex(block: bytes) -> bytes:
    """A block as ImageMagick writes it: an empty line, its name, its length, and digits."""
    try:
        return bytes.fromhex(b"".join(block.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
