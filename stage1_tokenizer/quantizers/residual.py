"""The progressive quantizer: one latent vector <-> N ordered codes, coarse to fine.

    r_0 = f        c_i = argmin_c |r_{i-1} - e_i[c]|^2        r_i = r_{i-1} - e_i[c_i]
    f_k = e_1[c_1] + ... + e_k[c_k] = f - r_k

Each position i has a codebook e_i of its own whose entries describe the *whole* latent, so any
prefix of codes sums to an approximation f_k of f, and each code goes where most is left to say.
Greedy refinement of this kind is optimal for a Gaussian source under squared error (Equitz & Cover,
"Successive refinement of information", 1991).

From the second position on, all entries of a position share one norm (shape-gain quantization): the
choice is by direction alone, which keeps every entry in use. The entries of the first positions are
learned one by one. Late residuals are nearly Gaussian, and entries of so many numbers would see too
few images to be more than noise there; so the last positions share one codebook of few dimensions.
Each describes the residual along those of its principal directions where most is left, spread as
the residual is:

    e_i[c] = U_i (s_i * z_c)      U_i (D, n) orthonormal, s_i (n,), z_c (n,)

In few dimensions a code also says more for its bits: of 1,024 directions among very many dimensions
the nearest is worth 76% of them, of 1,024 vectors of 16 dimensions 80%, and it is found sooner.

What is learned is learned by moving averages, never by gradient: see ``codebooks.py``. To compare
with, ``gumbel.py`` does it by gradient, as PQ-VAE was first proposed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stage1_tokenizer.config import QuantizerConfig


@dataclass(frozen=True)
class Residuals:
    """What prefixes leave of B latents: r_0 ... r_N, the late ones in few dimensions."""

    early: Tensor  # float32 (L + 1, B, D): r_0 ... r_L
    late: Tensor  # float32 (N - L + 1, B, r): r_L ... r_N, projected to the basis
    basis: Tensor  # float32 (D, r), orthonormal; the rest of r_L is in all that follow

    def after(self, lengths: Tensor) -> Tensor:
        """r_k of each latent: int64 (B,) in 0..N -> float32 (B, D)."""
        rows, L = torch.arange(len(lengths), device=lengths.device), len(self.early) - 1
        described = self.late[0] - self.late[(lengths - L).clamp_min(0), rows]
        return self.early[lengths.clamp_max(L), rows] - described @ self.basis.T

    def energies(self) -> Tensor:
        """|r_k|^2, float32 (N + 1, B)."""
        early, late = self.early.square().sum(2), self.late.square().sum(2)
        return torch.cat([early, early[-1] - late[0] + late[1:]])


class ProgressiveQuantizer(nn.Module):
    """Latents (B, D) <-> codes (B, N), by nearest entry and subtraction; float32 throughout."""

    vectors: Tensor  # (L, K, D): entry c of an early position i is factors[i, c] * vectors[i, c]
    shared: Tensor  # (K, n): of a late one U_i @ (spreads[i] * shared[c])
    supports: Tensor  # int64 (N - L, n): the columns of the basis that make U_i
    spreads: Tensor  # (N - L, n), with signs that make the entries of each position others
    basis: Tensor  # (D, r), orthonormal
    factors: Tensor  # (L, K)
    biases: Tensor  # (N, K): half the squared norm where norms differ
    scale: Tensor  # (): the running standard deviation of the encoder's output

    def __init__(self, config: QuantizerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        N, L, sizes = config.num_codes, config.num_learned, config.sizes
        rank = min(config.rank, dim) if L < N else 0
        subspace = min(config.subspace, rank)
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (N - L, subspace), generator=generator) * 2.0 - 1
        self.register_buffer("vectors", torch.zeros(L, max(sizes[:L]), dim))
        self.register_buffer("shared", torch.zeros(max(sizes[L:], default=0), subspace))
        self.register_buffer("supports", torch.arange(subspace).repeat(N - L, 1))
        self.register_buffer("spreads", signs)
        self.register_buffer("basis", torch.eye(dim, rank))
        self.register_buffer("factors", torch.ones(L, max(sizes[:L])))
        self.register_buffer("biases", torch.zeros(N, max(sizes)))
        self.register_buffer("scale", torch.ones(()))

    def entries(self, position: int) -> Tensor:
        """The codebook of a position: float32 (K_i, D)."""
        codes = torch.arange(self.config.sizes[position], device=self.factors.device)
        entries, late = self.chosen(position, codes), position - self.config.num_learned
        return entries if late < 0 else entries @ self.basis[:, self.supports[late]].T

    def chosen(self, position: int, codes: Tensor) -> Tensor:
        """Entries by their codes (...): float32 (..., D), of a late position (..., n)."""
        late = position - self.config.num_learned
        if late < 0:
            return self.vectors[position][codes] * self.factors[position][codes].unsqueeze(-1)
        return self.shared[codes] * self.spreads[late]

    def add(self, position: int, codes: Tensor, sums: Tensor, alpha: float = 1) -> None:
        """Add entries by their codes (...) to sums (..., D or r), in place."""
        late, entries = position - self.config.num_learned, self.chosen(position, codes)
        if late < 0:
            sums.add_(entries, alpha=alpha)
        else:
            sums.index_add_(-1, self.supports[late], entries, alpha=alpha)

    def normalize(self, encoded: Tensor) -> Tensor:
        """Divide the encoder's output (B, D) by its running standard deviation.

        Without this the latent's scale drifts as training goes on and the codebooks lag behind.
        """
        return encoded.float() / self.scale

    def scores(self, position: int, residual: Tensor) -> Tensor:
        """How near the entries of a position are to each residual (B, D or r): float32 (B, K_i)."""
        late, size = position - self.config.num_learned, self.config.sizes[position]
        biases = self.biases[position, :size]
        # |r - e|^2 = |r|^2 - 2 (r.e - |e|^2 / 2): the nearest entry has the highest score.
        if late < 0:
            projections = residual @ self.vectors[position, :size].T
            return torch.addcmul(-biases, projections, self.factors[position, :size])
        along = residual.index_select(1, self.supports[late]) * self.spreads[late]
        return torch.addmm(biases, along, self.shared[:size].T, beta=-1)

    def nearest(self, position: int, residual: Tensor) -> Tensor:
        """The entry of a position nearest to each residual (B, D or r): int64 (B,)."""
        return self.scores(position, residual).argmax(dim=1)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Residuals]:
        """Choose the codes of normalized latents, each the nearest to what is left.

        Args:
            latents: float32 (B, D).

        Returns:
            Codes, int64 (B, N), and what they leave: f_k = f - r_k.
        """
        return self._describe(latents, self.nearest)

    def residuals(self, latents: Tensor, codes: Tensor) -> Residuals:
        """What ``quantize`` leaves of latents (B, D) when it chooses these codes (B, N)."""
        return self._describe(latents, lambda position, _: codes[:, position])[1]

    @torch.no_grad()
    def _describe(
        self, latents: Tensor, choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, Residuals]:
        (B, D), N, L = latents.shape, self.config.num_codes, self.config.num_learned
        codes = torch.empty(N, B, dtype=torch.int64, device=latents.device)
        early = latents.new_empty(L + 1, B, D)
        late = latents.new_empty(N - L + 1, B, self.basis.shape[1])
        early[0] = latents
        # Autocast would search in bfloat16, which cannot tell near entries apart.
        with torch.autocast(latents.device.type, enabled=False):
            for position in range(N):
                left, i = (early, position) if position < L else (late, position - L)
                if position == L:
                    late[0] = early[L] @ self.basis
                codes[position] = choose(position, left[i])
                left[i + 1] = left[i]
                self.add(position, codes[position], left[i + 1], alpha=-1)
        return codes.T, Residuals(early, late if N > L else late.zero_(), self.basis)

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
        B, L = len(latents), self.config.num_learned
        paths = torch.empty(B, 1, 0, dtype=torch.int64, device=latents.device)
        residuals = latents.unsqueeze(1)  # (B, W, D or r): of each of the W beginnings
        outside = latents.new_zeros(B, 1)  # half the energy that late codes cannot describe
        with torch.autocast(latents.device.type, enabled=False):
            for position, size in enumerate(self.config.sizes):
                if position == L:
                    projected = residuals @ self.basis
                    outside = (residuals.square().sum(2) - projected.square().sum(2)) / 2
                    residuals = projected
                scores = self.scores(position, residuals.flatten(0, 1)).view(B, -1, size)
                # Half of |r - e|^2, but for what all entries of the position share.
                left = outside + residuals.square().sum(2) / 2
                left = left.unsqueeze(2) - scores
                # The first beginning is always the greedy one, so that it is there at the end.
                left[:, 0].scatter_(1, left[:, 0].argmin(1, keepdim=True), -torch.inf)
                left = left.flatten(1)
                best = left.topk(min(beam, left.shape[1]), largest=False).indices  # (B, W)
                parents, codes = best // size, best % size
                kept = parents.unsqueeze(2)
                residuals = residuals.gather(1, kept.expand(-1, -1, residuals.shape[2]))
                self.add(position, codes, residuals, alpha=-1)
                outside = outside.expand(B, left.shape[1] // size).gather(1, parents)
                paths = paths.gather(1, kept.expand(-1, -1, position))
                paths = torch.cat([paths, codes.unsqueeze(2)], dim=2)
        nearest = (outside + residuals.square().sum(2) / 2).argmin(1)
        return paths[torch.arange(B, device=paths.device), nearest]

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
        D, r = self.basis.shape
        early, late = self.factors.new_zeros(len(codes), D), self.factors.new_zeros(len(codes), r)
        for position in range(k):  # in order: equal prefixes give equal sums, to the bit
            sums = early if position < self.config.num_learned else late
            self.add(position, codes[:, position], sums)
        return early + late @ self.basis.T if k > self.config.num_learned else early


def code_entropy_bits(codes: Tensor, sizes: tuple[int, ...]) -> list[float]:
    """Entropy of the codes (B, N) at each position over a data set, in bits; at most log2 K_i."""
    entropies = []
    for position, size in enumerate(sizes):
        shares = torch.bincount(codes[:, position], minlength=size).double() / len(codes)
        entropies.append(float(-torch.special.xlogy(shares, shares).sum() / math.log(2)))
    return entropies
