"""Sampling: image i is a function of the seed and i, and is drawn from the prior's distribution.

Bounds on random numbers are for fixed seeds: they hold or not, once for all. The odds given are
those of a right sampler failing for a seed picked blindly.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pqvae.randomness import generator_for
from sampling.filters import filtered_probabilities, guide
from sampling.sampler import (
    SamplingSettings,
    class_labels,
    draw,
    sample_codes,
    uniform_noise,
)
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior

SIZES = (9, 5, 16, 3, 12, 7)
N = len(SIZES)
INDICES = torch.arange(100, 116)
LABELS = INDICES % 3
PLAIN = SamplingSettings()
SETTINGS = [PLAIN, SamplingSettings(temperature=0.8, top_p=0.9, guidance=2.5)]


def make_prior(sizes: tuple[int, ...]) -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8)
    prior = Prior(config, sizes, ("a", "b", "c"), (3, 2, 1), "")
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    prior.code_features.normal_()
    return prior.eval()


@pytest.fixture(scope="module")
def prior() -> Prior:
    return make_prior(SIZES)


def sample(
    prior: Prior, rows: Tensor, seed: int = 0, k: int = N, settings: SamplingSettings = PLAIN
) -> Tensor:
    return sample_codes(prior, LABELS[rows], INDICES[rows], seed, k, settings)


ALL = torch.arange(len(INDICES))


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "shaped"])
def test_an_image_is_the_same_in_any_batch_and_order(
    prior: Prior, settings: SamplingSettings
) -> None:
    codes = sample(prior, ALL, settings=settings)
    assert codes.dtype == torch.int64
    assert len(codes.unique(dim=0)) > len(codes) // 2  # they do differ from each other
    for size in (1, 8):
        parts = [sample(prior, rows, settings=settings) for rows in ALL.split(size)]
        assert torch.equal(torch.cat(parts), codes)
    order = torch.randperm(len(ALL), generator=generator_for(0))
    assert torch.equal(sample(prior, order, settings=settings), codes[order])


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "shaped"])
def test_a_prefix_is_the_beginning_of_the_whole(prior: Prior, settings: SamplingSettings) -> None:
    codes = sample(prior, ALL, settings=settings)
    for k in range(1, N + 1):
        assert torch.equal(sample(prior, ALL, k=k, settings=settings), codes[:, :k])


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "shaped"])
@torch.inference_mode()
def test_it_draws_what_the_uncached_prior_says(prior: Prior, settings: SamplingSettings) -> None:
    codes = torch.empty(len(ALL), 0, dtype=torch.int64)
    for position in range(N):
        conditional = prior(codes, LABELS)[:, -1]
        logits = guide(conditional, prior(codes)[:, -1], settings.guidance)
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_p)
        noise = uniform_noise(0, INDICES, position)
        codes = torch.cat([codes, draw(probabilities, noise).unsqueeze(1)], dim=1)
    assert torch.equal(sample(prior, ALL, settings=settings), codes)
    assert (codes < torch.tensor(SIZES)).all()


def test_another_seed_or_class_gives_other_images(prior: Prior) -> None:
    codes = sample(prior, ALL)
    assert (sample(prior, ALL, seed=1) != codes).float().mean() > 0.5
    assert not torch.equal(sample_codes(prior, None, INDICES, 0, N, PLAIN), codes)
    greedy = SamplingSettings(temperature=0)
    assert torch.equal(
        sample(prior, ALL, seed=1, settings=greedy), sample(prior, ALL, seed=2, settings=greedy)
    )


@torch.inference_mode()
def test_images_are_as_frequent_as_the_prior_says() -> None:
    prior, count = make_prior((4, 3)), 20_000
    everything = torch.cartesian_prod(torch.arange(4), torch.arange(3))
    labels = torch.zeros(count, dtype=torch.int64)
    expected = count * torch.exp2(-prior.bits(everything, labels[:12]).double().sum(1))
    assert float(expected.sum()) == pytest.approx(count, rel=1e-5)
    assert expected.min() > 5
    codes = sample_codes(prior, labels, torch.arange(count), 0, 2, PLAIN)
    counts = torch.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=12)
    # Chi-square with 11 degrees of freedom: above 37.4 once in 10,000 seeds.
    assert float(((counts - expected).square() / expected).sum()) < 37.4


# Noise.


def split_mix(seed: int, index: int, position: int) -> float:
    """The reference, in whole numbers of any length."""
    mask = 2**64 - 1
    z = (seed + 1) * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + index * 0xBF58476D1CE4E5B9
    z &= mask
    for _ in range(2):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        z ^= z >> 31
    return (z >> 11) / 2**53


def test_the_noise_never_changes() -> None:
    # Frozen: another version of the program must make the same images.
    indices = torch.tensor([0, 1, 9999, 2**40])
    for seed, position, expected in FROZEN:
        noise = uniform_noise(seed, indices, position)
        assert noise.dtype == torch.float64
        assert noise.tolist() == expected
        assert noise.tolist() == [split_mix(seed, i, position) for i in indices.tolist()]


FROZEN: list[tuple[int, int, list[float]]] = [
    (0, 0, [0.28176129772258496, 0.039163253793213615, 0.806645821775845, 0.05981391386698409]),
    (0, -1, [0.9997670791905252, 0.7728714094540164, 0.6798501201262261, 0.6148181530184474]),
    (7, 3, [0.44378274738648704, 0.12852055172735022, 0.6596396498093252, 0.7408727349459198]),
    (
        2**63 - 1,
        31,
        [0.03530158411873552, 0.5367513820792381, 0.06535890904612973, 0.913383402861973],
    ),
]


def ks_distance(values: Tensor) -> float:
    """Kolmogorov and Smirnov's distance from the uniform distribution, times the root of n."""
    n = len(values)
    ordered = values.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()
    return float(distance) * math.sqrt(n)


