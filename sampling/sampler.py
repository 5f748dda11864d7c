"""Cached autoregressive sampling: one stream of noise per image, stops at any prefix.

The noise of image i at position p is a function of (seed, i, p) alone, so image i is the same
whatever the batch size and whichever images are made beside it (up to float rounding, which can
matter only where a draw falls within rounding of the border between two codes).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sampling.filters import filtered_probabilities, guide
from stage2_prior.prior import Prior


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 1.0  # 1: the plain conditional model

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must be 0 to 10, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance <= 20:
            raise ValueError(f"guidance must be 0 to 20, not {self.guidance}")


def uniform_noise(seed: int, indices: Tensor, position: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (B,), a hash of (seed, image index, position).

    SplitMix64 (Steele, Lea & Flood 2014): counter-based, so there is no state to keep.
    """
    mask = (1 << 64) - 1
    # seed + 1: the hash of 0 is 0, which would be no noise for image 0 of seed 0.
    key = ((seed + 1) * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03) & mask
    with np.errstate(over="ignore"):  # wrapping is the point
        z = indices.cpu().numpy().astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        z = z + np.uint64(key)
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) / 2**53)


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Pick a code of each row by inverting the cumulative distribution: int64 (B,), on the CPU."""
    cumulative = probabilities.cpu().double().cumsum(dim=1)  # not every device has float64
    # Below the total even after rounding, as the noise is at most 1 - 2^-53; so the first sum above
    # the target is always there, and a code that adds nothing is never that first.
    targets = (noise * cumulative[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1)


def class_labels(seed: int, indices: Tensor, class_counts: tuple[int, ...]) -> Tensor:
    """A class for each image, int64 (B,), as frequent as in the training data."""
    counts = torch.tensor(class_counts, dtype=torch.float64).expand(len(indices), -1)
    return draw(counts, uniform_noise(seed, indices, -1))


@torch.inference_mode()
def sample_codes(
    prior: Prior,
    labels: Tensor | None,
    indices: Tensor,
    seed: int,
    prefix_length: int,
    settings: SamplingSettings,
) -> Tensor:
    """Draw codes from the prior.

    Args:
        prior: In evaluation mode.
        labels: int64 (B,), the class of each image; None for no class.
        indices: int64 (B,), the number of each image: it decides the noise.
        seed: Of the whole set of images.
        prefix_length: k, 1 to N: how many codes are drawn.
        settings: How the distribution is shaped.

    Returns:
        Codes, int64 (B, k).
    """
    device = prior.device
    guided = settings.guidance != 1 and labels is not None
    if labels is not None:
        labels = labels.to(device)
    if guided and labels is not None:
        labels = torch.cat([labels, torch.full_like(labels, len(prior.class_names))])
    codes = torch.empty(len(indices), 0, dtype=torch.int64, device=device)
    cache = None
    for position in range(prefix_length):
        seen = torch.cat([codes, codes]) if guided else codes
        logits, cache = prior.next_logits(seen, labels, cache)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, settings.guidance)
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_p)
        chosen = draw(probabilities, uniform_noise(seed, indices, position)).to(device)
        codes = torch.cat([codes, chosen.unsqueeze(1)], dim=1)
    return codes
