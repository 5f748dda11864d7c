"""The one autoregressive loop: who calls it says how each code is chosen.

A sampler draws codes, a decoder reads them from a file, an encoder knows them beforehand; the
network sees no difference.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stage2_prior.layers import CachedLayers
from stage2_prior.prior import Prior

# (step, logits) -> codes: float32 (B, p, K), float64 of such a prior, and -inf where there is no
# such code, -> int64 (B, p), for the p positions ``prior.sequence.steps[step]``.
Choose = Callable[[int, Tensor], Tensor]


@torch.inference_mode()
def unroll(prior: Prior, labels: Tensor, steps: int, choose: Choose) -> Tensor:
    """Let ``choose`` pick the codes of one step after the other; keys and values are kept.

    Rows do not know of each other. For guidance, or whatever else needs several distributions of
    one image, repeat its row under other labels, and return the codes chosen for all of its rows.

    Args:
        prior: In evaluation mode.
        labels: int64 (B,), the class of each row; ``prior.no_class`` for none.
        steps: How many to take, at least 1.
        choose: Called once a step; its codes may be on any device.

    Returns:
        Codes by position, int64 (B, k), on the prior's device: the longest prefix that the steps
        hold, so all N after all steps.
    """
    chosen: list[Tensor] = []
    # Autocast would make codes depend on whether the hardware has bfloat16.
    with torch.autocast(prior.device.type, enabled=False):
        layers = CachedLayers(prior.layers, len(labels), steps)
        inputs, latent = prior.embed_labels(labels.to(prior.device)), None
        for step in range(steps):
            if step > 0:
                inputs, latent = prior.embed_codes(chosen[-1], step - 1, latent)
            logits = prior.logits(layers(inputs), step)
            chosen.append(choose(step, logits).to(prior.device))
    return prior.sequence.by_position(torch.cat(chosen, dim=1))
