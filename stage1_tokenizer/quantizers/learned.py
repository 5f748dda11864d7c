"""Codebooks of early positions: whole-latent entries, each learned by itself.

    e_i[c] = factors[i, c] * vectors[i, c]

From the second position on, all entries of a position share one norm, the position's gain (shape-
gain quantization): the choice is by direction alone, which keeps every entry in use. The first
codebook is free: its entries are means.

The moving averages are kept unscaled, and as the entries' own vectors: instead of shrinking all
sums at every step, newer residuals weigh more, and the factors make entries of the sums. So a step
touches only the rows of chosen entries, once; the averages are the same.
"""

import math

import torch
from torch import Tensor

from stage1_tokenizer.quantizers.codebook import LEAST_GAIN, TINY, Codebook, Seen
from stage1_tokenizer.quantizers.contract import deterministic

SPLIT_STEP = 0.2  # from an entry in use towards one of its residuals, where a new one starts
LLOYD_ITERATIONS = 5
RESCALE_ABOVE = 1e6  # of the newest weight; far from float32's limits


class LearnedCodebooks(Codebook):
    """L positions, the first ones of an image, with a codebook of their own each."""

    vectors: Tensor  # (L, K, D): sums of the residuals that chose each entry
    factors: Tensor  # (L, K): what makes entries of them
    biases: Tensor  # (L, K): half the squared norm where norms differ

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.sizes, self.books, self.dim = sizes, tuple(range(len(sizes))), dim
        L, K = len(sizes), max(sizes)
        self.register_buffer("vectors", torch.zeros(L, K, dim))
        self.register_buffer("factors", torch.ones(L, K))
        self.register_buffer("biases", torch.zeros(L, K))
        self.learning = False  # whether there are the averages below

    def enter(self, residual: Tensor) -> Tensor:
        return residual

    def expand(self, difference: Tensor) -> Tensor:
        return difference

    def chosen(self, index: int, codes: Tensor) -> Tensor:
        return self.vectors[index][codes] * self.factors[index][codes].unsqueeze(-1)

    def add(self, index: int, codes: Tensor, sums: Tensor, alpha: float = 1) -> None:
        sums.add_(self.chosen(index, codes), alpha=alpha)

    def scores(self, index: int, residual: Tensor) -> Tensor:
        size = self.sizes[index]
        projections = residual @ self.vectors[index, :size].T
        return torch.addcmul(-self.biases[index, :size], projections, self.factors[index, :size])

    def meaning(self, book: int) -> Tensor:
        return self.chosen(book, torch.arange(self.sizes[book], device=self.factors.device))

    def placement(self, index: int) -> Tensor | None:
        return None

    # Learning.

    def begin(self) -> None:
        """Make room for the averages that only training needs."""
        self.learning = True
        self.weight = 1.0  # of a residual that arrives now
        self.gains = torch.ones_like(self.factors[:, 0])  # (L,): the norm that entries share
        self.norms = torch.ones_like(self.factors)  # (L, K): of the vectors
        self.counts = torch.ones_like(self.factors)  # (L, K): of residuals in each vector

    def start(self, residual: Tensor, generator: torch.Generator) -> Tensor:
        self.begin()
        residual = residual.clone()
        for index in range(len(self.sizes)):
            self._fit(index, residual, generator)
            codes = self.nearest(index, residual)
            if index > 0:
                entries = self.chosen(index, codes)
                projection = (residual * entries).sum() / entries.square().sum().clamp_min(TINY)
                least = LEAST_GAIN * residual.shape[1] ** 0.5
                self.gains[index] = projection.clamp(least, math.inf)
                self._scale_entries()
            self.add(index, codes, residual, alpha=-1)
        return residual

    def _fit(self, index: int, residual: Tensor, generator: torch.Generator) -> None:
        """Lloyd's iterations, from residuals drawn at random."""
        size = self.sizes[index]
        rows = torch.arange(size, device=residual.device)
        drawn = torch.randint(len(residual), (size,), generator=generator).to(residual.device)
        self._set_rows(index, rows, residual[drawn], residual.new_ones(size))
        for _ in range(LLOYD_ITERATIONS):
            codes = self.nearest(index, residual)
            counts = torch.bincount(codes, minlength=size).float()
            sums = torch.zeros_like(self.vectors[index, :size])
            sums.index_add_(0, codes, residual)
            empty = (counts == 0).nonzero().squeeze(1)
            drawn = torch.randint(len(residual), (len(empty),), generator=generator)
            sums[empty], counts[empty] = residual[drawn.to(residual.device)], 1.0
            self._set_rows(index, rows, sums / counts.unsqueeze(1), counts)

    def learn(self, seen: Seen, decay: float, finite: Tensor | None) -> None:
        L, K, D = self.vectors.shape
        self.weight /= decay
        positions = torch.arange(L, device=seen.codes.device).unsqueeze(1)
        rows = (positions * K + seen.codes.T).flatten()
        ones = torch.ones(rows.shape, device=rows.device)
        ones = ones if finite is None else ones * finite

        # The chosen rows, and their norms.
        vectors, norms = self.vectors.view(-1, D), self.norms.view(-1)
        with deterministic(rows.device):
            self.counts.view(-1).index_add_(0, rows, ones, alpha=self.weight)
            vectors.index_add_(0, rows, seen.left[:L].reshape(-1, D), alpha=self.weight)
            chosen = torch.linalg.vector_norm(vectors.index_select(0, rows), dim=1)
            if finite is not None:  # rows may be padding then, and rounding is a change, too
                chosen = torch.where(finite, chosen, norms[rows])
            norms.index_copy_(0, rows, chosen)

        # |r - g u|^2 = |r|^2 - 2 g r.u + g^2 with |u| = 1: the gain that would have left least.
        best = (seen.falls + self.gains**2) / (2 * self.gains)
        share = torch.as_tensor(1 - decay)
        share = (share if finite is None else share * finite).to(best)
        self.gains[1:] = self.gains[1:].lerp(best[1:], share)

        if self.weight > RESCALE_ABOVE:
            for averages in (self.vectors, self.norms, self.counts):
                averages /= self.weight
            self.weight = 1.0
        self._scale_entries()

    def revive(self, seen: Seen, uses: Tensor, below: float, generator: torch.Generator) -> None:
        """Replace entries used under ``below`` of the mean by splits of used ones.

        A new entry lies a step from an entry in use towards a residual that chose it, so that the
        two share what the one described. (At the residual itself, in hundreds of dimensions, it
        would be nearest to nothing else.) Popular entries are split the most.
        """
        for index, size in enumerate(self.sizes):
            used = uses[index, :size]
            rows = (used < below * used.mean()).nonzero().squeeze(1)
            if len(rows) > 0:
                drawn = torch.randint(len(seen.codes), (len(rows),), generator=generator)
                drawn = drawn.to(rows.device)
                entries = self.chosen(index, seen.codes[drawn, index])
                values = entries.lerp(seen.left[index, drawn], SPLIT_STEP)
                self._set_rows(index, rows, values, self.counts[index, :size].mean())

    def _set_rows(self, index: int, rows: Tensor, values: Tensor, counts: Tensor) -> None:
        """Let entries start anew at these values (R, D), as means of so many residuals."""
        self.counts[index, rows] = counts
        sums = values * self.counts[index, rows].unsqueeze(1)
        self.vectors[index, rows] = sums
        self.norms[index, rows] = torch.linalg.vector_norm(sums, dim=1)
        self._scale_entries()

    def _scale_entries(self) -> None:
        # Vectors of zero stay zero, and so does padding after many a rescaling.
        torch.div(self.gains.unsqueeze(1), self.norms.clamp_min(TINY), out=self.factors)
        torch.reciprocal(self.counts[0].clamp_min(TINY), out=self.factors[0])
        self.biases[0] = (self.norms[0] * self.factors[0]).square() / 2

    def training_state(self) -> dict[str, Tensor]:
        if not self.learning:
            return {}
        weight = torch.tensor(self.weight, dtype=torch.float64)
        return {"gains": self.gains, "norms": self.norms, "counts": self.counts, "weight": weight}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.begin()
        for name in ("gains", "norms", "counts"):
            getattr(self, name).copy_(state[name])
        self.weight = float(state["weight"])
