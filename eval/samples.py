"""A folder of generated images as the scores read it: ``images/*.png`` with ``samples.json``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pqvae.cli import UserError
from pqvae.files import read_json
from pqvae.images import ImageError, decode_image

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Samples:
    """Square images of one size, in the order of their names."""

    folder: Path
    files: tuple[Path, ...]
    total: int  # images in the folder; ``files`` may be the first of them
    size: int  # height and width in pixels
    record: dict[str, Any]  # samples.json; empty for a plain folder of images

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Sequence[int], /) -> Tensor:
        """Decode images, uint8 (B, 3, size, size).

        Raises:
            UserError: A file is damaged or has another size; the message names it.
        """
        return torch.stack([self._read(self.files[index]) for index in indices])

    def _read(self, path: Path) -> Tensor:
        try:
            return decode_image(path.read_bytes(), self.size)
        except ImageError as error:
            raise _unusable(path, str(error)) from error


def open_samples(folder: Path, n: int | None = None) -> Samples:
    """Open a folder of samples, and check that every file is an image of the same size.

    Args:
        folder: Written by ``sampling.generate``, or any folder of PNG or JPEG files.
        n: Use the first n only.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; `python -m sampling.generate --n 10000 --out {folder}` "
            "fills it, or name a folder of PNG or JPEG files"
        )
    record = _read_record(folder / "samples.json")
    images = folder / "images" if record or (folder / "images").is_dir() else folder
    found = images.iterdir() if images.is_dir() else ()
    files = [path for path in found if path.suffix.lower() in SUFFIXES]
    files.sort(key=lambda path: (len(path.name), path.name))  # 1000000.png after 999999.png
    if not files:
        raise UserError(f"{images}: no PNG or JPEG files; `python -m sampling.generate` makes some")
    total = len(files)
    planned = record.get("n", total)
    if not record.get("complete", True) or planned != total:
        print(f"warning: {folder} is incomplete: {total} of {planned} samples", file=sys.stderr)
    if n is not None and n > total:
        raise UserError(f"--n {n}: {images} holds {total} images")
    files = files[:n]
    return Samples(folder, tuple(files), total, _common_size(files), record)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or not record:
        raise UserError(f"{path}: not a JSON object; generate the samples anew")
    return record


def _common_size(files: Sequence[Path]) -> int:
    first = _size(files[0])
    if first[0] != first[1]:
        raise UserError(f"{files[0]}: {first[0]}x{first[1]} pixels; the samples must be square")
    for path in files[1:]:
        size = _size(path)
        if size != first:
            raise UserError(
                f"{path}: {size[0]}x{size[1]} pixels, but {files[0].name} is {first[0]}x{first[1]};"
                " all samples must have one size"
            )
    return first[0]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:  # reads the header only
            return image.size
    except PermissionError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        empty = path.stat().st_size == 0
        raise _unusable(path, "empty file" if empty else "not an image") from error


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; remove the file or generate it anew")
