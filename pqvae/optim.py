"""The optimizer and its learning rate, a pure function of progress."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from pqvae.cli import UserError


def learning_rate(peak: float, progress: float, warmup: float) -> float:
    """Linear warm-up over the first share of the run, then a cosine to zero.

    Args:
        peak: The highest rate.
        progress: Share of the run that is done, in [0, 1].
        warmup: Share of the run that warms up, in [0, 1).
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def adamw(model: nn.Module, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions only, not biases, norms and embeddings."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decayed, plain = [], []
    for parameter in model.parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2), fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, step: int) -> float:
    """Scale the gradients to at most this norm; returns the norm before.

    Raises:
        UserError: A gradient is not finite; the weights are still those of the step before.
    """
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    if not math.isfinite(norm):
        raise UserError(
            f"step {step}: the gradient is not finite; a lower trainer.learning_rate usually helps"
        )
    return norm
