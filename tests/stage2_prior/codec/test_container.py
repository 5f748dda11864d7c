"""The header of .pq files: every field, and bytes that are none."""

import pytest

from stage2_prior.codec.container import FormatError, Header, Mode, checksum_fits, pack, unpack

MODEL = bytes([0xAB, 0xCD])


def test_a_written_out_file() -> None:
    # 3:2 and 768 pixels wide: 256 log2(1.5) = 150, and 2 log2(768 / 16) = 11.
    header = Header.of_picture(Mode.STATIC, MODEL, 2, 768, 512)
    assert (header.shape, header.size) == (150, 11)
    data = pack(header, [1, 2, 258], b"\x12\x34")
    checksum = crc16(bytes.fromhex("81 abcd 896b 01 0001 0002 0102"))
    assert data == bytes.fromhex("81 abcd 896b 01") + checksum + b"\x12\x34"
    assert unpack(data) == (header, b"\x12\x34")
    assert checksum_fits(data, [1, 2, 258])
    assert not checksum_fits(data, [1, 2])


def crc16(data: bytes) -> bytes:
    """CRC-16/XMODEM bit by bit: 0x31C3 of b"123456789"."""
    register = 0
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ (0x1021 if register & 0x8000 else 0)) & 0xFFFF
    return register.to_bytes(2, "big")


def test_the_reference_checksum_is_crc_16_xmodem() -> None:
    assert crc16(b"123456789") == b"\x31\xc3"


def test_a_file_that_goes_on_after_its_end_is_damaged() -> None:
    data = pack(Header(Mode.FIXED, MODEL, 2), [1], b"\x12\x34")
    with pytest.raises(FormatError, match="goes on"):
        unpack(data + b"\0")
    assert unpack(data[:-1])[1] == b"\x12"


@pytest.mark.parametrize(
    "size", [(16, 16), (640, 480), (1, 2000), (3000, 1), (32, 33), (10_000, 9_999)]
)
def test_the_shape_is_kept_and_the_size_nearly(size: tuple[int, int]) -> None:
    header = Header.of_picture(Mode.FIXED, MODEL, 1, *size)
    width, height = header.shown_in()
    assert 16 <= max(width, height) <= 2896
    if max(size) / min(size) < 200:
        assert width / height == pytest.approx(size[0] / size[1], abs=1.5 / min(width, height))
    if 16 <= max(size) <= 2896:
        assert max(width, height) == pytest.approx(max(size), rel=0.2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .pq file"),
        (b"\x80\0\0\0\0\0\0", "not a .pq file"),
        (b"\x89PNG\r\n\x1a\n", "later version"),
        (b"\xff\xd8\xff\xe0\0\0\0\0", "not a .pq file"),
        (b"\x83\0\0\0\0\0\0\0", "mode 3"),
        (b"plain text", "not a .pq file"),
    ],
)
def test_other_bytes_are_told(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(data)
