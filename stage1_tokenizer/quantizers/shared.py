"""The codebook that late positions share: few dimensions, laid where most is left to describe.

    e_i[c] = U_i (s_i * z_c)      U_i (D, n) orthonormal, s_i (n,), z_c (n,)

Late residuals are nearly Gaussian, and entries of hundreds of numbers would see too few images to
be more than noise there. So each late position describes the residual along those n of its
principal directions where most is left, spread as the residual is, by entries of few dimensions
that all late positions share. In few dimensions a code also says more for its bits: of 1,024
directions among very many dimensions the nearest is worth 76% of them, of 1,024 vectors of 16
dimensions 80%, and it is found sooner.
"""

import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.quantizers.codebook import TINY, Codebook, Seen
from stage1_tokenizer.quantizers.contract import deterministic

ROTATE_EVERY = 50  # updates, after which the basis follows the covariance
GAINS = 0.5, 2.0  # limits of a position's gain, as its spreads should be right by themselves
RESCALE_ABOVE = 1e6  # of the newest weight; far from float32's limits


class SharedCodebook(Codebook):
    """M positions that read one codebook, each along other principal directions."""

    vectors: Tensor  # (K, n): z
    supports: Tensor  # int64 (M, n): the columns of the basis that make U_i
    spreads: Tensor  # (M, n): s, with signs that make the entries of each position others
    basis: Tensor  # (D, r), orthonormal: principal directions of the residual that enters
    biases: Tensor  # (M, K): half the squared norms of the entries

    def __init__(self, sizes: tuple[int, ...], dim: int, rank: int, subspace: int) -> None:
        """Make an untrained codebook.

        Args:
            sizes: K_i of each position: the first so many entries.
            dim: D of the latent.
            rank: r, at most D: principal directions that are described at all.
            subspace: n, at most r: how many of them each position describes.
        """
        super().__init__()
        self.sizes, self.books, self.dim = sizes, (0,) * len(sizes), rank
        M, K = len(sizes), max(sizes)
        generator = generator_for(0)
        signs = torch.randint(0, 2, (M, subspace), generator=generator) * 2.0 - 1
        self.register_buffer("vectors", torch.zeros(K, subspace))
        self.register_buffer("supports", torch.arange(subspace).repeat(M, 1))
        self.register_buffer("spreads", signs)
        self.register_buffer("basis", torch.eye(dim, rank))
        self.register_buffer("biases", torch.zeros(M, K))
        self.learning = False  # whether there are the averages below

    def enter(self, residual: Tensor) -> Tensor:
        return residual @ self.basis

    def expand(self, difference: Tensor) -> Tensor:
        return difference @ self.basis.T

    def chosen(self, index: int, codes: Tensor) -> Tensor:
        """Entries along the position's directions: (..., n)."""
        return self.vectors[codes] * self.spreads[index]

    def add(self, index: int, codes: Tensor, sums: Tensor, alpha: float = 1) -> None:
        sums.index_add_(-1, self.supports[index], self.chosen(index, codes), alpha=alpha)

    def scores(self, index: int, residual: Tensor) -> Tensor:
        size = self.sizes[index]
        along = residual.index_select(1, self.supports[index]) * self.spreads[index]
        return torch.addmm(self.biases[index, :size], along, self.vectors[:size].T, beta=-1)

    def meaning(self, book: int) -> Tensor:
        return self.vectors

    def placement(self, index: int) -> Tensor | None:
        return self.spreads[index].unsqueeze(1) * self.basis[:, self.supports[index]].T

    # Learning.

    def begin(self) -> None:
        """Make room for the averages that only training needs."""
        self.learning = True
        self.weight = 1.0  # of a residual that arrives now
        self.updates = 0
        self.sums = torch.zeros_like(self.vectors)  # (K, n)
        self.counts = torch.ones_like(self.biases)  # (M, K): of residuals in the sums
        self.norms = torch.ones_like(self.biases)  # (M, K): of the entries before the gain
        self.gains = torch.ones_like(self.biases[:, 0])  # (M,)
        self.deviations = self.spreads.clone()  # (M, n): the spreads before the gains
        D, n = len(self.basis), self.vectors.shape[1]
        self.covariance = self.basis.new_zeros(D, D)  # of the residual that enters
        # (M,): what a code leaves of the variance along the directions it describes.
        self.reductions = 2 ** (-2 * torch.tensor(self.sizes).log2() / n).to(self.gains)

    def start(self, residual: Tensor, generator: torch.Generator) -> Tensor:
        self.begin()
        self.covariance.copy_(residual.T @ residual / len(residual))
        self._rotate_basis(iterations=10)
        residual = self.enter(residual)
        # Gaussian vectors at first; sums, as many residuals as each counts.
        self.sums.copy_(torch.randn(self.sums.shape, generator=generator))
        self.sums *= self.counts.sum(0).unsqueeze(1)
        for index in range(len(self.sizes)):
            self._scale_entries()
            codes = self.nearest(index, residual)
            along, entries = residual[:, self.supports[index]], self.chosen(index, codes)
            projection = (along * entries).sum() / entries.square().sum().clamp_min(TINY)
            self.gains[index] = projection.clamp(*GAINS)
            self._scale_entries()
            self.add(index, codes, residual, alpha=-1)
        return residual

    def learn(self, seen: Seen, decay: float, finite: Tensor | None) -> None:
        codes = seen.codes.T  # (M, B)
        M, K = self.counts.shape
        self.weight /= decay
        positions = torch.arange(M, device=codes.device).unsqueeze(1)
        uses = (positions * K + codes).flatten()
        ones = torch.ones(uses.shape, device=codes.device)
        ones = ones if finite is None else ones * finite
        share = torch.as_tensor(1 - decay)
        share = (share if finite is None else share * finite).to(self.gains)
        with deterministic(codes.device):
            self.counts.view(-1).index_add_(0, uses, ones, alpha=self.weight)

        # |r - g u|^2 = |r|^2 - 2 g r.u + g^2 |u|^2: the gain that would have left least.
        squares = self.norms.gather(1, codes).square().mean(1).clamp_min(TINY)
        best = (seen.falls / squares + self.gains**2) / (2 * self.gains)
        self.gains.lerp_(best, share).clamp_(*GAINS)

        if self.weight > RESCALE_ABOVE:
            self.sums /= self.weight
            self.counts /= self.weight
            self.weight = 1.0

        # Residuals along the directions, divided by the spreads, move the one codebook.
        B = codes.shape[1]
        along = seen.left[:-1].gather(2, self.supports.unsqueeze(1).expand(-1, B, -1))
        deviations = self.deviations.unsqueeze(1)
        whitened = torch.where(deviations == 0, 0, along / deviations)
        with deterministic(codes.device):
            self.sums.index_add_(0, codes.flatten(), whitened.flatten(0, 1), alpha=self.weight)

        # What the next rotation of the basis goes by.
        left = 1 - seen.falls / along.square().sum(2).mean(1).clamp_min(TINY)
        self.reductions.lerp_(left.clamp(0, 1), share)
        self.covariance.lerp_(seen.entered.T @ seen.entered / B, share)
        self.updates += 1
        if self.updates % ROTATE_EVERY == 0:
            self._rotate_basis()
        self._scale_entries()

    def _rotate_basis(self, iterations: int = 1) -> None:
        """Towards the principal directions (orthogonal iteration), and choose the supports anew."""
        basis = self.basis
        for _ in range(iterations):
            basis = torch.linalg.qr(self.covariance @ basis).Q
        self.basis.copy_(basis)
        variances = (basis * (self.covariance @ basis)).sum(0).clamp_min(0)
        for index, reduction in enumerate(self.reductions):
            most = variances.topk(self.deviations.shape[1])
            self.supports[index] = most.indices
            self.deviations[index] = most.values.sqrt().copysign(self.deviations[index])
            variances[most.indices] *= reduction

    def _scale_entries(self) -> None:
        counts = self.counts.sum(0).clamp_min(TINY)
        torch.div(self.sums, counts.unsqueeze(1), out=self.vectors)
        self.norms = (self.deviations.square() @ self.vectors.square().T).sqrt()
        gains = self.gains.unsqueeze(1)
        torch.mul(self.deviations, gains, out=self.spreads)
        self.biases.copy_((self.norms * gains).square() / 2)

    TENSORS = ("sums", "counts", "norms", "gains", "deviations", "covariance", "reductions")

    def training_state(self) -> dict[str, Tensor]:
        if not self.learning:
            return {}
        numbers = {
            "weight": torch.tensor(self.weight, dtype=torch.float64),
            "updates": torch.tensor(self.updates),
        }
        return {name: getattr(self, name) for name in self.TENSORS} | numbers

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self.begin()
        for name in self.TENSORS:
            getattr(self, name).copy_(state[name])
        self.weight, self.updates = float(state["weight"]), int(state["updates"])
