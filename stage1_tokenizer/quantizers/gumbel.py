"""The progressive quantizer trained through random codes, as first proposed: to compare.

Huang et al., "PQ-VAE", CVPR Workshops 2024: Gumbel-softmax codes, subtracted one after the other,
and entropy terms. Everything else here is our choice.

    s_i[c] = r_{i-1}.e_i[c] - |e_i[c]|^2 / 2        l_i = a_i normalize(s_i) / temperature
    c_i = argmax_c (l_i[c] + g[c])                  g ~ Gumbel(0, 1)
    r_i = r_{i-1} - e_i[c_i]

So code c is drawn with the probability softmax(l_i)[c]. Entries are learned by gradient, without
moving averages and revival, and the encoder through softmax(l_i + g), straight through the argmax
(Jang, Gu & Poole, "Categorical reparameterization with Gumbel-softmax", 2017). Logits pass
gradients to the latent and the entries of their position, not to earlier choices.

The logits are the quantizer's scores s, so that without noise the nearest entry is chosen, and
encoding does just that. Scores are large in hundreds of dimensions, and small where little is left:
they are brought to mean 0 and deviation 1, times a learned a_i. Unlike in that paper, temperature
leaves the noise as it is: as it falls, random codes become the nearest ones, and training ends with
nearly what encoding does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.config import QuantizerConfig
from stage1_tokenizer.quantizers.codebooks import LEAST_GAIN, SCALE_SHARE, CodebookLearner
from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer, Residuals

FIRST_TEMPERATURE, LAST_TEMPERATURE = 1.0, 0.1
ANNEALED = 0.5  # share of training after which the temperature stays
FIRST_DEVIATION = 3.0  # a_i at the start: codes tell something then, and are random nevertheless


def temperature(progress: float) -> float:
    """Temperature at a progress in [0, 1]: falls geometrically, then stays."""
    return FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** min(progress / ANNEALED, 1)


def gumbel_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent draws of Gumbel(0, 1), float32."""
    return -torch.empty(*shape).exponential_(generator=generator).log()


def entropies(logits: Tensor) -> Tensor:
    """H(Z|X) and H(Z) of a code in nats, over a batch of logits (B, K): float32 (2,)."""
    log_probs = logits.log_softmax(dim=1)
    log_means = log_probs.logsumexp(dim=0) - math.log(len(logits))
    conditional = -(log_probs.exp() * log_probs).sum(1).mean()
    return torch.stack([conditional, -(log_means.exp() * log_means).sum()])


class GumbelQuantizer(ProgressiveQuantizer):
    """Every position has entries of its own, which are trained: vectors of unit size, scaled.

    The factors are fixed once started, one for each position: late entries are small, and steps of
    the optimizer are to be as large for them as for others, relative to their size.
    """

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__(config, dim)
        vectors = self.vectors
        del self.vectors, self.biases  # norms change with every step
        self.vectors = nn.Parameter(vectors)
        log_deviations = torch.full((config.num_codes,), math.log(FIRST_DEVIATION))
        self.log_deviations = nn.Parameter(log_deviations)  # (N,): log a_i

    def scores(self, position: int, residual: Tensor) -> Tensor:
        return _scores(residual, self.entries(position))

    def logits(self, scores: Tensor, position: int, temperature: float) -> Tensor:
        """Scores (B, K_i) at a position, normalized for each latent: float32 (B, K_i)."""
        normalized = F.layer_norm(scores, scores.shape[1:])
        return normalized * (self.log_deviations[position].exp() / temperature)

    def sample(
        self, latents: Tensor, noise: Tensor, temperature: float
    ) -> tuple[Tensor, Residuals, Tensor]:
        """Draw the codes of normalized latents; residuals pass gradients to entries and latents.

        Args:
            latents: float32 (B, D).
            noise: As from ``gumbel_noise``, (N, B, K) with the largest K.
            temperature: Above 0.

        Returns:
            Codes, int64 (B, N); what they leave; and H(Z|X) and H(Z) of a code in nats, without the
            noise, means over the positions, float32 (2,).
        """
        described, residuals, codes, uncertainty = torch.zeros_like(latents), [latents], [], []
        with torch.autocast(latents.device.type, enabled=False):
            # By iteration, as the gradient of an index into all vectors is as large as all of them.
            for position, vectors in enumerate(self.vectors):
                size = self.config.sizes[position]
                entries = vectors[:size] * self.factors[position, :size].unsqueeze(1)
                # Through earlier choices gradients would grow from position to position.
                residual = latents - described.detach()
                logits = self.logits(_scores(residual, entries), position, temperature)
                noisy = logits + noise[position, :, :size]
                codes.append(noisy.argmax(dim=1))
                # The chosen entry in value; as far as gradients are concerned, the soft mixture.
                soft = noisy.softmax(dim=1)
                straight_through = (soft - soft.detach()) @ entries.detach()
                described = described + entries[codes[-1]] + straight_through
                residuals.append(latents - described)
                uncertainty.append(entropies(logits))
        late = latents.new_zeros(1, len(latents), 0)  # no position shares a codebook
        left = Residuals(torch.stack(residuals), late, self.basis)
        return torch.stack(codes, dim=1), left, torch.stack(uncertainty).mean(0)


def _scores(residual: Tensor, entries: Tensor) -> Tensor:
    return residual @ entries.T - entries.square().sum(1) / 2


class GumbelLearner(CodebookLearner):
    """Starts the codebooks, counts their use, and follows the latent's scale; no more than that."""

    @torch.no_grad()
    def initialize(self, encoded: Tensor, generator: torch.Generator, iterations: int = 5) -> None:
        """Fit the codebooks to encoder outputs (B, D) as those that are learned by averages."""
        quantizer = self.quantizer
        assert isinstance(quantizer, GumbelQuantizer)
        N, sizes = quantizer.config.num_codes, quantizer.config.sizes
        config = QuantizerConfig(num_codes=N, codebook_sizes=sizes, learned_codes=N)
        averaged = ProgressiveQuantizer(config, encoded.shape[1]).to(encoded.device)
        CodebookLearner(averaged).initialize(encoded, generator, iterations)
        quantizer.scale.copy_(averaged.scale)
        for position in range(N):
            entries = averaged.entries(position)
            # Where nothing is left to describe: above rounding, and so below.
            size = entries.square().mean().sqrt().clamp_min(LEAST_GAIN)
            quantizer.factors[position] = size
            quantizer.vectors[position, : len(entries)] = entries / size

    @torch.no_grad()
    def update(
        self, codes: Tensor, residuals: Residuals, decay: float, finite: Tensor | None = None
    ) -> None:
        """Account for one batch, as ``CodebookLearner.update`` does; the decay plays no part."""
        if finite is None:
            finite = torch.ones((), dtype=torch.bool, device=codes.device)
        uses = codes.T
        self.recent.scatter_add_(1, uses, finite.to(self.recent).expand_as(uses))
        deviation = torch.where(finite, residuals.early[0], 0).std() * self.quantizer.scale
        self.quantizer.scale.lerp_(deviation, SCALE_SHARE * finite.to(deviation))

    def revive(self, codes: Tensor, residuals: Residuals, generator: torch.Generator) -> None:
        """End the window in which uses are counted; unused entries stay what they are."""
        self.window, self.recent = self.recent, torch.zeros_like(self.recent)
