"""The objective: which prefixes are drawn, and where the gradients go."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from pqvae.config import load_config
from pqvae.errors import UserError
from pqvae.randomness import generator_for
from stage1_tokenizer.config import Config, ObjectiveConfig
from stage1_tokenizer.objective import draw_prefix_lengths, prefix_loss
from stage1_tokenizer.quantizers.contract import Description
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages


def test_prefix_lengths_depend_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = draw_prefix_lengths(100, range(1, 33), 0.5, generator_for(0, 7))
    torch.manual_seed(2)
    assert torch.equal(draw_prefix_lengths(100, range(1, 33), 0.5, generator_for(0, 7)), first)
    assert not torch.equal(draw_prefix_lengths(100, range(1, 33), 0.5, generator_for(0, 8)), first)


@pytest.mark.parametrize("cuts", [range(1, 6), (16, 32, 48)])
@pytest.mark.parametrize("full_share", [0.0, 0.3, 0.5, 1.0])
def test_lengths_are_full_as_often_as_asked_and_uniform_otherwise(
    full_share: float, cuts: Sequence[int]
) -> None:
    n, N = 20_000, cuts[-1]
    lengths = draw_prefix_lengths(n, cuts, full_share, generator_for(0))
    assert set(lengths.tolist()) <= set(cuts)
    shares = torch.bincount(lengths, minlength=N + 1).double() / n
    for k in cuts:
        expected = (1 - full_share) / len(cuts) + (full_share if k == N else 0)
        # Six standard deviations: a right program fails with a chance of 2e-9 each.
        bound = 6 * (expected * (1 - expected) / n) ** 0.5
        assert abs(float(shares[k]) - expected) <= bound


class Passage:
    """One pass of the objective over a copy of a tokenizer, with what flowed in between."""

    def __init__(self, tokenizer: Tokenizer, images: Tensor, commitment: float) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        decoder = self.tokenizer.decoder()

        def keep_encoded(_module: object, _inputs: object, output: Tensor) -> None:
            output.retain_grad()
            self.encoded = output

        def keep_input(_module: object, inputs: tuple[Tensor, Tensor]) -> None:
            inputs[0].retain_grad()
            self.decoder_input, self.lengths = inputs

        hooks = [
            self.tokenizer.encoder.register_forward_hook(keep_encoded),
            decoder.register_forward_pre_hook(keep_input),
        ]
        quantizer, config = self.tokenizer.quantizer, ObjectiveConfig(commitment=commitment)
        self.drawn = draw_prefix_lengths(len(images), quantizer.cuts, 0.3, generator_for(3))
        latents = self.tokenizer.latents(images)
        description = quantizer.describe(latents, 0.5, generator_for(4))
        self.losses = prefix_loss(self.tokenizer, config, description, images, self.drawn)
        self.codes = description.codes
        for hook in hooks:
            hook.remove()
        self.losses["loss"].backward()
        assert self.encoded.grad is not None
        assert self.decoder_input.grad is not None
        # d latents = d encoded / scale
        self.latent_gradient = self.encoded.grad * self.tokenizer.quantizer.scale
        self.decoder_gradient = self.decoder_input.grad


def test_decoder_sees_the_drawn_prefix_and_its_gradient_passes_straight_through(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(24, 16, 5)
    passage = Passage(tiny_tokenizer, images, commitment=0.0)
    assert passage.lengths.unique().numel() > 3
    assert torch.equal(passage.lengths, passage.drawn)
    quantizer = passage.tokenizer.quantizer
    for row, k in enumerate(passage.lengths.tolist()):
        prefix = quantizer.decode(passage.codes[row : row + 1, :k])
        assert torch.allclose(passage.decoder_input[row], prefix[0], atol=1e-5)
    assert passage.decoder_gradient.abs().max() > 0
    assert torch.allclose(passage.latent_gradient, passage.decoder_gradient, rtol=1e-4, atol=1e-9)

    decoded = passage.tokenizer.decoder()(passage.decoder_input.detach(), passage.lengths)
    error = float((decoded.detach() - images).square().mean())
    assert float(passage.losses["mse"]) == pytest.approx(error, rel=1e-4)
    assert float(passage.losses["loss"].detach()) == pytest.approx(error, rel=1e-4)


def test_commitment_pulls_the_latents_to_their_codes(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    weight = 0.7
    passage = Passage(tiny_tokenizer, blob_images(24, 16, 5), commitment=weight)
    f_N = passage.tokenizer.quantizer.decode(passage.codes)
    latents = (passage.encoded / passage.tokenizer.quantizer.scale).detach()
    expected = weight * 2 * (latents - f_N) / latents.numel()
    pull = passage.latent_gradient - passage.decoder_gradient
    assert torch.allclose(pull, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    residual = float((latents - f_N).square().mean())
    shares = [
        float((latent - described).square().sum() / latent.square().sum())
        for latent, described in zip(latents, f_N, strict=True)
    ]
    share = sum(shares) / len(shares)
    assert float(passage.losses["residual"]) == pytest.approx(share, rel=1e-4)
    loss = float(passage.losses["mse"]) + weight * residual
    assert float(passage.losses["loss"].detach()) == pytest.approx(loss, rel=1e-4)


def test_parts_of_a_batch_average_to_the_whole_of_it(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(8, 16, 5)
    images[:3] *= 0.1  # parts that differ much
    lengths = torch.tensor([1, 6, 2, 3, 1, 6, 6, 4])

    def passage(parts: list[slice]) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        means: dict[str, Tensor] = {}
        codes = []
        for part in parts:
            latents = tokenizer.latents(images[part])
            description = tokenizer.quantizer.describe(latents, 0.5, generator_for(0))
            losses = prefix_loss(
                tokenizer, ObjectiveConfig(commitment=0.7), description, images[part], lengths[part]
            )
            share = len(images[part]) / len(images)
            (losses["loss"] * share).backward()
            for name, value in losses.items():
                means[name] = means.get(name, torch.tensor(0.0)) + value.detach() * share
            codes.append(description.codes)
        gradients = [p.grad for p in tokenizer.parameters() if p.grad is not None]
        return means, torch.cat(codes), gradients

    means, codes, gradients = passage([slice(0, 8)])
    for parts in ([slice(0, 3), slice(3, 8)], [slice(i, i + 1) for i in range(8)]):
        found, their_codes, their_gradients = passage(parts)
        # Convolutions of another batch shape sum in another order.
        assert torch.equal(their_codes, codes)
        torch.testing.assert_close(found, means, rtol=1e-5, atol=0)
        assert len(gradients) == len(their_gradients) > 10
        for gradient, their in zip(gradients, their_gradients, strict=True):
            tolerance = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(their, gradient, rtol=1e-4, atol=tolerance)
    assert sorted(means) == ["loss", "mse", "residual"]


def test_codebooks_get_no_gradient(tiny_tokenizer: Tokenizer, blob_images: "BlobImages") -> None:
    passage = Passage(tiny_tokenizer, blob_images(8, 16, 5), commitment=0.5)
    assert not list(passage.tokenizer.quantizer.parameters())
    without = [name for name, value in passage.tokenizer.named_parameters() if value.grad is None]
    assert without == []  # everything else does


class Weighing(Description):
    """A description that adds a loss and scalars of its own."""

    def __init__(self, latents: Tensor) -> None:
        self.latents, self.codes = latents, torch.zeros(len(latents), 6, dtype=torch.int64)
        self.loss, self.scalars = latents.sum(), {"sum": latents.sum().detach()}

    def prefix(self, lengths: Tensor) -> Tensor:
        return self.latents

    def left(self) -> Tensor:
        return torch.ones(7, len(self.latents))


def test_what_the_quantizer_adds_is_added_and_logged(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(4, 16, 5)
    with torch.no_grad():
        description = Weighing(tiny_tokenizer.latents(images))
        lengths = torch.full((4,), 6)
        losses = prefix_loss(tiny_tokenizer, ObjectiveConfig(), description, images, lengths)
    assert torch.equal(losses["sum"], description.scalars["sum"])
    assert float(losses["loss"]) == pytest.approx(float(losses["mse"] + losses["sum"]), rel=1e-5)


@pytest.mark.parametrize("share", ["-0.1", "1.1"])
def test_impossible_share_is_refused(share: str) -> None:
    message = r"'objective.full_share' must be 0 to 1"
    with pytest.raises(UserError, match=message):
        load_config(Config, None, [f"objective.full_share={share}"])
