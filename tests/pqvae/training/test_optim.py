"""The learning-rate schedule, and which weights decay."""

import copy

import pytest
import torch
from torch import nn

from pqvae.training.optim import adamw, learning_rate


@pytest.mark.parametrize(
    ("progress", "warmup", "share"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1.0),
        (0.55, 0.1, 0.5),  # halfway down the cosine
        (1.0, 0.1, 0.0),
        (0.0, 0.0, 1.0),  # no warm-up: the peak at once
        (0.5, 0.0, 0.5),
        (1.0, 0.0, 0.0),
        (0.25, 0.0, 0.5 + 0.5 * 2**-0.5),
    ],
)
def test_rate_at_the_corners_of_the_schedule(progress: float, warmup: float, share: float) -> None:
    assert learning_rate(3e-4, progress, warmup) == pytest.approx(3e-4 * share, abs=1e-15)


def test_rate_rises_to_the_peak_and_then_only_falls() -> None:
    rates = [learning_rate(1.0, step / 1000, 0.03) for step in range(1001)]
    top = rates.index(max(rates))
    assert top == 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.convolution = nn.Conv1d(1, 2, 3)
        self.group_norm = nn.GroupNorm(1, 2)


def test_weight_decay_shrinks_matrices_and_convolutions_only() -> None:
    torch.manual_seed(0)
    network = Network()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(network)
    optimizer = adamw(network, weight_decay=0.1, betas=(0.9, 0.99))
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    for name, parameter in network.named_parameters():
        old = before.get_parameter(name)
        if name in ("linear.weight", "convolution.weight"):
            assert torch.allclose(parameter, old * (1 - 0.5 * 0.1))
        else:
            assert torch.equal(parameter, old), name


def test_every_parameter_is_optimized_once() -> None:
    network = Network()
    optimizer = adamw(network, weight_decay=0.1, betas=(0.9, 0.99))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
