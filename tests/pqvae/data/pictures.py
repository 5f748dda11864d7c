"""Pictures, and the folders and shards of them that tests write and open."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.data.sample import Split

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
