"""Random numbers as pure functions of what they are for: nothing to save, nothing to resume."""

from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NORMAL_POSITION = 1 << 32  # of the first normal number; codes are drawn at those before it


class Stream(Enum):
    """What a run draws random numbers for, and the numbers that set their generators apart.

    The numbers are those of recorded runs: another one changes what such a run draws. Names with
    the same value are one member; their uses differ in the stage, or in what the indices count.
    """

    ORDER = ()  # of the images; indices: epoch
    AUGMENTATION = (1,)  # of a batch; step
    START = (2,)  # of the codebooks; 0
    PREFIX_LENGTHS = (3,)  # of a batch; step
    REVIVAL = (4,)  # of unused codes; step
    GUMBEL_NOISE = (5,)  # of stage 1; step
    VIEW_CHOICE = (5,)  # which encoding of each image stage 2 trains on; step
    ENCODED_VIEWS = ()  # the augmentations that stage 2 encodes; view, chunk
    DROPOUT = ()  # step, first image of the part
    PICTURE_NOISE = (6,)  # of a batch, and which images are shown no class; step


def generator_for(seed: int, *indices: int) -> torch.Generator:
    """A generator that depends on all of the numbers and on nothing else."""
    state = seed
    for index in indices:  # a linear congruential step between, so that (1, 2) is not (2, 1)
        state = (state * 6364136223846793005 + index + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state)


def stream_generator(seed: int, stream: Stream, *indices: int) -> torch.Generator:
    """A generator for one use in a run: of this seed, at this step, epoch or whatever counts it."""
    return generator_for(seed, *indices, *stream.value)


def uniform_noise(seed: int, indices: Tensor, position: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (B,), a hash of (seed, image index, position)."""
    return torch.from_numpy(_hashed(seed, indices, np.array([position]))[:, 0])


def normal_noise(seed: int, indices: Tensor, size: int) -> Tensor:
    """Normal numbers, float32 (B, size), functions of (seed, image index, place among them).

    By the transform of Box & Muller (1958), of other hashes than those that choose codes.
    """
    pairs = -(-size // 2)
    uniform = _hashed(seed, indices, NORMAL_POSITION + np.arange(2 * pairs))
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, :pairs])), 2 * np.pi * uniform[:, pairs:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(both[:, :size].astype(np.float32))


def _hashed(seed: int, indices: Tensor, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers (B, P) for indices (B,) and positions (P,).

    SplitMix64 (Steele, Lea & Flood 2014): counter-based, so there is no state to keep.
    """
    mask = (1 << 64) - 1
    with np.errstate(over="ignore"):  # wrapping is the point
        # seed + 1: the hash of 0 is 0, which would be no noise for image 0 of seed 0.
        keys = positions.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        keys += np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) & mask)
        z = indices.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(0xBF58476D1CE4E5B9)
        z = z + keys
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2**53
