"""Codes as they come from users: whole numbers of any type, in tensors and arrays."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Codes = Tensor | np.ndarray  # of any whole-number type


def as_codes(codes: Codes, device: torch.device) -> Tensor:
    """The same numbers as int64 on a device.

    Raises:
        ValueError: They are not of a whole-number type.
    """
    if isinstance(codes, np.ndarray):
        whole = codes.dtype.kind in "iu"
        codes = torch.from_numpy(codes.astype(np.int64)) if whole else codes
    else:
        kind = codes.dtype
        whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    if not (whole and isinstance(codes, Tensor)):
        raise ValueError(f"codes must be whole numbers, as int64 or uint8, not {codes.dtype}")
    return codes.to(device, torch.int64)


def check_codes(codes: Tensor, sizes: Sequence[int]) -> None:
    """Check codes int64 (B, k) against K_i of k positions.

    Raises:
        ValueError: One is outside [0, K_i).
    """
    if ((codes < 0) | (codes >= torch.tensor(sizes, device=codes.device))).any():
        raise ValueError(f"codes must lie in [0, K) with K = {tuple(sizes)}")


def codes_of_bytes(sizes: Sequence[int], size: int) -> int:
    """How many codes of these numbers of entries so many bytes hold, each in whole bits."""
    ends = itertools.accumulate((each - 1).bit_length() for each in sizes)
    return sum(end <= 8 * size for end in ends)


def code_entropy_bits(codes: Tensor, sizes: tuple[int, ...]) -> list[float]:
    """Entropy of the codes (B, N) at each position over a data set, in bits; at most log2 K_i."""
    entropies = []
    for position, size in enumerate(sizes):
        counts = torch.bincount(codes[:, position], minlength=size).double()
        shares = counts / counts.sum()
        entropies.append(float(-torch.special.xlogy(shares, shares).sum() / math.log(2)))
    return entropies
