"""Shards: listed as webdataset would read them, nothing executed or extracted."""

import pickle
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from pqvae.images import ImageError
from tests.pqvae.data.pictures import write_shard
from tests.pqvae.data.shard_listing import Exploit, contents, listed, listing

NAMES = [f"{label}/{index}" for label in ("cat", "dog", "emu") for index in range(20)]
# Listing decodes nothing, so any bytes will do.
PICTURES = {name: f"picture of {name}".encode() for name in NAMES}


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
