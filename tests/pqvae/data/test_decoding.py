"""Decoding: odd pictures are right, damaged ones are left out and named, too many are refused."""

import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pqvae.data.dataset
from pqvae.errors import UserError
from stage1_tokenizer import train
from tests.pqvae.data.pictures import SIZE, encoded, open_split, picture, write_folder, write_shard


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
    for place in places[:2]:
        assert f"{place} (" in line
    assert line.count("; ") == 2
    assert line.endswith(f"; and {len(bad) - 2} more")


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
