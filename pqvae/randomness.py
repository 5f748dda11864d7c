"""Random numbers as pure functions of what they are for: nothing to save, nothing to resume."""

import torch


def generator_for(seed: int, *indices: int) -> torch.Generator:
    """A generator that depends on all of the numbers and on nothing else."""
    state = seed
    for index in indices:  # a linear congruential step between, so that (1, 2) is not (2, 1)
        state = (state * 6364136223846793005 + index + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state)
