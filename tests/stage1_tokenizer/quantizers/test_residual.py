"""The residual kind as a whole: its config, decay, revival, and what sharing a codebook costs."""

import math

import pytest
import torch
from torch import Tensor

from pqvae.config import load_config
from pqvae.errors import UserError
from pqvae.randomness import generator_for
from stage1_tokenizer.config import Config, ResidualConfig
from stage1_tokenizer.quantizers.residual import ResidualQuantizer

DIM, FINITE = 6, torch.tensor(True)


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def step(quantizer: ResidualQuantizer, latents: Tensor, number: int) -> None:
    """One step of training at the start of it."""
    description = quantizer.describe(latents, 0.0, generator_for(0))
    quantizer.learn(description, number, 0.0, FINITE, generator_for(1, number))


def test_late_positions_do_nearly_as_well_on_new_latents_as_learned_ones() -> None:
    dim, rank = 160, 80  # enough that a code says little of each dimension
    deviations = 1 / (1 + torch.arange(dim) / 40) ** 2
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator_for(0))).Q

    def batch(seed: int) -> Tensor:
        return torch.randn(256, dim, generator=generator_for(1, seed)) * deviations @ rotation.T

    def left_of_new(learned_codes: int) -> Tensor:
        config = ResidualConfig(
            num_codes=16,
            codebook_sizes=(32,),
            learned_codes=learned_codes,
            rank=rank,
            decay_start=0.95,
            decay_end=0.95,
            revive_every=1000,
        )
        quantizer = ResidualQuantizer(config, (dim, 1, 1))
        quantizer.start(batch(0), generator_for(2))
        for number in range(200):
            step(quantizer, quantizer.normalize(batch(1 + number)), number)
        new = quantizer.normalize(torch.cat([batch(seed) for seed in range(1000, 1004)]))
        return quantizer.describe(new, 0.0, generator_for(0)).left().mean(1)

    found, all_learned = left_of_new(learned_codes=2), left_of_new(learned_codes=16)
    assert (found.diff() < 0).all()
    assert found[-1] < 1.1 * all_learned[-1]


@pytest.mark.parametrize("different", [1, 4, 10])
def test_fewer_different_latents_than_entries_give_finite_codebooks(different: int) -> None:
    # The first position describes them all, and leaves later ones nothing to learn from.
    encoded = latents_of(different).repeat(50, 1)
    config = ResidualConfig(
        num_codes=3,
        codebook_sizes=(16, 16, 3),
        decay_start=0.9,
        decay_end=0.9,
        revive_every=20,
    )
    quantizer = ResidualQuantizer(config, (DIM, 1, 1))
    quantizer.start(encoded, generator_for(0))
    for _ in range(20):
        step(quantizer, quantizer.normalize(encoded), config.revive_every - 1)  # always revives
    assert all(quantizer.entries(position).isfinite().all() for position in range(3))
    latents = quantizer.normalize(encoded)
    assert (latents - quantizer.decode(quantizer.encode(latents))).abs().max() < 0.1
    # What the encoder gives later is described by all positions again.
    for number in range(300):
        latents = quantizer.normalize(latents_of(64, seed=number))
        step(quantizer, latents, number)
    assert (quantizer.describe_greedily(latents).left().mean(1).diff() < 0).all()


def test_entries_unused_in_a_window_are_revived_at_its_end() -> None:
    config = ResidualConfig(num_codes=1, codebook_sizes=(8,), revive_every=4, revive_below=0.5)
    quantizer = ResidualQuantizer(config, (DIM, 1, 1))
    quantizer.start(latents_of(300, 0), generator_for(0))
    few = quantizer.entries(0)[:3].repeat(10, 1)  # only three entries are ever chosen
    for number in range(4):
        before = quantizer.entries(0)
        step(quantizer, few, number)
        moved = (quantizer.entries(0) - before).abs().amax(1) > 1e-3
        # At the end of the window, the others start beside those three.
        assert moved.tolist() == [False] * 3 + [number == 3] * 5
    assert torch.cdist(quantizer.entries(0)[3:], few).amin(1).max() < 0.1


def test_decay_goes_from_start_to_end_with_a_geometric_middle() -> None:
    config = ResidualConfig(num_codes=1, decay_start=0.9, decay_end=0.999)
    quantizer = ResidualQuantizer(config, (DIM, 1, 1))
    for progress, decay in ((0.0, 0.9), (0.5, 0.99), (1.0, 0.999)):
        assert quantizer.decay(progress) == pytest.approx(decay, rel=1e-9)


def test_sizes_are_one_for_all_or_two_or_one_for_each() -> None:
    assert ResidualConfig(num_codes=3, codebook_sizes=(256,)).sizes == (256, 256, 256)
    two = ResidualConfig(num_codes=5, codebook_sizes=(256, 1024), learned_codes=2)
    assert two.sizes == (256, 256, 1024, 1024, 1024)
    each = ResidualConfig(num_codes=2, codebook_sizes=(2, 10))
    assert each.sizes == (2, 10)
    bits = ResidualQuantizer(each, (DIM, 1, 1)).bits
    assert bits == pytest.approx((1, math.log2(10)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("num_codes=0", "'quantizer.num_codes' must be 1 to 4096, not 0"),
        ("num_codes=4 codebook_sizes=8,8,8", "codebook_sizes has 3 numbers"),
        (
            "num_codes=2 codebook_sizes=8,1",
            "'quantizer.codebook_sizes' must be each 2 to 1048576, not 1",
        ),
        ("learned_codes=0", "'quantizer.learned_codes' must be 1 to 4096, not 0"),
        ("subspace=0", "'quantizer.subspace' must be 1 to 65536, not 0"),
        ("rank=8", "subspace is 16, but must be 1 to rank, which is 8"),
        ("decay_start=0.9 decay_end=0.8", "decay_start and decay_end"),
        ("decay_end=1", "'quantizer.decay_end' must be above 0 and below 1"),
        ("decay_start=0", "'quantizer.decay_start' must be above 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(Config, None, [f"quantizer.{setting}" for setting in settings.split()])
