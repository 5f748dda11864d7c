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

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCALE_SHARE = 0.05  # of the newest batch in the running standard deviation of the latents
LEAST_GAIN = 1e-3  # of a position at the start, times the norm of a latent of unit variance
TINY = 1e-30  # no smaller divisors; far above float32's limit
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

    vectors: Tensor  # (N, K, D): entry c of position i is factors[i, c] * vectors[i, c]
    factors: Tensor  # (N, K)
    biases: Tensor  # (N, K): half the squared norm where norms differ; inf where there is no entry
    scale: Tensor  # (): the running standard deviation of the encoder's output

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        N, K = config.num_codes, max(config.sizes)
        self.register_buffer("vectors", torch.zeros(N, K, dim))
        self.register_buffer("factors", torch.ones(N, K))
        biases = torch.zeros(N, K)
        for position, size in enumerate(config.sizes):
            biases[position, size:] = torch.inf
        self.register_buffer("biases", biases)
        self.register_buffer("scale", torch.ones(()))

    def entries(self, position: int) -> Tensor:
        """The codebook of a position: float32 (K_i, D)."""
        size = self.config.sizes[position]
        return self.vectors[position, :size] * self.factors[position, :size, None]

    def normalize(self, encoded: Tensor) -> Tensor:
        """Divide the encoder's output (B, D) by its running standard deviation.

        Without this the latent's scale drifts as training goes on and the codebooks lag behind.
        """
        return encoded.float() / self.scale

    def scores(self, position: int, residual: Tensor) -> Tensor:
        """How near the entries of a position are to each residual (B, D): float32 (B, K)."""
        # |r - e|^2 = |r|^2 - 2 (r.e - |e|^2 / 2): the nearest entry has the highest score.
        projections = residual @ self.vectors[position].T
        return torch.addcmul(-self.biases[position], projections, self.factors[position])

    def nearest(self, position: int, residual: Tensor) -> Tensor:
        """The entry of a position nearest to each residual (B, D): int64 (B,)."""
        return self.scores(position, residual).argmax(dim=1)

    @torch.no_grad()
    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the codes of normalized latents.

        Args:
            latents: float32 (B, D).

        Returns:
            Codes, int64 (B, N), and residuals r_0 ... r_N, float32 (N + 1, B, D): f_k = f - r_k.
        """
        B, N = len(latents), self.config.num_codes
        codes = torch.empty(N, B, dtype=torch.int64, device=latents.device)
        residuals = latents.new_empty(N + 1, *latents.shape)
        residuals[0] = latents
        # Autocast would search in bfloat16, which cannot tell near entries apart.
        with torch.autocast(latents.device.type, enabled=False):
            for position in range(N):
                codes[position] = self.nearest(position, residuals[position])
                self._subtract(position, codes[position], residuals)
        return codes.T, residuals

    @torch.no_grad()
    def search(self, latents: Tensor, beam: int) -> Tensor:
        """Choose codes by beam search: the best ``beam`` beginnings go on at every position.

        A code that is not the nearest may leave a residual that later codes describe better. The
        cost grows with ``beam``; prefixes of one or two codes pay with some quality.

        Args:
            latents: Normalized, float32 (B, D).
            beam: At least 1; 1 is greedy.

        Returns:
            Codes, int64 (B, N); all N together leave no more of a latent than greedy ones do.
        """
        B, D = latents.shape
        paths = torch.empty(B, 1, 0, dtype=torch.int64, device=latents.device)
        residuals = latents.unsqueeze(1)  # (B, W, D): of each of the W beginnings
        with torch.autocast(latents.device.type, enabled=False):
            for position, size in enumerate(self.config.sizes):
                scores = self.scores(position, residuals.flatten(0, 1))[:, :size]
                # Half of |r - e|^2, but for what all entries of the position share.
                left = residuals.square().sum(2, keepdim=True) / 2 - scores.view(B, -1, size)
                # The first beginning is always the greedy one, so that it is there at the end.
                left[:, 0].scatter_(1, left[:, 0].argmin(1, keepdim=True), -torch.inf)
                left = left.flatten(1)
                best = left.topk(min(beam, left.shape[1]), largest=False).indices  # (B, W)
                parents, codes = best // size, best % size
                entries = self.entries(position)[codes]
                residuals = residuals.gather(1, parents.unsqueeze(2).expand(-1, -1, D)) - entries
                paths = paths.gather(1, parents.unsqueeze(2).expand(-1, -1, position))
                paths = torch.cat([paths, codes.unsqueeze(2)], dim=2)
        nearest = residuals.square().sum(2).argmin(1)
        return paths[torch.arange(B, device=paths.device), nearest]

    def residuals(self, latents: Tensor, codes: Tensor) -> Tensor:
        """What ``quantize`` leaves of normalized latents (B, D) when it chooses these codes (B, N).

        Returns:
            r_0 ... r_N, float32 (N + 1, B, D), to the bit.
        """
        residuals = latents.new_empty(self.config.num_codes + 1, *latents.shape)
        residuals[0] = latents
        for position in range(self.config.num_codes):
            self._subtract(position, codes[:, position], residuals)
        return residuals

    def _subtract(self, position: int, chosen: Tensor, residuals: Tensor) -> None:
        vectors = self.vectors[position].index_select(0, chosen)
        factors = self.factors[position, chosen].unsqueeze(1)
        torch.addcmul(residuals[position], vectors, factors, value=-1, out=residuals[position + 1])

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
            chosen = codes[:, position]
            factors = self.factors[position, chosen].unsqueeze(1)
            latents = torch.addcmul(latents, self.vectors[position, chosen], factors)
        return latents


class CodebookLearner:
    """Moves the entries of a quantizer to the residuals that chose them, and revives unused ones.

    The moving averages are kept unscaled, and as the quantizer's own vectors: instead of shrinking
    all sums at every step, newer residuals weigh more, and the factors make entries of the sums.
    So a step touches only the rows of chosen entries, once; the averages are the same.
    """

    RESCALE_ABOVE = 1e6  # of the newest weight; far from float32's limits
    TENSORS = ("gains", "norms", "counts", "recent", "window")

    def __init__(self, quantizer: ProgressiveQuantizer) -> None:
        self.quantizer = quantizer
        self.weight = 1.0  # of a residual that arrives now
        self.gains = torch.ones_like(quantizer.factors[:, 0])  # (N,): the norm a position shares
        self.norms = torch.ones_like(quantizer.factors)  # (N, K): of the vectors
        self.counts = torch.ones_like(quantizer.factors)  # (N, K): of residuals in each vector
        # Uses in the present window and in the one before. The averages remember too long for this:
        # an entry that nothing chooses any more would live on by its past.
        self.recent = torch.zeros_like(quantizer.factors)
        self.window = torch.zeros_like(quantizer.factors)

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
            self.gains[position] = 1
            rows = torch.arange(size, device=residual.device)
            drawn = torch.randint(len(residual), (size,), generator=generator).to(residual.device)
            self._set_rows(position, rows, residual[drawn], residual.new_ones(size))
            for _ in range(iterations):
                chosen = quantizer.nearest(position, residual)
                counts = torch.bincount(chosen, minlength=size).float()
                sums = torch.zeros_like(quantizer.vectors[position, :size])
                sums.index_add_(0, chosen, residual)
                empty = (counts == 0).nonzero().squeeze(1)
                drawn = torch.randint(len(residual), (len(empty),), generator=generator)
                sums[empty], counts[empty] = residual[drawn.to(residual.device)], 1.0
                self._set_rows(position, rows, sums / counts.unsqueeze(1), counts)
            chosen = quantizer.nearest(position, residual)
            if position > 0:
                directions = quantizer.entries(position)[chosen]
                # Where nothing is left to describe: above what rounding makes of it in `update`.
                least = LEAST_GAIN * residual.shape[1] ** 0.5
                self.gains[position] = (residual * directions).sum(1).mean().clamp_min(least)
                self._scale_entries()
            residual = residual - quantizer.entries(position)[chosen]

    @torch.no_grad()
    def update(
        self, codes: Tensor, residuals: Tensor, decay: float, finite: Tensor | None = None
    ) -> None:
        """Account for one batch; the latent's scale follows, too.

        Args:
            codes: int64 (B, N), as from ``quantize``.
            residuals: float32 (N + 1, B, D), as from ``quantize``.
            decay: Of the moving averages, in (0, 1).
            finite: bool (), false where the batch is to change nothing; None means true. A tensor,
                so that a GPU need not be waited for.
        """
        quantizer = self.quantizer
        N, K, D = quantizer.vectors.shape
        ones = torch.ones(codes.numel(), device=codes.device)
        if finite is not None and finite.device.type == "cpu" and finite:
            finite = None  # known for the asking, and spares a copy
        if finite is not None:
            residuals, ones = torch.where(finite, residuals, 0), ones * finite
        self.weight /= decay
        positions = torch.arange(N, device=codes.device).unsqueeze(1)
        rows = (positions * K + codes.T).flatten()
        vectors = quantizer.vectors.view(-1, D)
        with _deterministic(codes.device):
            self.counts.view(-1).index_add_(0, rows, ones, alpha=self.weight)
            self.recent.view(-1).index_add_(0, rows, ones)
            vectors.index_add_(0, rows, residuals[:-1].reshape(-1, D), alpha=self.weight)
            norms = torch.linalg.vector_norm(vectors.index_select(0, rows), dim=1)
            if finite is not None:  # rows may be padding then, and rounding is a change, too
                norms = torch.where(finite, norms, self.norms.view(-1).index_select(0, rows))
            self.norms.view(-1).index_copy_(0, rows, norms)

        # |r - g d|^2 = |r|^2 - 2 g r.d + g^2: the mean projection r.d on the chosen directions.
        energies = torch.linalg.vector_norm(residuals, dim=2).square().mean(1)
        projections = (energies[:-1] - energies[1:] + self.gains**2) / (2 * self.gains)
        deviation = residuals[0].std() * quantizer.scale
        share, scale_share = torch.as_tensor(1 - decay), torch.as_tensor(SCALE_SHARE)
        if finite is not None:
            share, scale_share = share * finite, scale_share * finite
        self.gains[1:] = self.gains[1:].lerp(projections[1:], share.to(projections))
        quantizer.scale.lerp_(deviation, scale_share.to(deviation))
        if self.weight > self.RESCALE_ABOVE:
            quantizer.vectors /= self.weight
            self.norms /= self.weight
            self.counts /= self.weight
            self.weight = 1.0
        self._scale_entries()

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
                entries = quantizer.entries(position)[codes[drawn, position]]
                values = entries.lerp(residuals[position, drawn], SPLIT_STEP)
                self._set_rows(position, rows, values, self.counts[position, :size].mean())
        self.window, self.recent = self.recent, torch.zeros_like(self.recent)

    def usage(self) -> tuple[float, int]:
        """Mean entropy of the codes of the last full window in bits, and its unused entries."""
        entropy, dead = 0.0, 0
        window = self.window if self.window.any() else self.recent  # before the first is full
        for uses, size in zip(window, self.quantizer.config.sizes, strict=True):
            shares = uses[:size].double() / uses[:size].sum()
            entropy -= float(torch.special.xlogy(shares, shares).sum()) / math.log(2)
            dead += int((shares == 0).sum())
        return entropy / self.quantizer.config.num_codes, dead

    def _set_rows(self, position: int, rows: Tensor, values: Tensor, counts: Tensor) -> None:
        """Let entries start anew at these values (R, D), as means of so many residuals."""
        self.counts[position, rows] = counts
        sums = values * self.counts[position, rows].unsqueeze(1)
        self.quantizer.vectors[position, rows] = sums
        self.norms[position, rows] = torch.linalg.vector_norm(sums, dim=1)
        self._scale_entries()

    def _scale_entries(self) -> None:
        """The first codebook is free: entries are means. Later ones share the position's norm."""
        factors, biases = self.quantizer.factors, self.quantizer.biases
        # Vectors of zero stay zero, and so does padding after many a rescaling.
        torch.div(self.gains.unsqueeze(1), self.norms.clamp_min(TINY), out=factors)
        torch.reciprocal(self.counts[0].clamp_min(TINY), out=factors[0])
        size = self.quantizer.config.sizes[0]
        biases[0, :size] = (self.norms[0, :size] * factors[0, :size]).square() / 2

    def state_dict(self) -> dict[str, Tensor]:
        """All that ``update`` and ``revive`` carry from step to step, besides the quantizer."""
        state = {name: getattr(self, name) for name in self.TENSORS}
        return {**state, "weight": torch.tensor(self.weight, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.weight = float(state["weight"])


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Sums in a fixed order on GPUs too, so that several processes keep the same codebooks."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.use_deterministic_algorithms(before)


def code_entropy_bits(codes: Tensor, sizes: tuple[int, ...]) -> list[float]:
    """Entropy of the codes (B, N) at each position over a data set, in bits; at most log2 K_i."""
    entropies = []
    for position, size in enumerate(sizes):
        shares = torch.bincount(codes[:, position], minlength=size).double() / len(codes)
        entropies.append(float(-torch.special.xlogy(shares, shares).sum() / math.log(2)))
    return entropies
