"""The progressive quantizer: one latent vector <-> N ordered codes, coarse to fine.

    r_0 = f        c_i = argmin_c |r_{i-1} - e_i[c]|^2        r_i = r_{i-1} - e_i[c_i]
    f_k = e_1[c_1] + ... + e_k[c_k] = f - r_k

Each position i has a codebook e_i of its own whose entries describe the *whole* latent, so any
prefix of codes sums to an approximation f_k of f, and each code goes where most is left to say.
Greedy refinement of this kind is optimal for a Gaussian source under squared error (Equitz & Cover,
"Successive refinement of information", 1991).

From the second position on, all entries of a position share one norm (shape-gain quantization): the
choice is by direction alone, which keeps every entry in use. Entries learn by exponential moving
averages of the residuals that chose them, never by gradient (`CodebookLearner`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SPLIT_STEP = 0.2  # from an entry in use towards one of its residuals, where a new one starts


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    num_codes: int = 32  # N: codes of one image
    codebook_sizes: tuple[int, ...] = (256,)  # K_i: entries of each position, or one for all
    decay_start: float = 0.97  # of the moving averages, at the start of training ...
    decay_end: float = 0.9997  # ... and at its end; 1 - decay falls geometrically between
    revive_below: float = 0.1  # entries used less than this share of the mean start anew ...
    revive_every: int = 100  # ... judged by their use in the last so many steps

    def __post_init__(self) -> None:
        if self.num_codes < 1:
            raise ValueError(f"num_codes is {self.num_codes}, but an image needs at least 1 code")
        if len(self.codebook_sizes) not in (1, self.num_codes):
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} numbers; "
                f"give 1 for all positions, or num_codes={self.num_codes} of them"
            )
        if min(self.codebook_sizes) < 2:
            raise ValueError("codebook_sizes must be at least 2 each; 1 entry says nothing")
        if not 0 < self.decay_start <= self.decay_end < 1:
            raise ValueError("decay_start and decay_end must satisfy 0 < start <= end < 1")

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_i of every position, N numbers."""
        sizes = self.codebook_sizes
        return sizes * self.num_codes if len(sizes) == 1 else sizes

    @property
    def bits(self) -> tuple[float, ...]:
        """log2 K_i of every position: the fixed-length cost of each code."""
        return tuple(math.log2(size) for size in self.sizes)


class ProgressiveQuantizer(nn.Module):
    """Latents (B, D) <-> codes (B, N), by nearest entry and subtraction; float32 throughout."""

    vectors: Tensor  # (N, K, D): entries divided by the gain; rows from K_i on are zero
    gains: Tensor  # (N,): the norm that the entries of a position share; 1 for the first position
    biases: Tensor  # (N, K): half the squared norm where norms differ; inf where there is no entry
    scale: Tensor  # (): the running standard deviation of the encoder's output

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        N, K = config.num_codes, max(config.sizes)
        self.register_buffer("vectors", torch.zeros(N, K, dim))
        self.register_buffer("gains", torch.ones(N))
        biases = torch.zeros(N, K)
        for position, size in enumerate(config.sizes):
            biases[position, size:] = torch.inf
        self.register_buffer("biases", biases)
        self.register_buffer("scale", torch.ones(()))

    def normalize(self, encoded: Tensor) -> Tensor:
        """Divide the encoder's output (B, D) by its running standard deviation.

        Without this the latent's scale drifts as training goes on and the codebooks lag behind.
        """
        return encoded.float() / self.scale

    def nearest(self, position: int, residual: Tensor) -> Tensor:
        """The entry of a position nearest to each residual (B, D): int64 (B,)."""
        # |r - g v|^2 = |r|^2 - 2 g (r.v - g |v|^2 / 2): the nearest entry has the highest score.
        bias, vectors = self.biases[position], self.vectors[position]
        return torch.addmm(bias, residual, vectors.T, beta=-1).argmax(dim=1)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the codes of normalized latents.

        Args:
            latents: float32 (B, D).

        Returns:
            Codes, int64 (B, N), and residuals r_0 ... r_N, float32 (N + 1, B, D): f_k = f - r_k.
        """
        residual = latents.detach()
        codes, residuals = [], [residual]
        # Autocast would search in bfloat16, which cannot tell near entries apart.
        with torch.autocast(residual.device.type, enabled=False):
            for position in range(self.config.num_codes):
                chosen = self.nearest(position, residual)
                entries = self.vectors[position, chosen]
                residual = torch.addcmul(residual, entries, self.gains[position], value=-1)
                codes.append(chosen)
                residuals.append(residual)
        return torch.stack(codes, dim=1), torch.stack(residuals)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Sum the entries of a prefix: codes int64 (B, k) -> f_k, float32 (B, D).

        Raises:
            ValueError: k is 0 or above N, or a code is outside [0, K_i).
        """
        if codes.ndim != 2:
            raise ValueError(f"codes must be (B, k), not {tuple(codes.shape)}")
        k, N = codes.shape[1], self.config.num_codes
        if not 1 <= k <= N:
            raise ValueError(f"a prefix has 1 to {N} codes, but got {k}")
        sizes = torch.tensor(self.config.sizes[:k], device=codes.device)
        if ((codes < 0) | (codes >= sizes)).any():
            raise ValueError(f"codes must lie in [0, K) with K = {self.config.sizes[:k]}")
        latents = self.vectors.new_zeros(len(codes), self.vectors.shape[2])
        for position in range(k):  # in order: equal prefixes give equal sums, to the bit
            entries = self.vectors[position, codes[:, position]]
            latents = torch.addcmul(latents, entries, self.gains[position])
        return latents


