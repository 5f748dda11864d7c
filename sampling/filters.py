"""Logits -> the distribution that is sampled from: guidance, temperature, top-p."""

import torch
from torch import Tensor

from stage2_prior.drawing import nucleus

GREEDY_BELOW = 1e-30  # a temperature by which float32 logits may not be divided


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022): 1 is the plain conditional model."""
    difference = conditional - unconditional
    # Codes that do not exist are -inf on both sides.
    return unconditional + scale * torch.nan_to_num(difference, nan=0.0)


def filtered_probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (..., K) of logits (..., K) at a temperature, cut to the nucleus.

    Args:
        logits: float (..., K); -inf where there is no code.
        temperature: 0 is greedy, and so is what lies near; 1 the model as it is.
        top_p: As for ``nucleus``, in (0, 1].
    """
    if temperature < GREEDY_BELOW:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return nucleus((logits / temperature).softmax(dim=-1), top_p)
