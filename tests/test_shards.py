"""Shards: listed as webdataset would read them, damage is named, nothing executed or extracted."""

import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import webdataset as wds

from pqvae.cli import UserError
from pqvae.images import ImageError
from pqvae.shards import Sample, list_shards

NAMES = [f"{label}/{index}" for label in ("cat", "dog", "emu") for index in range(20)]
# Listing decodes nothing, so any bytes will do.
PICTURES = {name: f"picture of {name}".encode() for name in NAMES}


def write_shard(shard: Path, files: Mapping[str, bytes]) -> Path:
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return shard


def listed(*shards: Path) -> list[Sample]:
    return list_shards(shards, shards[0].parent)[0]


def contents(samples: list[Sample]) -> dict[str, tuple[bytes, str | None]]:
    return {sample.key: (sample.read(), sample.label) for sample in samples}


def test_samples_are_labelled_by_the_folder_in_the_key(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.tar", {f"./{name}.PNG": PICTURES[name] for name in NAMES[:9]})
    other = write_shard(tmp_path / "b.tar", {f"{name}.png": PICTURES[name] for name in NAMES[9:]})
    expected = {name: (data, name.split("/")[0]) for name, data in PICTURES.items()}
    assert contents(listed(first, other)) == expected


def test_a_cls_member_gives_the_label_as_number_or_name(tmp_path: Path) -> None:
    members = {"a.cls": b" 1\n", "a.png": b"A", "a.json": b"{}", "b.jpg": b"B", "b.cls": b"007"}
    shard = write_shard(tmp_path / "numbers" / "0.tar", members)
    assert contents(listed(shard)) == {"a": (b"A", "1"), "b": (b"B", "7")}
    (shard.parent / "classes.txt").write_text("".join(f"class {i} \n" for i in range(8)))
    samples, names = list_shards([shard], shard.parent)
    assert contents(samples) == {"a": (b"A", "class 1"), "b": (b"B", "class 7")}
    assert names == tuple(f"class {i}" for i in range(8))

    shard = write_shard(tmp_path / "names" / "0.tar", {**members, "a.cls": b"cat", "b.cls": b"dog"})
    (shard.parent / "classes.txt").write_text("dog\ncat\n")
    assert list_shards([shard], shard.parent) == (listed(shard), ())  # no number needs the list
    assert contents(listed(shard)) == {"a": (b"A", "cat"), "b": (b"B", "dog")}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the shards open
def test_shards_written_by_webdataset_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    pattern = str(tmp_path / "part-%03d.tar")
    with wds.ShardWriter(pattern, maxcount=25, verbose=0) as writer:
        for name, data in PICTURES.items():
            writer.write({"__key__": name, "png": data, "txt": name, "meta.json": {"n": 1}})
    shards = sorted(tmp_path.glob("*.tar"))
    assert len(shards) == 3
    theirs = {
        sample["__key__"]: sample["png"]
        for shard in shards
        for sample in wds.WebDataset(str(shard), shardshuffle=False)
    }
    assert theirs == PICTURES
    assert {sample.key: sample.read() for sample in listed(*shards)} == theirs


def test_keys_that_start_anew_in_each_shard_are_told_apart(tmp_path: Path) -> None:
    shards = [
        write_shard(tmp_path / f"{name}.tar", {"0.png": name.encode(), "1.png": b""})
        for name in ("a", "b")
    ]
    samples = listed(*shards)
    assert [sample.key for sample in samples] == ["a/0", "a/1", "b/0", "b/1"]
    assert samples[2].read() == b"b"
    assert samples[2].place == "b.tar: b/0"
    assert {sample.label for sample in samples} == {None}


def test_a_shard_that_has_changed_is_listed_anew(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {"a.png": b"A"})
    (old,) = listed(shard)
    write_shard(shard, {"b.png": bytes(20_000)})
    assert [sample.key for sample in listed(shard)] == ["b"]
    shard.write_bytes(b"")
    with pytest.raises(ImageError, match="shorter than when it was listed"):
        old.read()
    shard.unlink()
    with pytest.raises(ImageError, match="No such file"):
        old.read()


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_malicious_shard_is_harmless(tmp_path: Path) -> None:
    loaded = pickle.dumps(Exploit(tmp_path / "owned"))
    members = {f"ok/{index}.png": b"ok" for index in range(9)}
    members |= {
        "../outside.png": b"bad",
        "a/../../outside.png": b"bad",
        "/absolute.png": b"bad",
        "ok/0.pkl": loaded,
        "ok/1.pyd": loaded,
        "ok/2.pth": loaded,
        "__meta__/x.png": b"bad",
    }
    shard = write_shard(tmp_path / "0.tar", members)
    with tarfile.open(shard, "a") as tar:
        for kind, name in (
            (tarfile.SYMTYPE, "ok/symlink.png"),
            (tarfile.LNKTYPE, "ok/hardlink.png"),
            (tarfile.CHRTYPE, "ok/device.png"),
            (tarfile.FIFOTYPE, "ok/pipe.png"),
            (tarfile.DIRTYPE, "ok/folder.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            tar.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    assert contents(listed(shard)) == {f"ok/{index}": (b"ok", "ok") for index in range(9)}
    assert sorted(tmp_path.rglob("*")) == before
    pickle.loads(loaded)  # the trap is a real one
    assert (tmp_path / "owned").is_dir()


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
    with pytest.raises(UserError, match=r"0.tar: not a plain tar archive, or a damaged one"):
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
        ({"a.jpg": b"", "a.png": b""}, r"'a' has several images \(jpg, png\); one is needed$"),
        ({"a.png": b"", "a.PNG": b""}, r"'a.PNG' is there twice; keys must differ"),
        ({"a.png": b"", "a.cls": b"\xff\x80"}, r"'a'.cls: must hold a class number or name"),
        ({"a.png": b"", "a.cls": b" \n"}, r"'a'.cls: must hold a class number or name"),
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
