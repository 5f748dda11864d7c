"""Random numbers as pure functions of what they are for: nothing to save, nothing to resume."""

from enum import Enum

import numpy as np
import torch
from torch import Tensor


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