def test_the_noise_is_uniform() -> None:
    for seed, position in ((0, 0), (1, 0), (0, 31), (2**63 - 1, 5), (0, -1)):
        noise = uniform_noise(seed, torch.arange(50_000), position)
        assert noise.min() >= 0
        assert noise.max() < 1
        assert ks_distance(noise) < 2.3  # 2 exp(-2 x 2.3^2): exceeded once in 20,000 seeds
    # The positions of one image, and one position over seeds, are streams as well.
    along = torch.cat([uniform_noise(0, torch.tensor([7]), p) for p in range(5000)])
    across = torch.cat([uniform_noise(seed, torch.tensor([7]), 0) for seed in range(5000)])
    assert ks_distance(along) < 2.3
    assert ks_distance(across) < 2.3


def test_the_noise_of_images_positions_and_seeds_is_independent() -> None:
    n = 50_000
    indices = torch.arange(n)
    first = uniform_noise(0, indices, 0)
    for other in (
        uniform_noise(0, indices + 1, 0),  # the next image
        uniform_noise(0, indices, 1),  # the next position
        uniform_noise(1, indices, 0),  # the next seed
        uniform_noise(1, indices, 1),
        uniform_noise(0, indices, -1),  # the draw of the class
        uniform_noise(0, indices + 64, 0),
    ):
        pairs = np.corrcoef(first.numpy(), other.numpy())[0, 1]
        assert abs(pairs) < 4.5 / math.sqrt(n)  # 4.5 standard deviations: 7 in a million seeds
        # More than correlation: all 10 x 10 cells are equally full. 150.0 is exceeded by a
        # chi-square of 99 degrees of freedom once in 1,400 seeds.
        cells = (first * 10).long() * 10 + (other * 10).long()
        counts = torch.bincount(cells, minlength=100).double()
        assert float((counts - n / 100).square().sum() / (n / 100)) < 150


# Draws.


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", 11.0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("guidance", -1.0),
        ("guidance", math.inf),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')} must be"):
        SamplingSettings(**{name: value})
