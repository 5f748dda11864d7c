"""Generated images as the scores read them: a folder, WebDataset shards, or an ``.npz`` file."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqvae.cli import next_command
from pqvae.data.config import NAMED
from pqvae.data.dataset import list_images
from pqvae.data.sample import Sample
from pqvae.errors import UserError, is_out_of_memory
from pqvae.images import ImageError, decode_image, image_size
from sampling.folder import image_path, read_record


@dataclass(frozen=True, slots=True)
class Samples:
    """Square images of one size; in a folder, in the order of their names."""

    path: Path
    read: Callable[[int], Tensor]  # uint8 (3, size, size); UserError for a damaged image
    n: int
    total: int  # images at ``path``; the n may be the first of them
    image_size: int  # height and width in pixels
    record: dict[str, Any]  # samples.json; empty where there is none
    labels: tuple[str, ...] | None  # name or number of the class of each of the n images

    def __len__(self) -> int:
        return self.n

    def images(self, indices: Sequence[int] | Tensor, /) -> Tensor:
        """Images by number, uint8 (B, 3, size, size).

        Raises:
            UserError: One is damaged; the message names it.
        """
        return torch.stack([self.read(index) for index in torch.as_tensor(indices).tolist()])


def open_samples(path: Path, n: int | None = None) -> Samples:
    """Open samples, and check that every one is an image of the same size.

    Args:
        path: A folder of ``sampling.generate``, of images, class folders or shards; a ``.tar``
            shard; or an ``.npz`` file whose first array is uint8 (N, H, W, 3), and whose second,
            where there is one, holds class numbers (Dhariwal & Nichol 2021).
        n: Use the first n only.

    Raises:
        UserError: There are no samples, fewer than n, or ones that differ in size.
    """
    if path.suffix == ".npz":
        return _open_array(path, n)
    if path.is_file() and path.suffix != ".tar":
        raise UserError(
            f"{path}: not an .npz file; give one (numpy.savez makes it of an array), a .tar shard, "
            "or a folder of images or shards"
        )
    if not path.is_dir() and path.suffix != ".tar":
        fills = next_command("sampling.generate", "--n", "10000", "--out", path)
        raise UserError(
            f"{path}: no such folder; `{fills}` "
            "fills it, or name a folder of images, of shards, or an .npz file"
        )
    record = read_record(path)
    folder = path / "images" if (path / "images").is_dir() else path
    files = _encoded(folder)
    total = len(files)
    planned = record.get("n", total)
    if not record.get("complete", True) or planned != total:
        print(f"warning: {path} is incomplete: {total} of {planned} samples", file=sys.stderr)
    files = files[: _count(folder, n, total)]
    size = _common_size(files)
    return Samples(
        path,
        lambda index: _decode(files[index], size),
        len(files),
        total,
        size,
        record,
        _labels(files, record),
    )


def sample_facts(samples: Samples, content_hash: str) -> dict[str, dict[str, Any]]:
    """What a report must say of samples whose pixels have this sha256."""
    return {
        "samples": {
            "path": str(samples.path),
            "images": len(samples),
            "of": samples.total if samples.total > len(samples) else None,
            "sha256": content_hash,
        },
        "sampler": {
            "seed": samples.record.get("seed"),
            "decoder": samples.record.get("decoder"),
            **samples.record.get("settings", {}),
            "prior": samples.record.get("prior_hash"),
            "tokenizer": samples.record.get("tokenizer_hash"),
        },
    }


def _open_array(path: Path, n: int | None) -> Samples:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[key] for key in file.files]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged input
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not an .npz file of images, or damaged") from error
    shape = arrays[0].shape if arrays else ()
    if not (
        len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and arrays[0].dtype == np.uint8
    ):
        found = f"{arrays[0].dtype} {shape}" if arrays else "missing"
        raise UserError(f"{path}: its first array must be uint8 (N, size, size, 3), not {found}")
    pixels = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)
    n = _count(path, n, len(pixels))
    labels = arrays[1] if len(arrays) > 1 and arrays[1].shape == (len(pixels),) else None
    return Samples(
        path,
        lambda index: pixels[index],
        n,
        len(pixels),
        pixels.shape[2],
        {},
        None if labels is None else tuple(str(label) for label in labels[:n]),
    )


def _count(path: Path, n: int | None, total: int) -> int:
    if n is not None and n > total:
        raise UserError(f"--n {n}: {path} holds {total} images")
    return total if n is None else n


def _encoded(path: Path) -> list[Sample]:
    """The images at a path, as training would read them, in the order of their numbers."""
    listing = list_images(os.path.join(".", path) if str(path) in NAMED else str(path))
    splits = list(listing.samples)
    if len(splits) > 1:
        raise UserError(
            f"{path}: holds splits ({', '.join(splits)}); give the images of one, such as those of "
            f"{splits[0]}"
        )
    samples = listing.samples[splits[0]]
    return sorted(samples, key=lambda sample: (len(sample.key), sample.key))  # 1000000 last


def _labels(files: Sequence[Sample], record: dict[str, Any]) -> tuple[str, ...] | None:
    """The class of each sample: as its shard says, else as the record does."""
    if all(file.label is not None for file in files):
        return tuple(file.label or "" for file in files)
    drawn = record.get("settings", {}).get("class")
    if drawn is not None:
        return (drawn,) * len(files)
    labels, names = record.get("labels"), list(record.get("class_counts", {}))
    if not labels:
        return None
    # By the number in the name: an incomplete folder has gaps.
    known = {image_path(Path(), index).stem: label for index, label in enumerate(labels)}
    classes = [known.get(Path(file.key).stem, -1) for file in files]
    if any(label not in range(len(names)) for label in classes):
        return None
    return tuple(names[label] for label in classes)


def _common_size(files: Sequence[Sample]) -> int:
    first = _size(files[0])
    if first[0] != first[1]:
        raise UserError(
            f"{files[0].place}: {first[0]}x{first[1]} pixels; the samples must be square"
        )
    for file in files[1:]:
        size = _size(file)
        if size != first:
            raise UserError(
                f"{file.place}: {size[0]}x{size[1]} pixels, but {Path(files[0].key).name} is "
                f"{first[0]}x{first[1]}; all samples must have one size"
            )
    return first[0]


def _size(file: Sample) -> tuple[int, int]:
    try:
        return image_size(file.read())
    except ImageError as error:
        raise _unusable(file, str(error)) from error


def _decode(file: Sample, size: int) -> Tensor:
    try:
        return decode_image(file.read(), size)
    except ImageError as error:
        raise _unusable(file, str(error)) from error


def _unusable(file: Sample, reason: str) -> UserError:
    return UserError(f"{file.place}: {reason}; remove the file or generate it anew")