class CodebookLearner:
    """Moves the entries of a quantizer to the residuals that chose them, and revives unused ones.

    The moving averages are kept unscaled: instead of shrinking all sums at every step, newer
    residuals weigh more. Only the rows of chosen entries are touched, which makes a step several
    times cheaper; the averages are the same.
    """

    RESCALE_ABOVE = 1e6  # of the newest weight; far from float32's limits

    def __init__(self, quantizer: ProgressiveQuantizer) -> None:
        self.quantizer = quantizer
        self.weight = 1.0  # of a residual that arrives now
        self.sums = torch.zeros_like(quantizer.vectors)  # (N, K, D)
        self.counts = torch.zeros_like(quantizer.biases)  # (N, K)
        # Uses in the present window and in the one before. The averages remember too long for this:
        # an entry that nothing chooses any more would live on by its past.
        self.recent = torch.zeros_like(quantizer.biases)
        self.window = torch.ones_like(quantizer.biases)

    def decay(self, progress: float) -> float:
        """Decay of the moving averages at a progress in [0, 1]."""
        config = self.quantizer.config
        start, end = math.log(1 - config.decay_start), math.log(1 - config.decay_end)
        return 1 - math.exp(start + (end - start) * progress)

    @torch.no_grad()
    def initialize(self, encoded: Tensor, generator: torch.Generator, iterations: int = 5) -> None:
        """Fit the codebooks to encoder outputs (B, D), one position after the other (Lloyd)."""
        quantizer = self.quantizer
        quantizer.scale.copy_(encoded.float().std())
        residual = quantizer.normalize(encoded)
        for position, size in enumerate(quantizer.config.sizes):
            drawn = torch.randint(len(residual), (size,), generator=generator).to(residual.device)
            ones = residual.new_ones(size)
            self._set_rows(position, torch.arange(size, device=ones.device), residual[drawn], ones)
            for _ in range(iterations):
                chosen = quantizer.nearest(position, residual)
                counts = torch.bincount(chosen, minlength=size).float()
                sums = torch.zeros_like(self.sums[position, :size]).index_add_(0, chosen, residual)
                empty = (counts == 0).nonzero().squeeze(1)
                drawn = torch.randint(len(residual), (len(empty),), generator=generator)
                sums[empty], counts[empty] = residual[drawn.to(residual.device)], 1.0
                rows = torch.arange(size, device=counts.device)
                self._set_rows(position, rows, sums / counts.unsqueeze(1), counts)
            chosen = quantizer.nearest(position, residual)
            vectors = quantizer.vectors[position, chosen]
            if position > 0:
                quantizer.gains[position] = (residual * vectors).sum(1).mean()
            residual = residual - quantizer.gains[position] * vectors

    @torch.no_grad()
    def update_scale(self, encoded: Tensor) -> None:
        """Follow the standard deviation of the encoder's output (B, D)."""
        self.quantizer.scale.lerp_(encoded.detach().float().std(), 0.05)

    @torch.no_grad()
    def update(self, codes: Tensor, residuals: Tensor, decay: float) -> None:
        """Account for one batch: codes (B, N) and residuals (N + 1, B, D) as from ``quantize``."""
        quantizer = self.quantizer
        N, K, D = quantizer.vectors.shape
        self.weight /= decay
        inputs = residuals[:-1]
        positions = torch.arange(N, device=codes.device).unsqueeze(1)
        rows = (positions * K + codes.T).flatten()
        ones = torch.ones_like(rows, dtype=torch.float32)
        self.counts.view(-1).index_add_(0, rows, ones, alpha=self.weight)
        self.recent.view(-1).index_add_(0, rows, ones)
        self.sums.view(-1, D).index_add_(0, rows, inputs.reshape(-1, D), alpha=self.weight)

        projections = (inputs[1:] * quantizer.vectors[positions[1:], codes.T[1:]]).sum(-1).mean(1)
        quantizer.gains[1:].lerp_(projections, 1 - decay)

        vectors = quantizer.vectors.view(-1, D)
        vectors[rows] = F.normalize(self.sums.view(-1, D)[rows], dim=1)
        chosen = codes[:, 0]  # the first codebook is free: entries are means
        vectors[chosen] = self.sums[0, chosen] / self.counts[0, chosen].unsqueeze(1)
        quantizer.biases[0, chosen] = vectors[chosen].square().sum(1) / 2

        if self.weight > self.RESCALE_ABOVE:
            self.sums /= self.weight
            self.counts /= self.weight
            self.weight = 1.0

    @torch.no_grad()
    def revive(self, codes: Tensor, residuals: Tensor, generator: torch.Generator) -> None:
        """Replace entries used under ``revive_below`` of the mean by splits of used ones.

        A new entry lies a step from an entry in use towards a residual that chose it, so that the
        two share what the one described. (At the residual itself, in hundreds of dimensions, it
        would be nearest to nothing else.) Ends the window in which uses are counted.

        Args:
            codes: The codes (B, N) of a batch, as from ``quantize``.
            residuals: Its residuals (N + 1, B, D).
            generator: Draws the residuals; popular entries are split the most.
        """
        quantizer = self.quantizer
        for position, size in enumerate(quantizer.config.sizes):
            uses = self.recent[position, :size]
            rows = (uses < quantizer.config.revive_below * uses.mean()).nonzero().squeeze(1)
            if len(rows) > 0:
                drawn = torch.randint(len(codes), (len(rows),), generator=generator)
                drawn = drawn.to(rows.device)
                vectors = quantizer.vectors[position, codes[drawn, position]]
                entries = vectors * quantizer.gains[position]
                values = entries.lerp(residuals[position, drawn], SPLIT_STEP)
                self._set_rows(position, rows, values, self.counts[position, :size].mean())
        self.window, self.recent = self.recent, torch.zeros_like(self.recent)

    def usage(self) -> tuple[float, int]:
        """Mean entropy of the codes of the last full window in bits, and its unused entries."""
        entropy, dead = 0.0, 0
        for uses, size in zip(self.window, self.quantizer.config.sizes, strict=True):
            shares = uses[:size].double() / uses[:size].sum()
            entropy -= float(torch.special.xlogy(shares, shares).sum()) / math.log(2)
            dead += int((shares == 0).sum())
        return entropy / self.quantizer.config.num_codes, dead

    def _set_rows(self, position: int, rows: Tensor, values: Tensor, count: Tensor) -> None:
        quantizer = self.quantizer
        self.counts[position, rows] = count
        self.sums[position, rows] = values * self.counts[position, rows].unsqueeze(1)
        if position == 0:
            quantizer.vectors[0, rows] = values
            quantizer.biases[0, rows] = values.square().sum(1) / 2
        else:
            quantizer.vectors[position, rows] = F.normalize(values, dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """All that ``update`` and ``revive`` carry from step to step."""
        return {
            "sums": self.sums,
            "counts": self.counts,
            "recent": self.recent,
            "window": self.window,
            "weight": torch.tensor(self.weight, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("sums", "counts", "recent", "window"):
            getattr(self, name).copy_(state[name])
        self.weight = float(state["weight"])


def code_entropy_bits(codes: Tensor, sizes: tuple[int, ...]) -> list[float]:
    """Entropy of the codes (B, N) at each position over a data set, in bits; at most log2 K_i."""
    entropies = []
    for position, size in enumerate(sizes):
        shares = torch.bincount(codes[:, position], minlength=size).double() / len(codes)
        entropies.append(float(-torch.special.xlogy(shares, shares).sum() / math.log(2)))
    return entropies
