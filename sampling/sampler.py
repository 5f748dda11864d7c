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
from stage2_prior.sequence import Sequence
from stage2_prior.unroll import Choose, unroll

# Images that the prior takes at once, always; multiples of it waste nothing. Fewer are slower: by a
# fifth at 128 on two cores, by far on a GPU. More cost time where few images are asked for.
BLOCK_IMAGES = 256


def sample_codes(
    prior: Prior,
    labels: Tensor | None,
    indices: Tensor,
    seed: int,
    prefix_length: int,
    settings: SamplingSettings,
    kept: Tensor | None = None,
) -> Tensor:
    """Draw codes from the prior.

    Args:
        prior: In evaluation mode.
        labels: int64 (B,), the class of each image; None for no class.
        indices: int64 (B,), the number of each image: it decides the noise.
        seed: Of the whole set of images.
        prefix_length: k, 1 to N: how many codes an image gets.
        settings: How the distribution is shaped.
        kept: int64 (B, j), j from 0 to k: codes that each image begins with, as of a picture. The
            others are drawn given those that come before them in ``prior.sequence``. None is j = 0.

    Returns:
        Codes, int64 (B, k).

    Raises:
        ValueError: More codes are kept than an image gets.
    """
    sequence = prior.sequence
    kept = indices.new_empty(len(indices), 0) if kept is None else kept.cpu()
    if kept.shape[1] > prefix_length:
        raise ValueError(f"{kept.shape[1]} codes are kept, but an image gets {prefix_length}")
    if kept.shape[1] == prefix_length:
        return kept.to(prior.device)
    if labels is None:
        labels, settings = torch.full_like(indices, prior.no_class), replace(settings, guidance=1.0)
    # The last block repeats its last image.
    rows = torch.arange(-(-len(indices) // BLOCK_IMAGES) * BLOCK_IMAGES).clamp_max(len(indices) - 1)
    blocks = []
    for block in rows.split(BLOCK_IMAGES):
        classes = labels[block]
        if settings.guidance != 1:  # every image twice: given its class, and given none
            classes = torch.cat([classes, torch.full_like(classes, prior.no_class)])
        choose = _chooser(sequence, indices[block], seed, settings, kept[block])
        codes = unroll(prior, classes, sequence.steps_for(prefix_length), choose)
        blocks.append(codes[:BLOCK_IMAGES, :prefix_length])
    return torch.cat(blocks)[: len(indices)]


def _chooser(
    sequence: Sequence, indices: Tensor, seed: int, settings: SamplingSettings, kept: Tensor
) -> Choose:
    """What picks the codes of each step: the kept ones where a step holds some, else draws."""

    def choose(step: int, logits: Tensor) -> Tensor:
        positions, guided = sequence.steps[step], settings.guidance != 1
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, settings.guidance)
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_p)
        chosen = draw_codes(probabilities, seed, indices, positions)
        for place, position in enumerate(positions):
            if position < kept.shape[1]:
                chosen[:, place] = kept[:, position]
        return torch.cat([chosen, chosen]) if guided else chosen

    return choose
