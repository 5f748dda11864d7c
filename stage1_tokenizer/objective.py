"""Expected distortion over prefix lengths: the loss whose minimum orders the codes by usefulness.

    I(X; Z_1..k) >= H(X) + E[log p(x | z_1..k)]    and    H(Z_1..k) <= log2 K_1 + ... + log2 K_k

With a Gaussian decoder the first bound rises as the squared error of image_k falls, so the error
averaged over prefix lengths k raises the information about the image at every description length at
once. Every image is decoded at one length: mostly the full one, else one drawn uniformly (decoding
each image at both costs half as much again and gains less at equal time). Short prefixes have large
errors, which drown the others if drawn too often; without any, the full length is worse, too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.config import ObjectiveConfig
from stage1_tokenizer.quantizers.gumbel import GumbelQuantizer, gumbel_noise, temperature
from stage1_tokenizer.quantizers.residual import Residuals
from stage1_tokenizer.tokenizer import Tokenizer


def draw_prefix_lengths(
    batch_size: int, num_codes: int, full_share: float, generator: torch.Generator
) -> Tensor:
    """A prefix length for each image, int64 (B,) in 1..N: N for some, else uniform."""
    lengths = torch.randint(1, num_codes + 1, (batch_size,), generator=generator)
    full = torch.rand(batch_size, generator=generator) < full_share
    return lengths.masked_fill_(full, num_codes)


class TokenizerObjective:
    """The loss of one batch: reconstruction at drawn prefix lengths, and commitment."""

    def __init__(self, tokenizer: Tokenizer, config: ObjectiveConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    def __call__(
        self, images: Tensor, prefix_lengths: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Residuals]:
        """The losses of images, with the codes and residuals behind them.

        Gradients pass the quantizer straight through. Normalized latents have unit variance, so the
        commitment needs no scale. Every loss is a mean over images: those of the parts of a batch
        average to that of the batch.

        Args:
            images: float (B, 3, H, W) in [-1, 1].
            prefix_lengths: int64 (B,) in 1..N: how many codes each is decoded from.
        """
        latents = self.tokenizer.latents(images)
        codes, residuals, scalars = self.quantize(latents)
        # f_k = f - r_k in value, and as far as the gradient is concerned, f.
        decoded = self.tokenizer.decoder(latents - residuals.after(prefix_lengths), prefix_lengths)
        mse = F.mse_loss(decoded.float(), images)
        last = residuals.after(torch.full_like(prefix_lengths, self.tokenizer.num_codes))
        commitment = F.mse_loss(latents, (latents - last).detach())
        losses = {"loss": mse + self.config.commitment * commitment, "mse": mse.detach()}
        # |r_N|^2 / |f|^2: the share of the latent that the codes leave undescribed.
        energies = residuals.energies()
        losses["residual"] = (energies[-1] / energies[0]).mean()
        return losses | scalars, codes, residuals

    def quantize(self, latents: Tensor) -> tuple[Tensor, Residuals, dict[str, Tensor]]:
        """The codes of normalized latents (B, D), what they leave, and scalars to report."""
        return *self.tokenizer.quantizer.quantize(latents), {}


class GumbelObjective(TokenizerObjective):
    """The same for ``assignment=gumbel``, at one step: codes are sampled, and their use rewarded.

    Here the residuals pass gradients on, to entries and logits; what r_k passes to f is then just
    what f_k = f - r_k does not. The entropy terms raise I(X; Z_i) = H(Z_i) - H(Z_i|X) of each code:
    sure of every image, and different between images.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ObjectiveConfig,
        progress: float,
        generator: torch.Generator,
    ) -> None:
        """Prepare for a step at a progress in [0, 1]; the generator draws the noise."""
        super().__init__(tokenizer, config)
        self.temperature, self.generator = temperature(progress), generator

    def __call__(
        self, images: Tensor, prefix_lengths: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Residuals]:
        losses, codes, residuals = super().__call__(images, prefix_lengths)
        surplus = losses["conditional_entropy"] - losses["marginal_entropy"]
        losses["loss"] = losses["loss"] + self.config.entropy_weight * surplus
        return losses, codes, residuals

    def quantize(self, latents: Tensor) -> tuple[Tensor, Residuals, dict[str, Tensor]]:
        quantizer = self.tokenizer.quantizer
        assert isinstance(quantizer, GumbelQuantizer)
        sizes = quantizer.config.sizes
        noise = gumbel_noise((len(sizes), len(latents), max(sizes)), self.generator)
        codes, residuals, (conditional, marginal) = quantizer.sample(
            latents, noise.to(latents.device), self.temperature
        )
        return (
            codes,
            residuals,
            {"conditional_entropy": conditional, "marginal_entropy": marginal},
        )
