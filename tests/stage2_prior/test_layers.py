"""The layers step by step: what x-transformers says of the whole sequence at once."""

import pytest
import torch
from torch import nn

from pqvae.randomness import generator_for
from stage2_prior.config import PriorConfig
from stage2_prior.layers import CachedLayers, build_layers

BATCH, STEPS = 5, 40
CONFIGS = {
    "two heads": PriorConfig(width=64, depth=2, heads=2),
    "one head": PriorConfig(width=32, depth=3, heads=1),
    "dropout": PriorConfig(width=64, depth=1, heads=2, dropout=0.5),
    "default": PriorConfig(),
}
# Hidden states are of order 1; float32 sums of other shapes and orders.
TOLERANCE = 2e-5


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_step_at_a_time_is_the_whole_sequence_at_once(name: str) -> None:
    torch.manual_seed(0)
    layers = build_layers(CONFIGS[name]).eval()
    for parameter in layers.parameters():  # also the gains, which start at nothing
        nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(BATCH, STEPS, CONFIGS[name].width, generator=generator_for(0))
    expected = layers(inputs)
    assert expected.std(dim=1).min() > 0.05  # positions do differ
    cached = CachedLayers(layers, BATCH, STEPS)
    found = torch.cat([cached(inputs[:, step : step + 1]) for step in range(STEPS)], dim=1)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
