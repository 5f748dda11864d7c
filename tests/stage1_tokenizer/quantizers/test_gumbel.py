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
    ObjectiveConfig,
    QuantizerConfig,
    TokenizerConfig,
)
from stage1_tokenizer.objective import GumbelObjective
from stage1_tokenizer.quantizers.gumbel import (
    GumbelLearner,
    GumbelQuantizer,
    entropies,
    gumbel_noise,
    temperature,
)
from stage1_tokenizer.tokenizer import Tokenizer

SIZES, DIM = (8, 3, 16, 5), 6
CONFIG = QuantizerConfig(num_codes=4, codebook_sizes=SIZES, learned_codes=1, assignment="gumbel")


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def noise_of(n: int, seed: int = 2) -> Tensor:
    return gumbel_noise((len(SIZES), n, max(SIZES)), generator_for(seed))


@pytest.fixture
def quantizer() -> GumbelQuantizer:
    quantizer = GumbelQuantizer(CONFIG, DIM)
    GumbelLearner(quantizer).initialize(latents_of(200, 0), generator_for(0))
    return quantizer


def test_without_noise_the_nearest_entry_is_chosen(quantizer: GumbelQuantizer) -> None:
    latents = latents_of(100)
    codes, residuals, _ = quantizer.sample(latents, torch.zeros(4, 100, 16), temperature=1.0)
    nearest, left = quantizer.quantize(latents)
    assert torch.equal(codes, nearest)
    torch.testing.assert_close(residuals.early, left.early)
    residual = latents.double()
    for position in range(4):
        entries = quantizer.entries(position).double()
        distances = torch.cdist(residual, entries)
        assert torch.equal(codes[:, position], distances.argmin(1))
        residual = residual - entries[codes[:, position]]


def test_noise_makes_random_codes_with_the_probabilities_of_the_logits(
    quantizer: GumbelQuantizer,
) -> None:
    n = 4000
    latent = latents_of(1)
    codes, _, _ = quantizer.sample(latent.expand(n, -1), noise_of(n), temperature=2.0)
    scores = quantizer.scores(0, latent)[0].detach()
    # Deviation 3 at temperature 1.
    logits = 3 / 2 * (scores - scores.mean()) / scores.std(correction=0)
    expected = logits.softmax(0)
    assert expected.max() < 0.9
    shares = torch.bincount(codes[:, 0], minlength=SIZES[0]) / n
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
    codes, residuals, _ = quantizer.sample(latents, noise, temperature=1.0)
    assert not torch.equal(codes, quantizer.quantize(latents)[0])  # there was noise
    for k in range(1, 5):
        described = latents - residuals.after(torch.full((20,), k))
        torch.testing.assert_close(described, quantizer.dequantize(codes[:, :k]))

    # Of each position by itself: as of the chosen entries, and of a soft mixture by the logits.
    weights = torch.randn(20, DIM, generator=generator_for(3))
    found = ((latents - residuals.early[-1]) * weights).sum()
    expected = torch.tensor(0.0)
    for position, size in enumerate(SIZES):
        left = latents + (residuals.early[position] - latents).detach()
        scores, entries = quantizer.scores(position, left), quantizer.entries(position)
        logits = quantizer.logits(scores, position, temperature=1.0)
        soft = (logits + noise[position, :, :size]).softmax(1)
        described = entries[codes[:, position]] + soft @ entries.detach()
        expected = expected + (described * weights).sum()
    inputs = [latents, quantizer.vectors, quantizer.log_deviations]
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


def test_learner_counts_uses_follows_the_scale_and_leaves_entries_alone(
    quantizer: GumbelQuantizer,
) -> None:
    learner = GumbelLearner(quantizer)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    codes, residuals = quantizer.quantize(3 * latents_of(50))
    learner.update(codes, residuals, 0.9, torch.tensor(False))
    assert not learner.recent.any()
    assert torch.equal(quantizer.scale, before["scale"])
    learner.update(codes, residuals, 0.9, torch.tensor(True))
    for position, size in enumerate(SIZES):
        uses = torch.bincount(codes[:, position], minlength=size).float()
        assert torch.equal(learner.recent[position, :size], uses)
    deviation = 0.95 + 0.05 * float(residuals.early[0].std())
    assert float(quantizer.scale) == pytest.approx(float(before["scale"]) * deviation)
    usage = learner.usage()
    learner.revive(codes, residuals, generator_for(0))
    assert learner.usage() == usage
    assert not learner.recent.any()
    for name, value in quantizer.state_dict().items():
        assert name == "scale" or torch.equal(value, before[name])


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
    GumbelLearner(tokenizer.quantizer).initialize(encoded, generator_for(0))
    lengths = torch.arange(32) % 4 + 1

    def losses_at(weight: float) -> dict[str, Tensor]:
        config = ObjectiveConfig(entropy_weight=weight)
        return GumbelObjective(tokenizer, config, 0.1, generator_for(1))(images, lengths)[0]

    plain, losses = losses_at(0.0), losses_at(0.5)
    surplus = losses["conditional_entropy"] - losses["marginal_entropy"]
    assert surplus < 0  # H(Z|X) <= H(Z)
    torch.testing.assert_close(losses["loss"], plain["loss"] + 0.5 * surplus)
    plain["loss"].backward()
    entries = tokenizer.quantizer.vectors.grad
    assert entries is not None and entries.flatten(1).any(1).all()  # of every position
    head = tokenizer.encoder.network[-1].weight.grad
    assert isinstance(head, Tensor) and head.any()

    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


def test_other_assignments_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'quantizer.assignment' must be one of nearest, gumbel"):
        load_config(Config, None, ["quantizer.assignment=soft"])


def test_batches_in_parts_are_refused(tmp_path: Path) -> None:
    config = load_config(Config, None, ["quantizer.assignment=gumbel", "trainer.accumulate=2"])
    with pytest.raises(UserError, match=r"gumbel takes each batch in one piece"):
        task.TokenizerTask(config, select_runtime("cpu"), tmp_path)


def test_sizes_change_where_they_do_for_nearest_assignment() -> None:
    nearest = QuantizerConfig(num_codes=5, codebook_sizes=(4, 16), learned_codes=2)
    gumbel = replace(nearest, assignment="gumbel")
    assert gumbel.sizes == nearest.sizes == (4, 4, 16, 16, 16)
    assert (nearest.num_learned, gumbel.num_learned) == (2, 5)
