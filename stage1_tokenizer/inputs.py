"""What a tokenizer is given: checked, and brought to its networks in blocks of one size."""

from collections.abc import Callable

import torch
from torch import Tensor

REACH = 1.01  # of pixels: 1, and some rounding


def check_search(beam: int, refine: int) -> None:
    """Check how codes are to be searched for.

    Raises:
        ValueError: The beam is below 1, or refine below 0.
    """
    if beam < 1:
        raise ValueError(f"beam is {beam}, but must be at least 1")
    if refine < 0:
        raise ValueError(f"refine is {refine}, but must be at least 0")


def check_images(images: Tensor, size: int) -> None:
    """Check that images are float (B, 3, size, size) in [-1, 1].

    Raises:
        ValueError: They are not.
    """
    if images.ndim != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(f"images must be (B, 3, {size}, {size}), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [-1, 1], not {images.dtype}; see to_float")
    if not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -REACH and high <= REACH):  # not a number is neither
        raise ValueError(f"images must lie in [-1, 1], but reach from {low:g} to {high:g}")


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """What a function makes of rows (B, ...), in blocks of one size, the last one padded."""
    blocks = rows.split(size)
    if not len(rows):
        return function(rows)
    missing = size - len(blocks[-1])
    padded = torch.cat([blocks[-1], blocks[-1][-1:].expand(missing, *rows.shape[1:])])
    return torch.cat([function(block) for block in (*blocks[:-1], padded)])[: len(rows)]
