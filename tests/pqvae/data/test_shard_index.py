"""Shards: listed as webdataset would read them, damage is named, nothing executed or extracted."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

import pqvae.data.shard_index
from pqvae.data.sample import Listing, Sample
from pqvae.data.shard_index import list_shards
from pqvae.errors import UserError
from pqvae.files import cache_root
from pqvae.images import ImageError

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


def listing(*shards: Path) -> Listing:
    return list_shards("data", {None: shards})


def listed(*shards: Path) -> list[Sample]:
    return [s for part in listing(*shards).samples.values() for s in part]


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
    assert contents(listed(shard)) == {"a": (b"A", "class 1"), "b": (b"B", "class 7")}
    assert listing(shard).class_names == tuple(f"class {i}" for i in range(8))

    shard = write_shard(tmp_path / "names" / "0.tar", {**members, "a.cls": b"cat", "b.cls": b"dog"})
    (shard.parent / "classes.txt").write_text("dog\ncat\n")
    assert listing(shard).class_names == ()  # no number needs the list
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
    members["and/more.png"] = b"ok"
    members |= {
        "../outside.png": b"bad",
        "a/../../outside.png": b"bad",
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
    samples = listed(shard)
    links = [sample for sample in samples if sample.key in ("ok/symlink", "ok/hardlink")]
    assert len(links) == 2  # listed, so that they are counted and named, but not followed
    for link in links:
        with pytest.raises(ImageError, match="a link or a sparse file"):
            link.read()
    files = [sample for sample in samples if sample not in links]
    expected = {f"ok/{index}": (b"ok", "ok") for index in range(9)}
    assert contents(files) == {**expected, "and/more": (b"ok", "and")}
    (note,) = listing(shard).notes
    assert note == "data: passed over names with '..': 2 (../outside.png)"
    assert sorted(tmp_path.rglob("*")) == before
    pickle.loads(loaded)  # the trap is a real one
    assert (tmp_path / "owned").is_dir()


# The index on disk.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the indices, not yet there, where shards of every size have one."""
    monkeypatch.setattr(pqvae.data.shard_index, "INDEX_CACHED_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pqvae" / "shards"


def listed_by_a_new_process(shard: Path) -> list[Sample]:
    pqvae.data.shard_index._list_shard.cache_clear()
    return listed(shard)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the name of each tar that is opened for reading."""
    names: list[str] = []
    walk = pqvae.data.shard_index._walk_shard

    def counted(shard: Path) -> object:
        names.append(shard.name)
        return walk(shard)

    monkeypatch.setattr("pqvae.data.shard_index._walk_shard", counted)
    return names


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Two images: one with a number for a label, one whose name is not UTF-8 and without any."""
    members = {"a.png": b"A", "a.cls": b"7", os.fsdecode(b"\xff.jpg"): b"B"}
    return write_shard(tmp_path / "0.tar", members)


def test_a_shard_is_walked_once_until_it_changes(
    cache: Path, shard: Path, walks: list[str]
) -> None:
    samples = listed_by_a_new_process(shard)
    assert contents(samples) == {"a": (b"A", "7"), os.fsdecode(b"\xff"): (b"B", None)}
    (index,) = cache.iterdir()
    assert index.name == hashlib.sha256(bytes(shard)).hexdigest() + ".json"
    status = shard.stat()
    header = {"version": 2, "path": str(shard)}
    header |= {"mtime_ns": status.st_mtime_ns, "size": status.st_size}
    content = json.loads(index.read_text())
    assert {name: content[name] for name in header} == header
    for _ in range(3):
        assert listed_by_a_new_process(shard) == samples
    assert walks == ["0.tar"]

    write_shard(shard, {"b.png": b"A", "a.cls": b"7", "c.jpg": b"B"})  # of the same size
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert shard.stat().st_size == status.st_size
    assert [sample.key for sample in listed_by_a_new_process(shard)] == ["b", "c"]
    write_shard(shard, {"d.png": bytes(20_000)})
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert [sample.key for sample in listed_by_a_new_process(shard)] == ["d"]
    assert walks == ["0.tar"] * 3
    assert list(cache.iterdir()) == [index]


def changed(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: {**content, **changes}


@pytest.mark.parametrize(
    "damage",
    [
        changed(version=0),
        changed(path="/elsewhere/0.tar"),
        changed(mtime_ns=1),
        changed(size=1),
        changed(more=1),
        changed(samples=None),
        changed(passed_over=None),
        changed(passed_over={".heic": ["1", "a.heic"]}),
        changed(samples=[["a", "7", 512]]),
        changed(samples=[[1, "7", 512, 1]]),
        changed(samples=[["a", 7, 512, 1]]),
        changed(samples=[["a", "7", "512", 1]]),
        changed(samples=[["a", "7", 512, True]]),
        changed(samples=[["a", "7", 0, 1]]),
        changed(samples=[["a", "7", -512, 1]]),
        changed(samples=[["a", "7", 512, -2]]),
        changed(samples=[["a", "7", 512, 1 << 20]]),
        changed(samples=[["a", "7", 1 << 70, 1]]),
        lambda content: [content],
        lambda content: {"samples": content["samples"]},
    ],
)
def test_an_index_that_is_stale_or_damaged_or_reaches_out_of_its_shard_is_made_anew(
    cache: Path,
    shard: Path,
    walks: list[str],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Any]], object],
) -> None:
    samples = listed_by_a_new_process(shard)
    (index,) = cache.iterdir()
    good = index.read_bytes()
    index.write_text(json.dumps(damage(json.loads(good))))
    for _ in range(2):
        assert listed_by_a_new_process(shard) == samples
    assert walks == ["0.tar"] * 2
    assert index.read_bytes() == good
    assert capsys.readouterr() == ("", "")


def test_an_index_that_is_not_json_is_made_anew_and_never_unpickled(
    cache: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = listed_by_a_new_process(shard)
    (index,) = cache.iterdir()
    good = index.read_bytes()
    loaded = pickle.dumps(Exploit(tmp_path / "owned"))
    for damaged in (b"", good[:-9], b"\xff" * 9, b"[" * 100_000, loaded):
        index.write_bytes(damaged)
        assert listed_by_a_new_process(shard) == samples
        assert index.read_bytes() == good
    assert not (tmp_path / "owned").exists()
    assert capsys.readouterr() == ("", "")


def test_a_shard_is_listed_where_no_index_can_be_kept(
    cache: Path,
    shard: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cache").write_text("a file in the way, as permissions do not stop root")
    assert len(listed_by_a_new_process(shard)) == 2
    (tmp_path / "cache").unlink()
    listed_by_a_new_process(shard)
    (index,) = cache.iterdir()
    index.unlink()
    index.mkdir()  # neither readable nor to be replaced
    assert len(listed_by_a_new_process(shard)) == 2
    assert list(cache.iterdir()) == [index]

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert len(listed_by_a_new_process(shard)) == 2
    with pytest.raises(UserError, match="there is no home folder; set XDG_CACHE_HOME to a folder"):
        cache_root()
    assert capsys.readouterr() == ("", "")


def test_a_refused_shard_is_refused_again_and_a_small_one_leaves_no_index(
    cache: Path, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[:1500])
    for _ in range(2):
        with pytest.raises(UserError, match=r"0.tar: cut short"):
            listed_by_a_new_process(shard)
    shard.write_bytes(data)
    monkeypatch.setattr(pqvae.data.shard_index, "INDEX_CACHED_FROM", len(data) + 1)
    assert len(listed_by_a_new_process(shard)) == 2
    assert not cache.exists()


# Damage.


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
