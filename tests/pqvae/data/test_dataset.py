"""Data sources: each kind is read right, splits hold still, damage is named, nothing executed."""

import hashlib
import io
import os
import pickle
import socket
import struct
import tarfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pqvae.data.dataset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.data.sample import Split
from pqvae.errors import UserError
from pqvae.images import decode_image
from stage1_tokenizer import train

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SIZE = 8


def picture(seed: int, size: int = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_shard(
    shard: Path, files: Mapping[str, bytes], links: Mapping[str, tuple[str, bytes]] | None = None
) -> Path:
    """A shard of files, and of links: name -> target, type of tar member."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, (target, kind) in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.linkname, member.type = target, kind
            tar.addfile(member)
    return shard


def open_split(path: Path | str, split: Split = "train", size: int = SIZE) -> ImageDataset:
    return open_dataset(DataConfig(path=str(path), image_size=size, shift=0), split)


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


# The built-in emoji.


@pytest.fixture(scope="module")
def emoji() -> dict[Split, ImageDataset]:
    return {split: open_dataset(DataConfig(), split) for split in SPLITS}


def test_the_built_in_emoji_are_all_there(emoji: dict[Split, ImageDataset]) -> None:
    assert {split: len(dataset) for split, dataset in emoji.items()} == {
        "train": 6119,
        "val": 328,
        "test": 686,
    }
    for dataset in emoji.values():
        assert dataset.class_names == emoji["train"].class_names
        assert len(dataset.class_names) == 9
        assert set(DataConfig().no_flip_classes) < set(dataset.class_names)
        assert dataset.labels is not None
        names = [dataset.class_names[label] for label in dataset.labels.tolist()]
        assert names == [key.split("/")[0] for key in dataset.keys]
        assert dataset.images([0, 1]).shape == (2, 3, 32, 32)


def test_no_emoji_picture_or_base_design_is_on_two_sides(
    emoji: dict[Split, ImageDataset],
) -> None:
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}

    def designs(dataset: ImageDataset) -> set[tuple[str, ...]]:
        code_points = (key.split("/")[1].split("-")[:-1] for key in dataset.keys)
        return {tuple(point for point in points if point not in tones) for points in code_points}

    def pictures(dataset: ImageDataset) -> set[bytes]:
        return {image.numpy().tobytes() for image in dataset.images(range(len(dataset)))}

    for kind in (designs, pictures):
        train, val, test = (kind(emoji[split]) for split in SPLITS)
        assert len(train) > 1000
        assert not train & val
        assert not train & test
        assert not val & test


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


INTERLEAVED = {f"{i:03d}.png": ("a", "b", "c")[i % 3] for i in range(400)}  # key -> class
DAMAGED = (7, 10, 397, 399)  # classes b, b, b, a


@pytest.fixture
def damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard of 400 images in three classes, decoded on demand, four of them damaged."""
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    members: dict[str, bytes] = {}
    for index, (name, label) in enumerate(INTERLEAVED.items()):
        members[name] = b"?" if index in DAMAGED else picture(index)
        members[name.replace("png", "cls")] = label.encode()
    for split in ("val", "test"):
        write_shard(tmp_path / f"{split}.tar", {"x.png": picture(0), "x.cls": b"a"})
    write_shard(tmp_path / "train.tar", members)
    return tmp_path


def test_the_next_readable_image_of_its_class_stands_in_for_one_damaged_on_demand(
    damaged_shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {index: index for index in range(400)}
    sources |= {7: 13, 10: 13, 397: 1, 399: 0}  # the same class: 3 on, 6 on, and round the end
    expected = torch.stack([decode_image(picture(source), SIZE) for source in sources.values()])
    # Threads, repeats, other orders and another run make no difference.
    dataset = open_split(damaged_shard)
    batches = [torch.randperm(400, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for batch, images in zip(batches, pool.map(dataset.images, batches), strict=True):
            assert torch.equal(images, expected[batch])
    lines = capsys.readouterr().err.splitlines()
    named = sorted(line.split("train.tar: ")[1].split(" (")[0] for line in lines)
    assert named == ["007", "010", "397", "399"]
    for count, line in enumerate(lines, 1):
        assert f"train: left out {count} of 400 images so far: train.tar: " in line
        assert line.endswith("(not an image); another of its class stands in")
    again = open_split(damaged_shard)
    assert torch.equal(again.images([10]), expected[[10]])
    assert again.content_hash == dataset.content_hash


def test_over_one_percent_of_damage_met_on_demand_is_refused(
    damaged_shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_split(damaged_shard)
    dataset.images(DAMAGED)
    assert len(capsys.readouterr().err.splitlines()) == 4
    (damaged_shard / "train.tar").write_bytes(b"")
    message = (
        r"train: 5 of 400 images cannot be read, over 1%; the first is train.tar: \d+ \(not an"
    )
    for _ in range(2):  # no retry gets past it
        with pytest.raises(UserError, match=message):
            dataset.images([0])


def test_an_image_without_a_class_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    files = {f"train/{i:03d}.png": picture(i) for i in range(100)}
    write_folder(tmp_path, {**files, "val/x.png": picture(0), "test/x.png": picture(0)})
    dataset = open_split(tmp_path)
    (tmp_path / "train" / "099.png").unlink()  # long after it was listed
    assert torch.equal(dataset.images([99, -1]), dataset.images([0, 0]))
    (line,) = capsys.readouterr().err.splitlines()
    reason = "099.png (No such file or directory); another stands in"
    assert line.endswith(f"train: left out 1 of 100 images so far: {reason}")


def test_a_class_without_a_readable_image_is_refused_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    files = {f"train/a/{i}.png": picture(0) for i in range(99)}
    files |= {"train/b/0.png": b"?", "val/a/0.png": picture(0), "test/a/0.png": picture(0)}
    dataset = open_split(write_folder(tmp_path, files))
    with pytest.raises(UserError, match=r"train: no image of class b can be read; mend or remove"):
        dataset.images([99])


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


# Damage.


def png(header: bytes, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    chunks = {b"IHDR": header, b"IDAT": zlib.compress(body), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks.items())


def png_bomb() -> bytes:
    return png(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), bytes(999))


def deep_png(level: int) -> bytes:
    """16 bits a channel, RGB: Pillow reads these but cannot write them."""
    row = b"\0" + struct.pack(">H", level) * 3 * 8
    return png(struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0), row * 8)


def turned() -> Image.Image:
    image = Image.new("RGB", (16, 16), "red")
    image.paste((0, 0, 255), (8, 0, 16, 16))  # stored: red left, blue right
    return image


def odd_but_readable() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Name -> file, colour of its upper half."""
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    frames: dict[str, Any] = {"save_all": True, "append_images": [blue]}
    exif = Image.Exif()
    exif[0x0112] = 6  # shown: red above, blue below
    tall = Image.new("RGB", (1, 4000), "red")
    tall.paste((0, 0, 255), (0, 1900, 1, 2100))
    clear = red.convert("P")
    return {
        "cmyk.jpg": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        "deep.png": (encoded(Image.fromarray(np.full((8, 8), 0x8080, np.uint16))), (128, 128, 128)),
        "deep-rgb.png": (deep_png(0x8080), (128, 128, 128)),
        "palette.gif": (encoded(red.convert("P"), "GIF"), (255, 0, 0)),
        "palette-png.png": (encoded(red.convert("P")), (255, 0, 0)),
        "clear.png": (encoded(clear, transparency=clear.getpixel((0, 0))), (255, 255, 255)),
        "alpha.png": (encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 51))), (255, 204, 204)),
        "animated.gif": (encoded(red, "GIF", **frames), (255, 0, 0)),
        "animated-png.png": (encoded(red, **frames), (255, 0, 0)),
        "animated-webp.webp": (encoded(red, "WEBP", lossless=True, **frames), (255, 0, 0)),
        "turned.png": (encoded(turned(), exif=exif), (255, 0, 0)),
        "turned-jpeg.jpg": (
            encoded(turned(), "JPEG", exif=exif, quality=95, subsampling=0),
            (255, 0, 0),
        ),
        "tall.png": (encoded(tall), (0, 0, 255)),
        "wide.jpg": (encoded(tall.transpose(Image.Transpose.ROTATE_90), "JPEG"), (0, 0, 255)),
        "misnamed.png": (encoded(blue, "BMP"), (0, 0, 255)),
    }


def unreadable() -> dict[str, bytes]:
    large = picture(0, 64)
    jpeg = encoded(Image.open(io.BytesIO(large)), "JPEG")
    return {
        "bad0-empty.png": b"",
        "bad1-cut.png": large[: len(large) // 2],
        "bad2-cut.jpg": jpeg[: len(jpeg) // 2],
        "bad3-bomb.png": png_bomb(),
        "bad4-text.png": b"not an image",
        "bad5-pickle.png": pickle.dumps({"a": 1}),
    }


# In a folder the second is a link, too; in a shard the kinds of link are two.
LINKS = {
    "bad6-dangling.png": ("nowhere.png", tarfile.LNKTYPE),
    "bad7-loop.png": ("bad7-loop.png", tarfile.SYMTYPE),
}


def write_damaged(base: Path, kind: str, good: int, size: int = SIZE) -> set[str]:
    """Splits whose train has ``good`` images, the odd ones and the bad ones; returns bad keys."""
    odd = {name: data for name, (data, _) in odd_but_readable().items()}
    files = {f"good{index}.png": picture(index, size) for index in range(good)} | odd | unreadable()
    others = {f"{index}.png": picture(index, size) for index in range(4)}
    for split, part in (("train", files), ("val", others), ("test", others)):
        if kind == "folder":
            write_folder(base / split, part)
        else:
            write_shard(base / f"{split}.tar", part, LINKS if split == "train" else {})
    bad = {*unreadable(), *LINKS}
    if kind == "folder":
        for name, (target, _) in LINKS.items():
            os.symlink(target, base / "train" / name)
        os.mkfifo(base / "train" / "pipe.png")  # reading it would wait for ever
        return bad
    return {name.rpartition(".")[0] for name in bad}


@pytest.fixture(params=[False, True], ids=["in memory", "on demand"])
def on_demand(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether images are decoded when they are asked for, instead of all at once."""
    if request.param:
        monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    return request.param


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_damaged_images_are_left_out_and_named_and_odd_ones_are_right(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    on_demand: bool,
) -> None:
    odd = odd_but_readable()
    bad = write_damaged(tmp_path, kind, 800)
    total = 800 + len(odd) + len(bad)

    dataset = open_split(tmp_path)
    assert len(dataset) == (total if on_demand else total - len(bad))
    images = dict(zip(dataset.keys, dataset.images(range(len(dataset))), strict=True))
    for name, (_, colour) in odd.items():
        image = images[name if kind == "folder" else name.rpartition(".")[0]]
        half = image[:, : SIZE // 2 - 1].int()
        # 3: JPEG rounds.
        assert (half - torch.tensor(colour)[:, None, None]).abs().max() <= 3, name
    lines = capsys.readouterr().err.splitlines()
    places = sorted(key if kind == "folder" else f"train.tar: {key}" for key in bad)
    if on_demand:
        assert len(lines) == len(bad)
        for place in places:
            assert sum(f"images so far: {place} (" in line for line in lines) == 1
        assert f"train: left out {len(bad)} of {total} images so far: " in lines[-1]
        return
    (line,) = lines
    assert f"train: left out {len(bad)} of {total} images: " in line
    for place in places[:5]:
        assert f"{place} (" in line
    assert line.count("; ") == 5
    assert line.endswith(f"; and {len(bad) - 5} more")


TINY = [
    "device=cpu",
    "data.image_size=16",
    "data.shift=1",
    "architecture.widths=16,32",
    "architecture.encoder_blocks=0,1",
    "architecture.decoder_blocks=0,1",
    "architecture.latent_channels=4",
    "quantizer.num_codes=4",
    "quantizer.codebook_sizes=16",
    "trainer.steps=4",
    "trainer.batch_size=64",
    "trainer.evaluate_every=2",
]


@pytest.mark.parametrize("kind", ["folder", "shard"])
def test_training_goes_through_with_a_percent_of_damage_and_stops_with_one_line_above(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    on_demand: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = len(odd_but_readable())
    bad = len(write_damaged(tmp_path / "few", kind, 1300, size=16))
    assert train.main(["data.path=few", "out=run", *TINY]) == 0
    said, total = capsys.readouterr(), 1300 + odd + bad
    assert f"few train: left out {bad} of {total} images{' so far' * on_demand}: " in said.err
    assert said.out.splitlines()[-1].startswith("made run/model")

    write_damaged(tmp_path / "many", kind, 700, size=16)
    assert train.main(["data.path=many", "out=other", *TINY]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    total = 700 + odd + bad
    start = f"error: many train: {bad} of {total} images cannot be read, over 1%; the first is "
    assert line.startswith(start)
    if not on_demand:  # refused before anything else was said or made
        assert not before
        assert not (tmp_path / "other").exists()


def test_more_than_one_percent_of_damage_is_refused(tmp_path: Path) -> None:
    files = {f"{index}.png": picture(0) for index in range(98)}
    files |= {"a.png": b"?", "b.png": b""}
    write_folder(tmp_path / "train", files)
    write_folder(tmp_path / "test", {"x.png": picture(0)})
    write_folder(tmp_path / "val", {"x.png": picture(0)})
    message = r"train: 2 of 100 images cannot be read, over 1%; the first is a.png \(not an image\)"
    with pytest.raises(UserError, match=message):
        open_split(tmp_path)
    (tmp_path / "train" / "b.png").write_bytes(picture(1))
    assert len(open_split(tmp_path)) == 99


def test_linked_folders_are_not_followed_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "data", {f"{name}.png": data for name, data in PICTURES.items()})
    os.symlink(tmp_path / "data", tmp_path / "data" / "cat" / "loop")
    assert everything(tmp_path / "data") == EXPECTED
    assert "linked folders are not followed (cat/loop)" in capsys.readouterr().err
    (tmp_path / "links").mkdir()
    os.symlink(tmp_path / "data" / "cat", tmp_path / "links" / "cat")
    with pytest.raises(UserError, match=r"no images .*; linked folders are not followed \(cat\)$"):
        open_split(tmp_path / "links")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, r"no images and no .tar shards in this folder$"),
        ({"a.png": b"", "cat/b.png": b""}, r"1 of 2 images have no class \(first a.png\); put all"),
        ({"cat/b.png": b"", "dog/b.txt": b""}, r"class folder dog has no images; fill or remove"),
        ({"a.tar": b"", "b.png": b""}, r"holds shards \(a.tar\) and images \(b.png\); move one ki"),
        ({"a.tar": b"", "cat/b.png": b""}, r"holds shards \(a.tar\) and images \(cat/b.png\); "),
        ({"train/a.png": b"", "car/a.png": b""}, r"car stands beside train, so it is unclear"),
        ({"train/a.png": b"", "train.tar": b""}, r"train.tar stands beside train, so it is uncle"),
        ({"val/a.png": b"", "valid/a.png": b"", "train/a.png": b""}, r"both val and valid are val"),
        ({"train/a.txt": b"", "test/a.png": b""}, r"train: no images and no .tar shards in this"),
        ({"test/a.png": b""}, r"has no train images, only test$"),
        ({"train-0.tar": b"", "more.tar": b""}, r"more.tar does not name its split, as other sha"),
    ],
)
def test_a_folder_that_is_not_what_it_seems_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    write_folder(tmp_path, files)
    with pytest.raises(UserError, match=message) as caught:
        open_split(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": picture(0), "b.tar": b"", "b.txt": b""})
    for name, message in (
        ("absent", "no such file or folder; give emoji, cifar10, a folder of images"),
        ("a.png", "not a folder and not a .tar shard; give emoji, cifar10"),
        ("*.tgz", "matches no file; give a glob such as"),
        ("b.*", r"matches .*b.txt, which is not a .tar shard"),
    ):
        with pytest.raises(UserError, match=message):
            open_split(tmp_path / name)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"0.png": picture(0)})
    with pytest.raises(UserError, match=r"no images in the val split; give it some, or more ima"):
        open_split(tmp_path, "val")


def test_settings_out_of_range_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": ""}, "data.path is empty"),
        ({"image_size": 7}, "data.image_size is 7, but must be at least 8"),
        ({"shift": -1}, "data.shift is -1"),
        ({"shift": 17}, "data.shift is 17"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            DataConfig(**settings)


# CIFAR-10.


def test_cifar10_without_internet_is_refused_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a port that answers nobody: no network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of before
    with pytest.raises(UserError, match=r"cannot be downloaded from https://.*data.path=FOLDER$"):
        open_dataset(DataConfig(path="cifar10"), "train")
    assert socket.getdefaulttimeout() is None
    assert "downloading 170 MB from https://www.cs.toronto.edu" in capsys.readouterr().err


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, bytes]:
    """Makes torchvision want CIFAR-10 files of the real form with fewer images: these."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = np.random.default_rng(0)
    files: dict[Path, bytes] = {}

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        files[tmp_path / "pqvae" / "cifar10" / CIFAR10.base_folder / name] = data
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        images = generator.integers(0, 256, (count, 3072), np.uint8)
        return {"data": images, "labels": generator.integers(0, 2, count).tolist()}

    lists = {"train_list": [write("data_batch_1", batch(60))], "test_list": [write("t", batch(9))]}
    for name, value in lists.items():
        monkeypatch.setattr(CIFAR10, name, value)
    meta = write("batches.meta", {"label_names": ["airplane", "automobile"]})
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return files


def write_files(files: Mapping[Path, bytes]) -> None:
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_cifar10_is_downloaded_once_however_many_want_it(
    small_cifar10: dict[Path, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision.datasets import CIFAR10

    wanted, running = 4, threading.Lock()

    def download(self: CIFAR10) -> None:
        assert running.acquire(blocking=False), "two downloads at once"
        time.sleep(0.3)  # ample for the others to see that nothing is there
        write_files(small_cifar10)
        running.release()

    monkeypatch.setattr(CIFAR10, "download", download)
    # A lock of a file that is opened anew excludes threads as it does processes.
    with ThreadPoolExecutor(wanted) as pool:
        opened = list(pool.map(open_split, ["cifar10"] * wanted, ["test"] * wanted, [32] * wanted))
    assert [len(dataset) for dataset in opened] == [9] * wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cifar10: downloading 170 MB from ")


def test_cifar10_is_read_as_torchvision_reads_it(
    tmp_path: Path, small_cifar10: dict[Path, bytes]
) -> None:
    from torchvision.datasets import CIFAR10

    write_files(small_cifar10)
    parts = {split: open_dataset(DataConfig(path="cifar10"), split) for split in SPLITS}
    assert len(parts["train"]) + len(parts["val"]) == 60
    assert len(parts["val"]) > 0
    assert len(parts["test"]) == 9
    for split, dataset in parts.items():
        assert dataset.class_names == ("airplane", "automobile")
        assert dataset.labels is not None
        theirs = CIFAR10(tmp_path / "pqvae" / "cifar10", train=split != "test")
        for index, key in enumerate(dataset.keys):
            image, label = theirs[int(key)]
            expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            assert torch.equal(dataset.images([index])[0], expected)
            assert dataset.labels[index] == label
