"""Shards that are damaged or faulty: refused by name."""

import gzip
import tarfile
from pathlib import Path

import pytest

from pqvae.errors import UserError
from tests.pqvae.data.pictures import write_shard
from tests.pqvae.data.shard_listing import listed


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_shard_cut_anywhere_is_refused(tmp_path: Path, fraction: float) -> None:
    shard = write_shard(tmp_path / "0.tar", {f"{i}.png": b"picture" for i in range(9)})
    data = shard.read_bytes()
    end = 9 * 1024  # a header and a padded image each; then zeros to the end
    for length in (int(end * fraction), int(end * fraction) // 512 * 512, end):
        shard.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"0.tar: (cut short|not a plain tar)"):
            listed(shard)
    shard.write_bytes(data[: end + 512])
    assert len(listed(shard)) == 9


def test_a_shard_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {f"{i}.png": b"picture" for i in range(9)})
    data = bytearray(shard.read_bytes())
    data[3 * 1024 + 5] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"0.tar: cut short or damaged at byte 3,072; copy it"):
        listed(shard)


def test_a_member_of_negative_size_does_not_loop(tmp_path: Path) -> None:
    member = tarfile.TarInfo("1.png")
    member.size = -512  # the next member is this one again
    headers = [each.tobuf(tarfile.GNU_FORMAT) for each in (tarfile.TarInfo("0.png"), member)]
    (tmp_path / "0.tar").write_bytes(b"".join(headers) + bytes(1024))
    # Which of two checks meets it depends on the version of Python's tarfile.
    message = r"0.tar: (not a plain tar archive, or a damaged one|cut short or damaged at byte 512)"
    with pytest.raises(UserError, match=message):
        listed(tmp_path / "0.tar")


@pytest.mark.parametrize(
    "data", [b"", b"text " * 300, gzip.compress(bytes(9999))], ids=["empty", "text", "gzip"]
)
def test_a_tar_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"0.tar: not a plain tar archive, or a damaged one"):
        listed(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"?"}, r"0.tar: no images in this shard$"),
        ({"a.jpg": b"", "a.png": b""}, r"a has several images \(jpg, png\); one is needed$"),
        ({"a.png": b"", "a.PNG": b""}, r"a.PNG is there twice; keys must differ"),
        ({"a.png": b"", "a.cls": b"\xff\x80"}, r"a.cls: must hold a class number or name"),
        ({"a.png": b"", "a.cls": b" \n"}, r"a.cls: must hold a class number or name"),
        ({"a.png": b"", "a.cls": b"7"}, r"a: label 7 has no line in .*classes.txt \(its 2 lines"),
    ],
)
def test_a_faulty_shard_is_refused_by_name(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    shard = write_shard(tmp_path / "0.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        listed(shard)


@pytest.mark.parametrize("content", [b"cat\n\ndog", b"cat\ncat", b"\xff"])
def test_a_faulty_list_of_classes_is_refused(tmp_path: Path, content: bytes) -> None:
    shard = write_shard(tmp_path / "0.tar", {"a.png": b"", "a.cls": b"0"})
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"classes.txt: .*one class name per line is needed$"):
        listed(shard)
