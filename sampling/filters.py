"""Logits -> the distribution that is sampled from: guidance, temperature, top-p."""

import torch
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (Ho & Salimans 2022): 1 is the plain conditional model."""
    difference = conditional - unconditional
    # Codes that do not exist are -inf on both sides.
    return unconditional + scale * torch.nan_to_num(difference, nan=0.0)


def filtered_probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (B, K) of logits (B, K) at a temperature, cut to the nucleus.

    Args:
        logits: float (B, K); -inf where there is no code.
        temperature: 0 is greedy; 1 the model as it is.
        top_p: Keep the fewest most likely codes whose probability reaches this (Holtzman et al.
            2020), in (0, 1]; never fewer than one.
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    probabilities = (logits / temperature).softmax(dim=1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True)
        before = ordered.cumsum(dim=1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered)
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    return probabilities
