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

The entropy terms raise I(X; Z_i) = H(Z_i) - H(Z_i|X) of each code: sure of every image, and
different between images.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.config import GumbelConfig
from stage1_tokenizer.quantizers.codebook import LEAST_GAIN, Codebook, Seen
from stage1_tokenizer.quantizers.learned import LearnedCodebooks
from stage1_tokenizer.quantizers.progressive import Progressive, ProgressiveDescription

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


class TrainedCodebooks(Codebook):
    """Whole-latent entries learned by gradient: vectors of unit size, scaled.

    The factors are fixed once started, one for each position: late entries are small, and steps of
    the optimizer are to be as large for them as for others, relative to their size.
    """

    factors: Tensor  # (N, 1)

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.sizes, self.books, self.dim = sizes, tuple(range(len(sizes))), dim
        self.vectors = nn.Parameter(torch.zeros(len(sizes), max(sizes), dim))
        self.register_buffer("factors", torch.ones(len(sizes), 1))

    def enter(self, residual: Tensor) -> Tensor:
        return residual

    def expand(self, difference: Tensor) -> Tensor:
        return difference

    def chosen(self, index: int, codes: Tensor) -> Tensor:
        return self.vectors[index][codes] * self.factors[index]

    def add(self, index: int, codes: Tensor, sums: Tensor, alpha: float = 1) -> None:
        sums.add_(self.chosen(index, codes), alpha=alpha)

    def scores(self, index: int, residual: Tensor) -> Tensor:
        return nearness(residual, self.meaning(index))

    def meaning(self, book: int) -> Tensor:
        return self.vectors[book, : self.sizes[book]] * self.factors[book]

    def placement(self, index: int) -> Tensor | None:
        return None

    def start(self, residual: Tensor, generator: torch.Generator) -> Tensor:
        averaged = LearnedCodebooks(self.sizes, self.dim).to(residual.device)
        residual = averaged.start(residual, generator)
        for index, size in enumerate(self.sizes):
            entries = averaged.meaning(index)
            # Where nothing is left to describe: above rounding, and so below.
            deviation = entries.square().mean().sqrt().clamp_min(LEAST_GAIN)
            self.factors[index] = deviation
            self.vectors[index, :size] = entries / deviation
        return residual

    def learn(self, seen: Seen, decay: float, finite: Tensor | None) -> None:
        """The optimizer does it."""


def nearness(residual: Tensor, entries: Tensor) -> Tensor:
    """r.e - |e|^2 / 2 of residuals (B, D) and entries (K, D): (B, K)."""
    return residual @ entries.T - entries.square().sum(1) / 2


class GumbelQuantizer(Progressive[GumbelConfig]):
    """Every position has entries of its own, which are trained."""

    whole_batches = True  # H(Z) is that of the whole batch

    def __init__(self, config: GumbelConfig, latent_shape: tuple[int, int, int]) -> None:
        codebooks = TrainedCodebooks(config.sizes, math.prod(latent_shape))
        super().__init__(config, [codebooks])
        self.trained = codebooks
        log_deviations = torch.full((self.num_codes,), math.log(FIRST_DEVIATION))
        self.log_deviations = nn.Parameter(log_deviations)  # (N,): log a_i

    @torch.no_grad()
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        self.scale.copy_(encoded.float().std())
        self.trained.start(self.normalize(encoded), generator)

    def describe(
        self, latents: Tensor, progress: float, generator: torch.Generator
    ) -> ProgressiveDescription:
        noise = gumbel_noise((self.num_codes, len(latents), max(self.sizes)), generator)
        description, (conditional, marginal) = self.sample(
            latents, noise.to(latents.device), temperature(progress)
        )
        description.loss = self.config.entropy_weight * (conditional - marginal)
        description.scalars = {"conditional_entropy": conditional, "marginal_entropy": marginal}
        return description

    def sample(
        self, latents: Tensor, noise: Tensor, temperature: float
    ) -> tuple[ProgressiveDescription, Tensor]:
        """Draw the codes of normalized latents; residuals pass gradients to entries and latents.

        What r_k passes to f is just what f_k = f - r_k does not.

        Args:
            latents: float32 (B, D).
            noise: As from ``gumbel_noise``, (N, B, K) with the largest K.
            temperature: Above 0.

        Returns:
            The description; and H(Z|X) and H(Z) of a code in nats, without the noise, means over
            the positions, float32 (2,).
        """
        described, residuals, codes, uncertainty = torch.zeros_like(latents), [latents], [], []
        with torch.autocast(latents.device.type, enabled=False):
            # By iteration, as the gradient of an index into all vectors is as large as all of them.
            for position, vectors in enumerate(self.trained.vectors):
                size = self.sizes[position]
                entries = vectors[:size] * self.trained.factors[position]
                # Through earlier choices gradients would grow from position to position.
                residual = latents - described.detach()
                logits = self.logits(nearness(residual, entries), position, temperature)
                noisy = logits + noise[position, :, :size]
                codes.append(noisy.argmax(dim=1))
                # The chosen entry in value; as far as gradients are concerned, the soft mixture.
                soft = noisy.softmax(dim=1)
                straight_through = (soft - soft.detach()) @ entries.detach()
                described = described + entries[codes[-1]] + straight_through
                residuals.append(latents - described)
                uncertainty.append(entropies(logits))
        parts = [torch.stack(residuals)]
        description = ProgressiveDescription(
            latents, torch.stack(codes, dim=1), parts, self.codebooks
        )
        return description, torch.stack(uncertainty).mean(0)

    def logits(self, scores: Tensor, position: int, temperature: float) -> Tensor:
        """Scores (B, K_i) at a position, normalized for each latent: float32 (B, K_i)."""
        normalized = F.layer_norm(scores, scores.shape[1:])
        return normalized * (self.log_deviations[position].exp() / temperature)
