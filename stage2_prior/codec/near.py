"""Pictures that are nearly the same, by what their first codes say."""

import torch
from torch import Tensor

ROWS = 1024  # compared with all others at once


def near_pairs(latents: Tensor, within: float) -> list[tuple[int, int, float]]:
    """All pairs of latents (n, D) that are this near, nearest first.

    Args:
        latents: What the first codes of each picture say, of about unit variance.
        within: Squared distance over the sum of their energies: 0 of equal ones, about 1 of any.

    Returns:
        Two indices, the smaller one first, and the distance.
    """
    energies = latents.square().sum(1)
    pairs = []
    for start in range(0, len(latents), ROWS):
        rows = latents[start : start + ROWS]
        sums = energies[start : start + ROWS, None] + energies
        distances = 1 - 2 * rows @ latents.T / sums
        above = torch.arange(len(latents)) > torch.arange(start, start + len(rows))[:, None]
        for a, b in ((distances <= within) & above.to(distances.device)).nonzero().tolist():
            pairs.append((start + a, b, max(0.0, float(distances[a, b]))))
    return sorted(pairs, key=lambda pair: pair[2])
