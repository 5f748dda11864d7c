"""Data sets: each kind of source is read right, splits and hashes hold still."""

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

import pqvae.data.dataset
from pqvae.data.dataset import ImageDataset
from pqvae.data.sample import Split
from pqvae.images import decode_image
from tests.pqvae.data.pictures import SIZE, open_split, picture, write_folder, write_shard

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def by_key(dataset: ImageDataset) -> dict[str, tuple[bytes, str | None]]:
    """Key, without extension -> pixels, class name."""
    images = dataset.images(range(len(dataset)))
    labels: list[str | None] = [None] * len(dataset)
    if dataset.labels is not None:
        assert dataset.labels.dtype == torch.int64
        labels = [dataset.class_names[label] for label in dataset.labels.tolist()]
    keys = [key.removesuffix(".png") for key in dataset.keys]
    return {
        key: (image.numpy().tobytes(), label)
        for key, image, label in zip(keys, images, labels, strict=True)
    }


def pixels(data: bytes) -> bytes:
    return decode_image(data, SIZE).numpy().tobytes()


# Kinds of sources.

NAMES = [f"{label}/{index}" for label in ("cat", "dog", "emu") for index in range(20)]
PICTURES = {name: picture(seed) for seed, name in enumerate(NAMES)}
EXPECTED = {name: (pixels(data), name.split("/")[0]) for name, data in PICTURES.items()}


def everything(path: Path | str) -> dict[str, tuple[bytes, str | None]]:
    found: dict[str, tuple[bytes, str | None]] = {}
    for split in SPLITS:
        found |= by_key(open_split(path, split))
    return found


def test_class_folders_are_read_with_their_labels(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{name}.png": data for name, data in PICTURES.items()})
    assert everything(tmp_path) == EXPECTED
    assert open_split(tmp_path).class_names == ("cat", "dog", "emu")


def test_a_flat_folder_has_no_labels_and_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    flat = {name.replace("/", "-"): data for name, data in PICTURES.items()}
    write_folder(tmp_path, {f"{name}.png": data for name, data in flat.items()})
    noise = ("list.txt", "labels.json", "Thumbs.db", ".hidden.png", ".git/x.png", "docs/a.txt")
    write_folder(tmp_path, dict.fromkeys((*noise, "__MACOSX/._a.png"), b"?"))
    assert everything(tmp_path) == {name: (pixels(data), None) for name, data in flat.items()}
    assert open_split(tmp_path).labels is None
    assert open_split(tmp_path).class_names == ()


def test_shards_are_labelled_by_the_folder_in_the_key(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {f"./{name}.PNG": PICTURES[name] for name in NAMES[:30]})
    write_shard(tmp_path / "b.tar", {f"{name}.png": PICTURES[name] for name in NAMES[30:]})
    assert everything(tmp_path) == EXPECTED
    assert everything(tmp_path / "*.tar") == EXPECTED
    assert set(everything(tmp_path / "a.tar")) == set(NAMES[:30])


def test_a_cls_member_gives_the_label_as_number_or_name(tmp_path: Path) -> None:
    classes = ["emu", "dog", "cat"]
    for kind in ("number", "name"):
        members: dict[str, bytes] = {}
        for name, data in PICTURES.items():
            label = name.split("/")[0]
            key = name.replace("/", "-")
            members[f"{key}.cls"] = (
                f"{classes.index(label) if kind == 'number' else label}\n".encode()
            )
            members[f"{key}.png"] = data
            members[f"{key}.json"] = b"{}"
        write_shard(tmp_path / kind / "0.tar", members)
        expected = {name.replace("/", "-"): value for name, value in EXPECTED.items()}
        write_folder(tmp_path / kind, {"classes.txt": "\n".join([*classes, ""]).encode()})
        assert everything(tmp_path / kind) == expected
    # Number i is line i; names that need no list are sorted.
    assert open_split(tmp_path / "number").class_names == ("emu", "dog", "cat")
    assert open_split(tmp_path / "name").class_names == ("cat", "dog", "emu")
    (tmp_path / "number" / "classes.txt").unlink()
    assert open_split(tmp_path / "number").class_names == ("0", "1", "2")


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"train/{i}/x.png": picture(i) for i in (10, 9, 2)})
    write_folder(tmp_path, {f"{split}/2/x.png": picture(0) for split in ("val", "test")})
    for split in SPLITS:  # the union, wherever one stands
        assert open_split(tmp_path, split).class_names == ("2", "9", "10")
    labels = open_split(tmp_path, "val").labels
    assert labels is not None
    assert labels.tolist() == [0]


def test_images_are_taken_by_index_in_any_order_and_repeated(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{split}/{i}.png": picture(i) for split in SPLITS for i in range(3)})
    dataset = open_split(tmp_path)
    images = dataset.images([2, 0, 2])
    expected = torch.stack([decode_image(picture(i), SIZE) for i in (2, 0, 2)])
    assert torch.equal(images, expected)
    assert torch.equal(dataset.images(torch.tensor([2, 0, 2])), expected)
    assert dataset.images([]).shape == (0, 3, SIZE, SIZE)
    with pytest.raises(IndexError):
        dataset.images([3])


# Splits.


def test_splits_of_the_source_are_used_as_they_are(tmp_path: Path) -> None:
    parts: dict[Split, list[str]] = {"train": NAMES[:40], "val": NAMES[40:45], "test": NAMES[45:]}
    for split, folder in (("train", "Train"), ("val", "validation"), ("test", "test")):
        files = {f"{name}.png": PICTURES[name] for name in parts[split]}
        write_folder(tmp_path / "folders" / folder, files)
        write_shard(tmp_path / "folders-of-shards" / folder / "0.tar", files)
        write_shard(tmp_path / "shards" / f"my-{folder}-000.tar", files)
    os.symlink(tmp_path / "folders", tmp_path / "linked")
    for source in ("folders", "folders-of-shards", "shards", "shards/my-*", "linked"):
        for split, names in parts.items():
            found = by_key(open_split(tmp_path / source, split))
            assert found == {name: EXPECTED[name] for name in names}, source


def test_a_split_folder_may_be_a_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {f"{name}.png": PICTURES[name] for name in NAMES})
    write_folder(tmp_path / "data" / "test", {"cat/0.png": picture(0)})
    write_folder(tmp_path / "data" / "val", {"cat/0.png": picture(0)})
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "train")
    assert by_key(open_split(tmp_path / "data")) == EXPECTED


