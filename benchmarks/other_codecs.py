"""Ways to write a small picture as few bytes, beside ours: placeholders and picture formats."""

import functools
import importlib
import importlib.metadata
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from benchmarks import thumb_hash

BLURHASH, THUMBHASH, WEBP = "BlurHash", "ThumbHash", "WebP"
COMPONENTS = ((3, 3), (4, 3), (4, 4), (5, 5), (6, 6), (7, 7))  # of BlurHash, across and down
# The lowest that each encoder takes, and above. JPEG's 0 is its 1.
QUALITIES = {
    "WEBP": (0, 1, 2, 5, 10, 20, 30),
    "JPEG": (1, 3, 4, 5, 7, 10, 15, 20),
    "AVIF": (0, 5, 10, 20, 30, 40),
    "JXL": (0, 5, 10, 20, 30, 40),
}
JXL_PACKAGE = "pillow-jxl-plugin"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to write a picture.

    Attributes:
        method: The way's name.
        setting: How it is set.
        encode: uint8 (3, S, S) -> bytes.
        decode: Those bytes -> uint8 (3, S, S).
    """

    method: str
    setting: str
    encode: Callable[[Tensor], bytes]
    decode: Callable[[bytes], Tensor]


def settings_here(side: int) -> tuple[list[Setting], list[str]]:
    """All settings for pictures of this side in pixels; and a line on each way that is not here."""
    settings = [
        Setting(THUMBHASH, "", thumb_hash.encode, functools.partial(thumb_hash.decode, side=side))
    ]
    missing = []
    if blurhash := _module("blurhash"):
        settings += _blurhash_settings(blurhash, side)
    else:
        missing.append(f"no {BLURHASH}: pip install blurhash")
    settings += _pillow_settings(WEBP, "WEBP", method=6)
    for chroma in ("4:2:0", "4:4:4"):
        settings += _pillow_settings(f"JPEG {chroma}", "JPEG", subsampling=chroma)
        name = f"JPEG {chroma}, optimized"  # Huffman tables of its own: shorter, but not constant
        settings += _pillow_settings(name, "JPEG", subsampling=chroma, optimize=True)
        if features.check("avif"):
            name, options = f"AVIF {chroma}", {"speed": 0, "max_threads": 1}
            settings += _pillow_settings(name, "AVIF", subsampling=chroma, **options)
    if not features.check("avif"):
        missing.append("no AVIF: this Pillow was built without it; pip install --upgrade pillow")
    if jxl := _module("pillow_jxl"):
        decode = functools.partial(_decode_jxl, jxl)
        for each in _pillow_settings("JPEG XL", "JXL", effort=9, num_threads=1):
            settings.append(Setting(each.method, each.setting, each.encode, decode))
    else:
        missing.append(f"no JPEG XL: pip install {JXL_PACKAGE}")
    return settings, missing


def codec_versions() -> dict[str, str]:
    """Versions of the libraries behind the settings, of those that are here."""
    names = {"webp": "libwebp", "jpg": "libjpeg", "avif": "libavif"}
    found = {name: features.version(feature) for feature, name in names.items()}
    for package in ("pillow", "blurhash", JXL_PACKAGE):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {name: version for name, version in found.items() if version}


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _blurhash_settings(blurhash: ModuleType, side: int) -> Iterator[Setting]:
    """BlurHash by its package in plain Python: the strings and pixels of the original."""

    def encode(image: Tensor, across: int, down: int) -> bytes:
        return blurhash.encode(image.permute(1, 2, 0).tolist(), across, down).encode()

    def decode(data: bytes) -> Tensor:
        rows = blurhash.decode(data.decode(), side, side)
        return torch.tensor(rows, dtype=torch.uint8).permute(2, 0, 1)

    for across, down in COMPONENTS:
        one = functools.partial(encode, across=across, down=down)
        yield Setting(BLURHASH, f"{across}x{down}", one, decode)


def _pillow_settings(name: str, form: str, **options: Any) -> Iterator[Setting]:
    """A format that Pillow writes, at each of its qualities."""

    def encode(image: Tensor, quality: int) -> bytes:
        buffer = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(buffer, form, quality=quality, **options)
        return buffer.getvalue()

    def decode(data: bytes) -> Tensor:
        with Image.open(io.BytesIO(data), formats=[form]) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    for quality in QUALITIES[form]:
        yield Setting(name, f"q={quality}", functools.partial(encode, quality=quality), decode)


def _decode_jxl(jxl: ModuleType, data: bytes) -> Tensor:
    """By the plugin's decoder, as through Pillow it takes all cores."""
    _, info, pixels, *_ = jxl.Decoder(num_threads=0)(data)
    array = np.frombuffer(pixels, np.uint8).reshape(info.height, info.width, -1)
    return torch.from_numpy(array[..., :3].copy()).permute(2, 0, 1)
