"""Random pictures of four plain colours each, folders and samples of them."""

from pathlib import Path

import torch
from torch import Tensor

from eval.subjects.samples import Samples
from pqvae.images import encode_png

SIZE = 8


def random_images(n: int, seed: int, size: int = SIZE, low: int | None = None) -> Tensor:
    """Four plain colours each, with ``low`` between it and 127 more: uint8 (n, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    bounds = (0, 256) if low is None else (low, low + 128)
    colours = torch.randint(*bounds, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return colours.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)


def write_images(folder: Path, images: Tensor) -> None:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        (folder / f"{index:06d}.png").write_bytes(encode_png(image))


def in_memory(images: Tensor) -> Samples:
    n = len(images)
    return Samples(Path("samples"), lambda i: images[i], n, n, images.shape[2], {}, None)
