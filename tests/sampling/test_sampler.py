"""Sampling: image i is a function of the seed and i, and is drawn from the prior's distribution.

Bounds on random numbers are for fixed seeds: they hold or not, once for all. The odds given are
those of a right sampler failing for a seed picked blindly.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from pqvae.randomness import generator_for, uniform_noise
from sampling.filters import filtered_probabilities, guide
from sampling.sampler import BLOCK_IMAGES, sample_codes
from sampling.settings import SamplingSettings
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.drawing import draw
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence, coarse_to_fine

SIZES = (9, 5, 16, 3, 12, 7)
N = len(SIZES)
INDICES = torch.arange(100, 116)
LABELS = INDICES % 3
PLAIN = SamplingSettings()
SETTINGS = [PLAIN, SamplingSettings(temperature=0.8, top_p=0.9, guidance=2.5)]


def make_prior(sizes: tuple[int, ...], sequence: Sequence | None = None) -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8)
    prior = Prior(config, Codebooks.separate(sizes), ("a", "b", "c"), (3, 2, 1), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    for book in prior.books:
        book.set_meaning(torch.randn(book.meaning.shape), None)
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
def test_the_network_always_runs_on_the_same_shape(
    prior: Prior, settings: SamplingSettings
) -> None:
    shapes = set()
    hook = prior.head_projection.register_forward_pre_hook(
        lambda _, hidden: shapes.add(hidden[0].shape)
    )
    size = BLOCK_IMAGES
    for n in (1, size, size + 1):
        codes = sample_codes(prior, torch.arange(n) % 3, torch.arange(n), 0, N, settings)
        assert codes.shape == (n, N)
    hook.remove()
    assert shapes == {(size * (1 + (settings.guidance != 1)), 1, 64)}


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


REVERSED = Sequence(tuple((position,) for position in reversed(range(N))))
MIXED = Sequence(((4, 1), (0, 5), (3,), (2,)))  # the second position comes before the first


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "shaped"])
@pytest.mark.parametrize("sequence", [coarse_to_fine(N), REVERSED, MIXED])
@torch.inference_mode()
def test_kept_codes_stay_and_the_others_are_drawn_given_what_comes_before_them(
    sequence: Sequence, settings: SamplingSettings
) -> None:
    prior = make_prior(SIZES, sequence)
    kept = torch.stack([torch.arange(len(ALL)) % size for size in SIZES[:2]], dim=1)
    placed = torch.empty(len(ALL), 0, dtype=torch.int64)
    for positions in sequence.steps:
        first, last = placed.shape[1], placed.shape[1] + len(positions)
        conditional, free = (prior(placed, labels)[:, first:last] for labels in (LABELS, None))
        logits = guide(conditional, free, settings.guidance)
        for column, position in enumerate(positions):
            probabilities = filtered_probabilities(
                logits[:, column], settings.temperature, settings.top_p
            )
            codes = draw(probabilities, uniform_noise(0, INDICES, position))
            codes = kept[:, position] if position < 2 else codes
            placed = torch.cat([placed, codes.unsqueeze(1)], dim=1)
    expected = torch.empty_like(placed)
    expected[:, list(sequence.order)] = placed
    for k in (3, N):
        found = sample_codes(prior, LABELS, INDICES, 0, k, settings, kept)
        assert torch.equal(found, expected[:, :k])


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "shaped"])
def test_an_image_that_keeps_its_own_first_codes_is_drawn_again(
    prior: Prior, settings: SamplingSettings
) -> None:
    codes = sample(prior, ALL, settings=settings)
    for j in range(N + 1):
        again = sample_codes(prior, LABELS, INDICES, 0, N, settings, codes[:, :j])
        assert torch.equal(again, codes)
    rows = torch.tensor([7, 2])  # alone and in another order
    part = sample_codes(prior, LABELS[rows], INDICES[rows], 0, N, settings, codes[rows, :2])
    assert torch.equal(part, codes[rows])
    with pytest.raises(ValueError, match="3 codes are kept, but an image gets 2"):
        sample_codes(prior, LABELS, INDICES, 0, 2, settings, codes[:, :3])


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
