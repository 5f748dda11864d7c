"""The optimizer and its learning rate, a pure function of progress."""

import math

import torch
from torch import nn

from pqvae.training.config import TrainerConfig


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


def scheduled_rate(config: TrainerConfig, step: int) -> float:
    """The learning rate of the step that comes after so many."""
    return learning_rate(config.learning_rate, min(step / config.steps, 1), config.warmup)


def adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
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
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
