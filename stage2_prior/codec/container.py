"""The .pq file: 8 bytes of header, and a payload of which every beginning is a picture.

    byte 0     0x80, and in its low bits the version (2 bits, 0) and the mode (2 bits)
    bytes 1-2  the model that can read it
    bytes 3-4  shape, 256 log2(width / height) + 2048, in 12 bits; size, 2 log2(longest / 16), in 4
    byte 5     the bytes of the payload - 1
    bytes 6-7  CRC-16 of bytes 0 to 5 and of the codes, two bytes each
    bytes 8-   the payload

Numbers are big-endian. How many codes there are is not said: of those that the payload surely
holds, the first so many whose payload it is and that fit the checksum. This is of the codes, not of
the payload: so it also tells where a prior decodes other codes than were encoded. Of a file that
was cut, which is shorter than it says, it cannot be checked; that file is a coarser picture.
"""

import binascii
import enum
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pqvae.errors import UserError

MAGIC, VERSION = 0x80, 0  # a byte that begins no text
HEADER = 8  # bytes
MOST_BYTES = 256  # of a payload
LARGEST_BOOK = 1 << 16  # K: the checksum takes two bytes of each code
_SHAPES = 1 << 12


class FormatError(UserError):
    """Bytes that are no .pq file, or a damaged one, or one of another model."""


class Mode(enum.IntEnum):
    """How the payload holds the codes."""

    FIXED = 0  # each in as many bits
    STATIC = 1  # each by how frequent it is at its position
    CONTEXT = 2  # each by its probability after those before, under a prior


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        mode: How to read the payload.
        model: Two bytes that know the model.
        size_of_payload: In bytes, 1 to 256.
        shape: Of the picture, in units of 1/256 octave of width over height, -2048 to 2047.
        size: Of its longest side, in units of half an octave above 16 pixels, 0 to 15.
    """

    mode: Mode
    model: bytes
    size_of_payload: int
    shape: int = 0
    size: int = 0

    @classmethod
    def of_picture(
        cls, mode: Mode, model: bytes, size_of_payload: int, width: int, height: int
    ) -> "Header":
        """Of a picture of this many pixels."""
        shape = round(256 * math.log2(width / height))
        size = round(2 * math.log2(max(width, height) / 16))
        half = _SHAPES // 2
        shape, size = max(-half, min(shape, half - 1)), max(0, min(size, 15))
        return cls(mode, model, size_of_payload, shape, size)

    def shown_in(self, side: int | None = None) -> tuple[int, int]:
        """Width and height to show the picture in.

        Args:
            side: Pixels of the longest side; by default about as many as the picture had, right
                to a fifth, and 2,896 at most.

        Returns:
            In a ratio that is right to 0.14%, or to half a pixel.
        """
        longest, ratio = side or 16 * 2 ** (self.size / 2), 2 ** (self.shape / 256)
        width, height = longest * min(1, ratio), longest * min(1, 1 / ratio)
        return max(1, round(width)), max(1, round(height))


def model_id(*hashes: str) -> bytes:
    """How files know a model: the first two bytes of its hash, or of one of all its parts'."""
    if len(hashes) == 1:
        return bytes.fromhex(hashes[0][:4])
    return hashlib.sha256("".join(hashes).encode()).digest()[:2]


def pack(header: Header, codes: Sequence[int], payload: bytes) -> bytes:
    """The file's bytes."""
    shape = (header.shape + _SHAPES // 2) * 16 + header.size
    first, last = MAGIC | VERSION << 2 | header.mode, len(payload) - 1
    start = bytes([first, *header.model, *shape.to_bytes(2, "big"), last])
    return start + _checksum(start, codes) + payload


def unpack(data: bytes) -> tuple[Header, bytes]:
    """The header and the payload, which is shorter than the header says if it was cut.

    Raises:
        FormatError: These bytes are no .pq file of this version, or are too many.
    """
    if len(data) < HEADER or data[0] & 0xF0 != MAGIC:
        raise FormatError("not a .pq file")
    version, mode = data[0] >> 2 & 3, data[0] & 3
    if version != VERSION:
        raise FormatError(f"not a .pq file, or of a later version ({version}, known: {VERSION})")
    if mode not in list(Mode):
        raise FormatError(f"a .pq file of mode {mode}, which is not known")
    shape, size = divmod(int.from_bytes(data[3:5], "big"), 16)
    header = Header(Mode(mode), data[1:3], data[5] + 1, shape - _SHAPES // 2, size)
    if len(data) > HEADER + header.size_of_payload:
        raise FormatError("damaged: it goes on after its end")
    return header, data[HEADER:]


def checksum_fits(data: bytes, codes: Sequence[int]) -> bool:
    """Whether these are the codes that the file was made of."""
    return _checksum(data[:6], codes) == data[6:HEADER]


def _checksum(start: bytes, codes: Sequence[int]) -> bytes:
    """CRC-16/XMODEM: polynomial 0x1021, from 0; 0x31C3 of b"123456789"."""
    content = start + b"".join(code.to_bytes(2, "big") for code in codes)
    return binascii.crc_hqx(content, 0).to_bytes(2, "big")
