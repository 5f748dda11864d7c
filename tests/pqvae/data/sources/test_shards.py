"""Shards as they are found: joined, compressed, with odd names, given by a glob or a range."""

import gzip
from pathlib import Path

import pytest

from pqvae.data.sources import shards
from pqvae.errors import UserError
from tests.pqvae.data.pictures import write_shard


def read(path: Path | str, split: str = "train") -> dict[str, str | None]:
    listing = shards.list_samples(str(path))
    assert listing is not None
    return {s.key: s.label for key, part in listing.samples.items() if key == split for s in part}


def notes(path: Path) -> tuple[str, ...]:
    listing = shards.list_samples(str(path))
    assert listing is not None
    return listing.notes


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [
        write_shard(tmp_path / f"{n}.tar", {f"{n}{i}.png": b"x" * i})
        for n, i in zip("abc", (1, 2, 3), strict=True)
    ]
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    listing = shards.list_samples(str(both))
    assert listing is not None
    found = {sample.key: sample.read() for sample in listing.samples["train"]}
    assert found == {"a1": b"x", "b2": b"xx", "c3": b"xxx"}
    both.write_bytes(both.read_bytes() + b"no tar, but behind the end mark" * 40)
    with pytest.raises(UserError, match=r"both.tar: cut short or damaged at byte 30,720"):
        read(both)


def test_absolute_names_are_read_as_relative_ones(tmp_path: Path) -> None:
    names = ["/data/daisy/0.png", "/data/rose/1.png", "//data/rose/./2.png"]
    shard = write_shard(tmp_path / "0.tar", dict.fromkeys(names, b""))
    assert read(shard) == {"data/daisy/0": "daisy", "data/rose/1": "rose", "data/rose/2": "rose"}


def test_splits_and_classes_may_lie_in_the_shard(tmp_path: Path) -> None:
    names = ["x/train/cat/0.png", "x/train/dog/1.png", "x/test/cat/2.png"]
    shard = write_shard(tmp_path / "all.tar", dict.fromkeys(names, b""))
    assert read(shard) == {"cat/0": "cat", "dog/1": "dog"}
    assert read(shard, "test") == {"cat/2": "cat"}


def test_what_lies_beside_the_images_in_a_shard(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0"
    members = {"a": png, "b": b"text", "c.heic": b"?", ".d.png": b"?", "e/._f.png": b"?"}
    shard = write_shard(tmp_path / "0.tar", {**members, "@eaDir/g.png": b"?", "h.png": b""})
    assert set(read(shard)) == {"a", "h"}
    assert notes(shard) == (f"{shard}: passed over .heic files: 1 (c.heic)",)


def test_the_image_of_a_key_is_the_one_with_the_plainest_extension(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0"
    members = {"a.jpg": b"A", "a.seg.png": b"mask", "b": png, "b.png": b"B"}
    listing = shards.list_samples(str(write_shard(tmp_path / "0.tar", members)))
    assert listing is not None
    assert {s.key: s.read() for s in listing.samples["train"]} == {"a": b"A", "b": b"B"}


def test_a_shard_without_images_says_what_it_holds(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {"a.heic": b"?", "b.heic": b"?"})
    with pytest.raises(UserError, match=r"no images in this shard; passed over .heic files: 2 \(a"):
        read(shard)


def test_labels_stand_behind_any_dot(tmp_path: Path) -> None:
    members = {
        "scan0.v2.png": b"",
        "scan0.v2.cls": b"rose",
        "scan1.v2.png": b"",
        "scan1.cls": b"tulip",
        "scan2.png": b"",
        "scan2.json": b'{"label": "rose"}',
        "scan2.meta.json": b'{"label": "of something else"}',
    }
    shard = write_shard(tmp_path / "0.tar", members)
    assert read(shard) == {"scan0": "rose", "scan1": "tulip", "scan2": "rose"}
    shard = write_shard(tmp_path / "1.tar", {**members, "scan2.cls": b"tulip"})
    with pytest.raises(UserError, match=r"scan2.cls says tulip, .json rose; they must agree"):
        read(shard)


def test_names_that_are_one_up_to_their_first_dot_are_refused_in_one_short_line(
    tmp_path: Path,
) -> None:
    shard = write_shard(tmp_path / "0.tar", {f"frame.{i:04d}.png": b"" for i in range(300)})
    with pytest.raises(
        UserError, match=r"frame has several images \(0000.png, .*cut at their first"
    ):
        read(shard)
    shard = write_shard(tmp_path / "1.tar", {f"{'x' * 300}.{i:04d}.png": b"" for i in range(300)})
    for each in (tmp_path / "0.tar", shard):
        with pytest.raises(UserError) as caught:
            read(each)
        assert len(str(caught.value).removeprefix(str(tmp_path))) < 200


def test_what_exists_is_taken_literally_and_ranges_as_webdataset_does(tmp_path: Path) -> None:
    for name in ("photos [2024]/train-0.tar", "photos [2024]/test-0.tar", "a/0.tar", "a/1.tar"):
        write_shard(tmp_path / name, {f"{Path(name).stem}.png": b""})
    write_shard(tmp_path / "a" / "{0..1}.tar", {"braces.png": b""})
    assert set(read(tmp_path / "photos [2024]" / "train-*.tar")) == {"train-0"}
    assert set(read(tmp_path / "photos [2024]" / "*.tar", "test")) == {"test-0"}
    assert set(read(tmp_path / "a" / "{0..1}.tar")) == {"braces"}
    assert set(read(tmp_path / "a" / "{0,1}.tar")) == {"0", "1"}
    assert set(read(f"{tmp_path}/a/0.tar::{tmp_path}/a/1.ta*")) == {"0", "1"}
    with pytest.raises(UserError, match=r"matches no file \(.*/a/2.tar\); give a glob .* a range"):
        read(tmp_path / "a" / "{1..3}.tar")


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.zip"])
def test_what_is_compressed_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"?"))
    with pytest.raises(UserError, match=r"compressed; unpack it"):
        read(tmp_path / name)
