"""The noise of samples: fixed for ever, uniform, and independent between images and positions.

Bounds on random numbers are for fixed seeds: they hold or not, once for all. The odds given are
those of right noise failing for a seed picked blindly.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pqvae.randomness import uniform_noise


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
