"""Codes drawn with Gumbel noise: nearest without it, as likely as told with it; gradients."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.config import load_config
from pqvae.errors import UserError
from pqvae.randomness import generator_for
from pqvae.runtime import select_runtime
from stage1_tokenizer import task
from stage1_tokenizer.config import (
    ArchitectureConfig,
    Config,
    GumbelConfig,
    ObjectiveConfig,
    TokenizerConfig,
)
from stage1_tokenizer.objective import prefix_loss
from stage1_tokenizer.quantizers.gumbel import (
    GumbelQuantizer,
    entropies,
    gumbel_noise,
    nearness,
    temperature,
)
from stage1_tokenizer.tokenizer import Tokenizer

SIZES, DIM = (8, 3, 16, 5), 6
CONFIG = GumbelConfig(num_codes=4, codebook_sizes=SIZES)


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def noise_of(n: int, seed: int = 2) -> Tensor:
    return gumbel_noise((len(SIZES), n, max(SIZES)), generator_for(seed))


@pytest.fixture
def quantizer() -> GumbelQuantizer:
    quantizer = GumbelQuantizer(CONFIG, (DIM, 1, 1))
    quantizer.start(latents_of(200, 0), generator_for(0))
    return quantizer


def test_without_noise_the_nearest_entry_is_chosen(quantizer: GumbelQuantizer) -> None:
    latents = latents_of(100)
    described, _ = quantizer.sample(latents, torch.zeros(4, 100, 16), temperature=1.0)
    assert torch.equal(described.codes, quantizer.encode(latents))
    greedy = quantizer.describe_greedily(latents)
    torch.testing.assert_close(described.parts[0], greedy.parts[0])


def test_noise_makes_random_codes_with_the_probabilities_of_the_logits(
    quantizer: GumbelQuantizer,
) -> None:
    n = 4000
    latent = latents_of(1)
    described, _ = quantizer.sample(latent.expand(n, -1), noise_of(n), temperature=2.0)
    scores = nearness(latent, quantizer.entries(0))[0].detach()
    # Deviation 3 at temperature 1.
    logits = 3 / 2 * (scores - scores.mean()) / scores.std(correction=0)
    expected = logits.softmax(0)
    assert expected.max() < 0.9
    shares = torch.bincount(described.codes[:, 0], minlength=SIZES[0]) / n
    # Six standard deviations: a right program fails with a chance of 2e-9 for each entry.
    assert ((shares - expected).abs() <= 6 * (expected * (1 - expected) / n).sqrt()).all()


def test_noise_depends_on_its_generator_alone() -> None:
    torch.manual_seed(1)
    first = noise_of(5, 7)
    torch.manual_seed(2)
    assert torch.equal(noise_of(5, 7), first)
    assert not torch.equal(noise_of(5, 8), first)
    # The mean of Gumbel(0, 1) is Euler's constant, its deviation pi / sqrt(6).
    many = gumbel_noise((100_000,), generator_for(0))
    assert float(many.mean()) == pytest.approx(0.5772, abs=6 * math.pi / 6**0.5 / 100_000**0.5)


def test_value_is_the_sum_of_chosen_entries_and_the_gradient_is_that_of_the_soft_choice(
    quantizer: GumbelQuantizer,
) -> None:
    latents, noise = latents_of(20).requires_grad_(), noise_of(20)
    description, _ = quantizer.sample(latents, noise, temperature=1.0)
    codes, residuals = description.codes, description.parts[0]
    assert not torch.equal(codes, quantizer.encode(latents))  # there was noise
    for k in range(1, 5):
        described = description.prefix(torch.full((20,), k))
        torch.testing.assert_close(described, quantizer.decode(codes[:, :k]))

    # Of each position by itself: as of the chosen entries, and of a soft mixture by the logits.
    weights = torch.randn(20, DIM, generator=generator_for(3))
    found = ((latents - residuals[-1]) * weights).sum()
    expected = torch.tensor(0.0)
    for position, size in enumerate(SIZES):
        left = latents + (residuals[position] - latents).detach()
        entries = quantizer.entries(position)
        logits = quantizer.logits(nearness(left, entries), position, temperature=1.0)
        soft = (logits + noise[position, :, :size]).softmax(1)
        described = entries[codes[:, position]] + soft @ entries.detach()
        expected = expected + (described * weights).sum()
    inputs = [latents, quantizer.trained.vectors, quantizer.log_deviations]
    gradients = [torch.autograd.grad(value, inputs) for value in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(gradient.any() for gradient in gradients[0])


def test_entropies_of_known_distributions() -> None:
    uniform, apart = torch.zeros(8, 8), 1e4 * torch.eye(8)
    same = apart[:1].expand(8, -1)
    for logits, conditional, marginal in (
        (uniform, math.log(8), math.log(8)),
        (apart, 0.0, math.log(8)),
        (same, 0.0, 0.0),
    ):
        logits = logits.clone().requires_grad_()
        found = entropies(logits)
        torch.testing.assert_close(found, torch.tensor([conditional, marginal]))
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient.isfinite().all()


def test_temperature_falls_in_the_first_half() -> None:
    assert temperature(0) == 1
    assert temperature(0.25) == pytest.approx(0.1**0.5)
    assert temperature(0.5) == temperature(0.8) == temperature(1) == pytest.approx(0.1)


def test_learning_counts_uses_follows_the_scale_and_leaves_entries_alone(
    quantizer: GumbelQuantizer,
) -> None:
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    description = quantizer.describe_greedily(3 * latents_of(50))
    every = CONFIG.revive_every
    for step in (0, every - 1, every, 2 * every - 1):  # two windows
        quantizer.learn(description, step, 0.5, torch.tensor(True), generator_for(0))
    entropy, dead = quantizer.usage()
    columns = zip(description.codes.T, SIZES, strict=True)
    shares = [torch.bincount(codes, minlength=size) / 50 for codes, size in columns]
    assert dead == sum(int((share == 0).sum()) for share in shares)
    plain = [-float(torch.special.xlogy(share, share).sum()) / math.log(2) for share in shares]
    assert entropy == pytest.approx(sum(plain) / 4, rel=1e-5)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "scale"), name


def test_loss_adds_the_weighted_entropies_and_trains_encoder_and_entries(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = ArchitectureConfig(
        widths=(16,), encoder_blocks=(0,), decoder_blocks=(0,), latent_channels=4
    )
    tokenizer = Tokenizer(
        TokenizerConfig(image_size=8, architecture=architecture, quantizer=CONFIG)
    )
    images = torch.rand(32, 3, 8, 8, generator=generator_for(0)) * 2 - 1
    tokenizer.init_from_images(images)
    with torch.no_grad():
        encoded = tokenizer.encoder(images)
    tokenizer.quantizer.start(encoded, generator_for(0))
    lengths = torch.arange(32) % 4 + 1

    def losses_at(weight: float) -> dict[str, Tensor]:
        quantizer = tokenizer.quantizer
        quantizer.config = replace(CONFIG, entropy_weight=weight)
        described = quantizer.describe(tokenizer.latents(images), 0.1, generator_for(1))
        return prefix_loss(tokenizer, ObjectiveConfig(), described, images, lengths)

    plain, losses = losses_at(0.0), losses_at(0.5)
    surplus = losses["conditional_entropy"] - losses["marginal_entropy"]
    assert surplus < 0  # H(Z|X) <= H(Z)
    torch.testing.assert_close(losses["loss"], plain["loss"] + 0.5 * surplus)
    plain["loss"].backward()
    quantizer = tokenizer.quantizer
    assert isinstance(quantizer, GumbelQuantizer)
    entries = quantizer.trained.vectors.grad
    assert entries is not None and entries.flatten(1).any(1).all()  # of every position
    head = tokenizer.encoder.network[-1].weight.grad
    assert isinstance(head, Tensor) and head.any()

    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


def test_other_kinds_are_refused_by_name() -> None:
    message = r"'quantizer.kind' must be one of residual, gumbel, spatial, fsq, not 'soft'"
    with pytest.raises(UserError, match=message):
        load_config(Config, None, ["quantizer.kind=soft"])


@pytest.mark.parametrize("sizes", ["8,8,8", "8,1"])
def test_impossible_sizes_are_refused(sizes: str) -> None:
    arguments = ["kind=gumbel", "num_codes=2", f"codebook_sizes={sizes}"]
    with pytest.raises(UserError, match=r"1 number or num_codes=2 of them|each 2 to"):
        load_config(Config, None, [f"quantizer.{argument}" for argument in arguments])


def test_batches_in_parts_are_refused(tmp_path: Path) -> None:
    config = load_config(Config, None, ["quantizer.kind=gumbel", "trainer.accumulate=2"])
    with pytest.raises(UserError, match=r"gumbel takes each batch in one piece"):
        task.TokenizerTask(config, select_runtime("cpu"), tmp_path)
