"""What the quantizer learns without gradients: entries and covariances, by moving averages."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer, Residuals

SCALE_SHARE = 0.05  # of the newest batch in the running standard deviation of the latents
LEAST_GAIN = 1e-3  # of a position at the start, times the norm of a latent of unit variance
TINY = 1e-30  # no smaller divisors; far above float32's limit
SPLIT_STEP = 0.2  # from an entry in use towards one of its residuals, where a new one starts
TURN_EVERY = 50  # updates, after which late positions follow the covariance
LATE_GAINS = 0.5, 2.0  # of a late position, whose spreads should be right by themselves


class CodebookLearner:
    """Moves the entries of a quantizer to the residuals that chose them, and revives unused ones.

    For late positions it follows the covariance of the residual after the L learned codes, too: the
    basis spans its principal directions, and each position takes the ones along which the positions
    before it have left most. Their residuals there, divided by the spreads, move the one codebook.

    The moving averages are kept unscaled, and as the quantizer's own vectors: instead of shrinking
    all sums at every step, newer residuals weigh more, and the factors make entries of the sums.
    So a step touches only the rows of chosen entries, once; the averages are the same.
    """

    RESCALE_ABOVE = 1e6  # of the newest weight; far from float32's limits
    TENSORS = ("gains", "norms", "counts", "recent", "window")
    TENSORS += ("shared", "covariance", "reductions", "deviations")

    def __init__(self, quantizer: ProgressiveQuantizer) -> None:
        self.quantizer = quantizer
        self.weight = 1.0  # of a residual that arrives now
        sizes = quantizer.config.sizes
        ones = torch.ones(len(sizes), max(sizes), device=quantizer.scale.device)
        self.gains = ones[:, 0].clone()  # (N,): the norm that the entries of a position share
        self.norms = ones.clone()  # (N, K): of the vectors
        self.counts = ones.clone()  # (N, K): of residuals in each vector
        # Uses in the present window and in the one before. The averages remember too long for this:
        # an entry that nothing chooses any more would live on by its past.
        self.recent, self.window = torch.zeros_like(ones), torch.zeros_like(ones)
        self.shared = torch.zeros_like(quantizer.shared)  # (K, n): sums, as the vectors are
        D, r = quantizer.basis.shape
        self.covariance = quantizer.basis.new_zeros((D, D) if r else (0, 0))  # of r_L
        # (N - L,): what a late code leaves of the variance along the directions it describes.
        bits = torch.tensor(quantizer.config.bits[quantizer.config.num_learned :])
        self.reductions = (2 ** (-2 * bits / max(1, quantizer.spreads.shape[1]))).to(ones)
        self.deviations = quantizer.spreads.clone()  # (N - L, n): the spreads before the gains
        self.updates = 0

    def decay(self, progress: float) -> float:
        """Decay of the moving averages at a progress in [0, 1]."""
        config = self.quantizer.config
        start, end = math.log(1 - config.decay_start), math.log(1 - config.decay_end)
        return 1 - math.exp(start + (end - start) * progress)

    @torch.no_grad()
    def initialize(self, encoded: Tensor, generator: torch.Generator, iterations: int = 5) -> None:
        """Fit the codebooks to encoder outputs (B, D), one position after the other (Lloyd)."""
        quantizer, L = self.quantizer, self.quantizer.config.num_learned
        quantizer.scale.copy_(encoded.float().std())
        residual = quantizer.normalize(encoded)
        for position in range(quantizer.config.num_codes):
            if position == L:
                self.covariance.copy_(residual.T @ residual / len(residual))
                self._turn(iterations=10)
                residual = residual @ quantizer.basis
                # Gaussian vectors at first; sums, as many residuals as each counts.
                self.shared.copy_(torch.randn(self.shared.shape, generator=generator))
                self.shared *= self.counts[L:, : len(self.shared)].sum(0).unsqueeze(1)
            if position < L:
                self._fit(position, residual, generator, iterations)
            self.gains[position] = 1
            self._scale_entries()
            codes = quantizer.nearest(position, residual)
            if position > 0:
                along = residual
                # Where nothing is left to describe: above what rounding makes of it in `update`.
                limits = LEAST_GAIN * encoded.shape[1] ** 0.5, math.inf
                if position >= L:
                    along, limits = residual[:, quantizer.supports[position - L]], LATE_GAINS
                entries = quantizer.chosen(position, codes)
                projection = (along * entries).sum() / entries.square().sum().clamp_min(TINY)
                self.gains[position] = projection.clamp(*limits)
                self._scale_entries()
            quantizer.add(position, codes, residual, alpha=-1)

    def _fit(
        self, position: int, residual: Tensor, generator: torch.Generator, iterations: int
    ) -> None:
        """Lloyd's iterations, from residuals drawn at random."""
        quantizer, size = self.quantizer, self.quantizer.config.sizes[position]
        self.gains[position] = 1
        rows = torch.arange(size, device=residual.device)
        drawn = torch.randint(len(residual), (size,), generator=generator).to(residual.device)
        self._set_rows(position, rows, residual[drawn], residual.new_ones(size))
        for _ in range(iterations):
            codes = quantizer.nearest(position, residual)
            counts = torch.bincount(codes, minlength=size).float()
            sums = torch.zeros_like(quantizer.vectors[position, :size])
            sums.index_add_(0, codes, residual)
            empty = (counts == 0).nonzero().squeeze(1)
            drawn = torch.randint(len(residual), (len(empty),), generator=generator)
            sums[empty], counts[empty] = residual[drawn.to(residual.device)], 1.0
            self._set_rows(position, rows, sums / counts.unsqueeze(1), counts)

    @torch.no_grad()
    def update(
        self, codes: Tensor, residuals: Residuals, decay: float, finite: Tensor | None = None
    ) -> None:
        """Account for one batch; the latent's scale follows, too.

        Args:
            codes: int64 (B, N), as from ``quantize``.
            residuals: What they leave, as from ``quantize``.
            decay: Of the moving averages, in (0, 1).
            finite: bool (), false where the batch is to change nothing; None means true. A tensor,
                so that a GPU need not be waited for.
        """
        quantizer = self.quantizer
        (L, K, D), N = quantizer.vectors.shape, quantizer.config.num_codes
        ones = torch.ones(codes.numel(), device=codes.device)
        if finite is not None and finite.device.type == "cpu" and finite:
            finite = None  # known for the asking, and spares a copy
        early, late = residuals.early, residuals.late
        if finite is not None:
            early, late = (torch.where(finite, part, 0) for part in (early, late))
            residuals, ones = Residuals(early, late, residuals.basis), ones * finite
        self.weight /= decay
        positions = torch.arange(N, device=codes.device).unsqueeze(1)
        uses = (positions * self.counts.shape[1] + codes.T).flatten()
        rows, vectors = (positions * K + codes.T)[:L].flatten(), quantizer.vectors.view(-1, D)
        with _deterministic(codes.device):
            self.counts.view(-1).index_add_(0, uses, ones, alpha=self.weight)
            self.recent.view(-1).index_add_(0, uses, ones)
            vectors.index_add_(0, rows, early[:L].reshape(-1, D), alpha=self.weight)
            norms = torch.linalg.vector_norm(vectors.index_select(0, rows), dim=1)
            if finite is not None:  # rows may be padding then, and rounding is a change, too
                norms = torch.where(finite, norms, self.norms.view(-1)[uses[: len(rows)]])
            self.norms.view(-1).index_copy_(0, uses[: len(rows)], norms)

        # |r - g u|^2 = |r|^2 - 2 g r.u + g^2 |u|^2: the gain that would have left least.
        energies = residuals.energies().mean(1)
        squares = torch.ones_like(energies[1:])  # |u|^2, of early positions
        squares[L:] = self.norms.gather(1, codes.T)[L:].square().mean(1).clamp_min(TINY)
        falls = energies[:-1] - energies[1:]
        projections = (falls / squares + self.gains**2) / (2 * self.gains)
        deviation = early[0].std() * quantizer.scale
        share, scale_share = torch.as_tensor(1 - decay), torch.as_tensor(SCALE_SHARE)
        if finite is not None:
            share, scale_share = share * finite, scale_share * finite
        share = share.to(projections)
        self.gains[1:] = self.gains[1:].lerp(projections[1:], share)
        self.gains[L:] = self.gains[L:].clamp(*LATE_GAINS)
        quantizer.scale.lerp_(deviation, scale_share.to(deviation))
        if self.weight > self.RESCALE_ABOVE:
            quantizer.vectors /= self.weight
            self.shared /= self.weight
            self.norms[:L] /= self.weight
            self.counts /= self.weight
            self.weight = 1.0
        if L < N:
            along = late[:-1].gather(2, quantizer.supports.unsqueeze(1).expand(-1, len(codes), -1))
            deviations = self.deviations.unsqueeze(1)
            whitened = torch.where(deviations == 0, 0, along / deviations)
            with _deterministic(codes.device):
                chosen = codes.T[L:].flatten()
                self.shared.index_add_(0, chosen, whitened.flatten(0, 1), alpha=self.weight)
            left = 1 - falls[L:] / along.square().sum(2).mean(1).clamp_min(TINY)
            self.reductions.lerp_(left.clamp(0, 1), share)
            self.covariance.lerp_(early[L].T @ early[L] / codes.shape[0], share)
            self.updates += 1
            if self.updates % TURN_EVERY == 0:
                self._turn()
        self._scale_entries()

    @torch.no_grad()
    def revive(self, codes: Tensor, residuals: Residuals, generator: torch.Generator) -> None:
        """Replace entries used under ``revive_below`` of the mean by splits of used ones.

        A new entry lies a step from an entry in use towards a residual that chose it, so that the
        two share what the one described. (At the residual itself, in hundreds of dimensions, it
        would be nearest to nothing else.) Ends the window in which uses are counted.

        Args:
            codes: The codes (B, N) of a batch, as from ``quantize``.
            residuals: What they leave.
            generator: Draws the residuals; popular entries are split the most.
        """
        quantizer = self.quantizer
        for position, size in enumerate(quantizer.config.sizes[: quantizer.config.num_learned]):
            uses = self.recent[position, :size]
            rows = (uses < quantizer.config.revive_below * uses.mean()).nonzero().squeeze(1)
            if len(rows) > 0:
                drawn = torch.randint(len(codes), (len(rows),), generator=generator)
                drawn = drawn.to(rows.device)
                entries = quantizer.chosen(position, codes[drawn, position])
                values = entries.lerp(residuals.early[position, drawn], SPLIT_STEP)
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

    def _turn(self, iterations: int = 1) -> None:
        """Turn the basis towards the principal directions of r_L (orthogonal iteration)."""
        quantizer, basis = self.quantizer, self.quantizer.basis
        for _ in range(iterations):
            basis = torch.linalg.qr(self.covariance @ basis).Q
        quantizer.basis.copy_(basis)
        variances = (basis * (self.covariance @ basis)).sum(0).clamp_min(0)
        for late, reduction in enumerate(self.reductions):
            most = variances.topk(self.deviations.shape[1])
            quantizer.supports[late] = most.indices
            self.deviations[late] = most.values.sqrt().copysign(self.deviations[late])
            variances[most.indices] *= reduction

    def _scale_entries(self) -> None:
        """The first codebook is free: entries are means. Other learned ones share a norm."""
        quantizer, gains = self.quantizer, self.gains.unsqueeze(1)
        factors, biases = quantizer.factors, quantizer.biases
        L, K = factors.shape
        # Vectors of zero stay zero, and so does padding after many a rescaling.
        torch.div(gains[:L], self.norms[:L, :K].clamp_min(TINY), out=factors)
        torch.reciprocal(self.counts[0, :K].clamp_min(TINY), out=factors[0])
        biases[0, :K] = (self.norms[0, :K] * factors[0]).square() / 2
        K = len(self.shared)
        counts = self.counts[L:, :K].sum(0).clamp_min(TINY)
        torch.div(self.shared, counts.unsqueeze(1), out=quantizer.shared)
        self.norms[L:, :K] = (self.deviations.square() @ quantizer.shared.square().T).sqrt()
        torch.mul(self.deviations, gains[L:], out=quantizer.spreads)
        biases[L:] = (self.norms[L:] * gains[L:]).square() / 2

    def state_dict(self) -> dict[str, Tensor]:
        """All that ``update`` and ``revive`` carry from step to step, besides the quantizer."""
        state = {name: getattr(self, name) for name in self.TENSORS}
        weight = torch.tensor(self.weight, dtype=torch.float64)
        return {**state, "weight": weight, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.weight, self.updates = float(state["weight"]), int(state["updates"])


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
