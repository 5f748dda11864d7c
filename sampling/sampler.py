"""Cached autoregressive sampling: one stream of noise per image, stops at any prefix.

The noise of image i at position p is a function of (seed, i, p) alone, and the network always runs
on blocks of one shape: kernels round by the shape of a batch, and a draw may fall within rounding
of the border between two codes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sampling.filters import filtered_probabilities, guide
from sampling.settings import SamplingSettings
from stage2_prior.drawing import draw_codes
from stage2_prior.prior import Prior
from stage2_prior.unroll import unroll

# Images that the prior takes at once. Fewer are slower: by a fifth at 64 on a CPU, by far on a GPU.
# More cost time where few images are asked for.
BLOCK_IMAGES = {"cpu": 128, "cuda": 256, "mps": 256}


def block_size(device: torch.device) -> int:
    """How many images are sampled at once on a device, always; multiples of it waste nothing."""
    return BLOCK_IMAGES[device.type]


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
    size = block_size(prior.device)
    if labels is None:
        labels, settings = torch.full_like(indices, prior.no_class), replace(settings, guidance=1.0)
    # The last block repeats its last image.
    rows = torch.arange(-(-len(indices) // size) * size).clamp_max(len(indices) - 1)
    blocks = [
        _sample_block(prior, labels[block], indices[block], seed, prefix_length, settings)
        for block in rows.split(size)
    ]
    return torch.cat(blocks)[: len(indices)]


def _sample_block(
    prior: Prior,
    labels: Tensor,
    indices: Tensor,
    seed: int,
    prefix_length: int,
    settings: SamplingSettings,
) -> Tensor:
    guided, sequence = settings.guidance != 1, prior.sequence
    if guided:  # every image twice: given its class, and given none
        labels = torch.cat([labels, torch.full_like(labels, prior.no_class)])

    def choose(step: int, logits: Tensor) -> Tensor:
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, settings.guidance)
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_p)
        chosen = draw_codes(probabilities, seed, indices, sequence.steps[step])
        return torch.cat([chosen, chosen]) if guided else chosen

    codes = unroll(prior, labels, sequence.steps_for(prefix_length), choose)
    return codes[: len(indices), :prefix_length]