def test_missing_splits_are_carved_by_the_hash_of_the_key_alone(tmp_path: Path) -> None:
    data = picture(0)
    names = [f"{index}.png" for index in range(400)]
    write_folder(tmp_path / "up", dict.fromkeys(names, data))
    write_folder(tmp_path / "down", dict.fromkeys([*reversed(names), "new.png", "x.png"], data))

    def expected(name: str) -> Split:
        fraction = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
        return "test" if fraction < 0.1 else "val" if fraction < 0.15 else "train"

    for split in SPLITS:
        keys = open_split(tmp_path / "up", split).keys
        assert set(keys) == {name for name in names if expected(name) == split}
        assert len(keys) > 10
        assert set(open_split(tmp_path / "down", split).keys) - {"new.png", "x.png"} == set(keys)


def test_only_the_missing_split_is_carved(tmp_path: Path) -> None:
    names = [f"{index}" for index in range(400)]
    write_shard(tmp_path / "train-0.tar", {f"{name}.png": picture(0) for name in names})
    write_shard(tmp_path / "test-0.tar", {f"t{name}.png": picture(1) for name in names[:7]})
    train, val, test = (set(open_split(tmp_path, split).keys) for split in SPLITS)
    assert test == {f"t{name}" for name in names[:7]}
    assert train | val == set(names)
    assert not train & val
    assert 5 < len(val) < 40


# Memory, hashes.


def test_decoding_on_demand_gives_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "folder", {f"{name}.png": data for name, data in PICTURES.items()})
    write_shard(tmp_path / "0.tar", {f"{name}.png": data for name, data in PICTURES.items()})
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    for source in ("folder", "0.tar"):
        assert everything(tmp_path / source) == EXPECTED
        dataset = open_split(tmp_path / source)
        assert dataset.images([]).shape == (0, 3, SIZE, SIZE)
        assert pickle.loads(pickle.dumps(dataset)).keys == dataset.keys  # loader workers need it
    first = dataset.content_hash
    assert open_split(tmp_path / "0.tar").content_hash == first


def test_the_content_hash_follows_content_and_nothing_else(tmp_path: Path) -> None:
    def content_hash(files: Mapping[str, bytes], size: int = SIZE) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_folder(folder, {**files, "val/a/0.png": b"", "test/a/0.png": b""})
        return open_split(folder, size=size).content_hash

    files = {"train/a/0.png": picture(0), "train/b/1.png": picture(1)}
    same = content_hash(files)
    assert content_hash(dict(reversed(files.items()))) == same
    others = [
        content_hash(files, size=16),
        content_hash({**files, "train/b/1.png": picture(2)}),
        content_hash({"train/a/0.png": picture(0), "train/b/2.png": picture(1)}),
        content_hash({"train/a/0.png": picture(0), "train/c/1.png": picture(1)}),
        content_hash({**files, "train/b/2.png": picture(2)}),
    ]
    assert len({same, *others}) == 6


def test_a_hash_of_an_earlier_version_is_known_and_said_where_jpegs_read_differently_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.open(io.BytesIO(picture(0)))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG")
    for name, data in (("jpeg", jpeg.getvalue()), ("png", picture(0))):
        write_folder(tmp_path / name, {f"{split}/0": data for split in SPLITS})
        digest = hashlib.sha256(data).hexdigest()
        earlier = hashlib.sha256(f"image_size {SIZE}\n0\0{digest}\0None\0None".encode()).hexdigest()
        dataset = open_split(tmp_path / name)
        assert (dataset.content_hash == earlier) == (name == "png")
        assert dataset.matches(earlier)
        assert dataset.matches(dataset.content_hash)
        assert not dataset.matches(digest)
        said = capsys.readouterr().err
        assert said.count("decoded JPEGs less exactly") == (name == "jpeg")
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    size = len(jpeg.getvalue())
    earlier = hashlib.sha256(f"image_size {SIZE}\n0\0{size}\0None\0None".encode()).hexdigest()
    assert open_split(tmp_path / "jpeg").matches(earlier)


def test_neither_the_order_in_a_shard_nor_its_name_matters_but_its_labels_do(
    tmp_path: Path,
) -> None:
    members = {"1.png": picture(1), "1.cls": b"a", "0.png": picture(0), "0.cls": b"b"}
    variants = {
        "plain": members,
        "reversed": dict(reversed(members.items())),
        "other": {**members, "1.cls": b"b", "0.cls": b"a"},
    }
    opened: dict[str, ImageDataset] = {}
    for name, variant in variants.items():
        for split in SPLITS:
            write_shard(tmp_path / name / f"{split}-{name}.tar", variant)
        opened[name] = open_split(tmp_path / name)
        assert opened[name].keys == ("0", "1")
    assert opened["plain"].content_hash == opened["reversed"].content_hash
    assert opened["plain"].content_hash != opened["other"].content_hash
