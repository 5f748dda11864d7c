"""The index on disk: a shard is walked once until it changes, whatever befalls its index."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pqvae.data.shard_index
from pqvae.data.sample import Sample
from pqvae.errors import UserError
from pqvae.files import cache_root
from tests.pqvae.data.pictures import write_shard
from tests.pqvae.data.shard_listing import Exploit, contents, listed


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
