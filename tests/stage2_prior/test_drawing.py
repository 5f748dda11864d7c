"""Draws: each code as often as its probability says, an impossible one never.

Bounds on random numbers are for fixed seeds: they hold or not, once for all. The odds given are
those of right draws failing for a seed picked blindly.
"""

import pytest
import torch

from pqvae.randomness import generator_for, uniform_noise
from stage2_prior.drawing import class_labels, draw


def reference_draw(probabilities: list[float], noise: float) -> int:
    total, target = 0.0, noise * sum(probabilities)
    for code, probability in enumerate(probabilities):
        total += probability
        if target < total:
            return code
    raise AssertionError


def test_draw_inverts_the_cumulative_distribution() -> None:
    generator = generator_for(0)
    probabilities = torch.rand(400, 9, generator=generator)
    probabilities[torch.rand(400, 9, generator=generator) < 0.4] = 0
    probabilities[:, 4] += 0.01  # none is empty
    noise = torch.rand(400, dtype=torch.float64, generator=generator)
    rows = probabilities.double().tolist()
    expected = [reference_draw(row, u) for row, u in zip(rows, noise.tolist(), strict=True)]
    assert draw(probabilities, noise).tolist() == expected


@pytest.mark.parametrize("noise", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_draw_never_picks_a_code_of_probability_zero(noise: float) -> None:
    rows = [[0, 0, 1, 0], [0.5, 0, 0.5, 0], [0, 1e-30, 0, 0], [1e-30, 0, 1, 0], [0.1, 0.2, 0.7, 0]]
    probabilities = torch.tensor(rows, dtype=torch.float32)
    chosen = draw(probabilities, torch.full((len(rows),), noise, dtype=torch.float64))
    assert (probabilities.gather(1, chosen.unsqueeze(1)) > 0).all()


def test_draw_stays_below_the_total_at_the_largest_noise() -> None:
    # Totals of every size and roundness, followed by a code of probability zero.
    totals = torch.rand(20_000, 1, dtype=torch.float64, generator=generator_for(0)) * 4
    totals = torch.cat([totals, 2.0 ** torch.arange(-60, 60)[:, None].double()])
    probabilities = torch.cat([totals / 3, totals, totals * 0], dim=1)
    noise = torch.full((len(totals),), 1 - 2**-53, dtype=torch.float64)
    assert (draw(probabilities, noise) == 1).all()


def test_draws_are_as_frequent_as_the_distribution_says() -> None:
    count = 20_000
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.15, 0.1, 0.05])
    noise = uniform_noise(3, torch.arange(count), 2)
    counts = torch.bincount(draw(probabilities.expand(count, -1), noise), minlength=6).double()
    assert counts[1] == 0
    expected = count * probabilities[probabilities > 0].double()
    observed = counts[probabilities > 0]
    # Chi-square with 4 degrees of freedom: above 23.5 once in 10,000 seeds.
    assert float(((observed - expected).square() / expected).sum()) < 23.5


def test_classes_are_as_frequent_as_in_the_training_data() -> None:
    count, class_counts = 20_000, (100, 0, 300, 600)
    labels = class_labels(5, torch.arange(count), class_counts)
    counts = torch.bincount(labels, minlength=4).double()
    assert counts[1] == 0
    expected = torch.tensor([2000.0, 6000.0, 12000.0])
    observed = counts[[0, 2, 3]]
    # Chi-square with 2 degrees of freedom: above 18.4 once in 10,000 seeds.
    assert float(((observed - expected).square() / expected).sum()) < 18.4
    shuffled = torch.randperm(count, generator=generator_for(0))
    assert torch.equal(class_labels(5, shuffled, class_counts), labels[shuffled])
