"""Draws: a distribution and a number in [0, 1) -> a code, or the class of an image."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pqvae.randomness import uniform_noise

CLASS_POSITION = -1  # of the noise that decides an image's class; its codes have 0 to N - 1


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely codes that reach a probability (Holtzman et al. 2020).

    Args:
        probabilities: float (..., K).
        top_p: In (0, 1]; one code is kept at the least.

    Returns:
        Probabilities (..., K) of the codes kept, 0 for the others.
    """
    if top_p == 1:
        return probabilities
    ordered = _sort_falling(probabilities)
    count = (ordered.cumsum(dim=-1) - ordered < top_p).sum(dim=-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    above, equal = probabilities > least, probabilities == least
    room = count - above.sum(dim=-1, keepdim=True)  # for the first ones of equals
    kept = above | (equal & (equal.cumsum(dim=-1) <= room))
    probabilities = torch.where(kept, probabilities, 0.0)
    return probabilities / probabilities.sum(dim=-1, keepdim=True)


def _sort_falling(values: Tensor) -> Tensor:
    """Values (..., K) from the largest to the smallest."""
    if values.device.type == "cpu":  # where NumPy's sort takes a tenth of the time of torch's
        return -torch.from_numpy(np.sort(-values.numpy()))
    return values.sort(dim=-1, descending=True).values


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Pick a code of each row by inverting the cumulative distribution: int64 (B,), on the CPU."""
    cumulative = probabilities.cpu().double().cumsum(dim=1)  # not every device has float64
    # Below the total even after rounding, as the noise is at most 1 - 2^-53; so the first sum above
    # the target is always there, and a code that adds nothing is never that first.
    targets = (noise * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1)


def draw_codes(
    probabilities: Tensor, seed: int, indices: Tensor, positions: Sequence[int]
) -> Tensor:
    """Draw a code of each image at each position, by noise that is theirs alone.

    Args:
        probabilities: float (B, p, K).
        seed: Of the whole set of images.
        indices: int64 (B,), the numbers of the images.
        positions: The p positions.

    Returns:
        int64 (B, p), on the CPU.
    """
    noise = [uniform_noise(seed, indices, position) for position in positions]
    columns = zip(probabilities.unbind(1), noise, strict=True)
    return torch.stack([draw(column, numbers) for column, numbers in columns], dim=1)


def class_labels(seed: int, indices: Tensor, class_counts: Sequence[float]) -> Tensor:
    """A class for each image, int64 (B,), as frequent as these counts say, or other weights."""
    counts = torch.tensor(class_counts, dtype=torch.float64).expand(len(indices), -1)
    return draw(counts, uniform_noise(seed, indices, CLASS_POSITION))
