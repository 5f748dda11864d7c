"""The loop over positions: each code picks the entry nearest to what is left, and subtracts it.

    r_0 = f        c_i = argmin_c |r_{i-1} - e_i[c]|^2        r_i = r_{i-1} - e_i[c_i]
    f_k = e_1[c_1] + ... + e_k[c_k] = f - r_k

Every entry describes the *whole* latent, so any prefix of codes sums to an approximation f_k of f,
and each code goes where most is left to say. Greedy refinement of this kind is optimal for a
Gaussian source under squared error (Equitz & Cover, "Successive refinement of information", 1991).

What an entry is, and how it learns, only the codebooks know. Each covers a stretch of positions;
the first one works in the coordinates of the latent.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stage1_tokenizer.quantizers.codebook import Codebook
from stage1_tokenizer.quantizers.codes import Codes, as_codes
from stage1_tokenizer.quantizers.contract import C, Description, Quantizer


class ProgressiveDescription(Description):
    """Codes of B latents, and what each prefix of them leaves: f_k = f - r_k."""

    def __init__(
        self,
        latents: Tensor,
        codes: Tensor,
        parts: Sequence[Tensor],
        codebooks: Sequence[Codebook],
    ) -> None:
        """Take what ``Progressive`` has found.

        Args:
            latents: f, float32 (B, D).
            codes: int64 (B, N).
            parts: For each codebook of n positions, the residuals from the one that enters it on,
                in its coordinates, float32 (n + 1, B, d).
            codebooks: What describes each part.
        """
        self.latents, self.codes, self.parts, self.codebooks = latents, codes, parts, codebooks

    def prefix(self, lengths: Tensor) -> Tensor:
        # f - r_k in value; as far as gradients are concerned, f, unless residuals have some.
        return self.latents - self.after(lengths)

    def after(self, lengths: Tensor) -> Tensor:
        """r_k of each latent: int64 (B,) in 0..N -> float32 (B, D)."""
        rows = torch.arange(len(lengths), device=lengths.device)
        first = len(self.parts[0]) - 1
        left = self.parts[0][lengths.clamp_max(first), rows]
        for codebook, part in zip(self.codebooks[1:], self.parts[1:], strict=True):
            inside = (lengths - first).clamp(0, len(part) - 1)
            left = left - codebook.expand(part[0] - part[inside, rows])
            first += len(part) - 1
        return left

    @torch.no_grad()
    def left(self) -> Tensor:
        energies = self.parts[0].square().sum(2)
        for part in self.parts[1:]:
            inside = part.square().sum(2)
            # What lies outside of a codebook's coordinates stays as it was.
            energies = torch.cat([energies, energies[-1] - inside[0] + inside[1:]])
        return energies


class Progressive(Quantizer[C]):
    """A quantizer whose codes are the nearest entries of codebooks, one after the other."""

    def __init__(self, config: C, codebooks: Sequence[Codebook]) -> None:
        sizes, books = [], []
        for codebook in codebooks:
            books += [book + len(set(books)) for book in codebook.books]
            sizes += codebook.sizes
        super().__init__(config, tuple(sizes), tuple(books), range(1, len(sizes) + 1))

    @property
    def codebooks(self) -> Sequence[Codebook]:
        """Those of all positions, in their order."""
        return [module for module in self.children() if isinstance(module, Codebook)]

    def meaning(self, book: int) -> Tensor:
        codebook, index = self._of_position(self.books.index(book))
        return codebook.meaning(codebook.books[index])

    def placement(self, position: int) -> Tensor | None:
        codebook, index = self._of_position(position)
        return codebook.placement(index)

    def _of_position(self, position: int) -> tuple[Codebook, int]:
        for codebook in self.codebooks:
            if position < len(codebook.sizes):
                return codebook, position
            position -= len(codebook.sizes)
        raise IndexError(position)

    # Use.

    @torch.no_grad()
    def encode(self, latents: Tensor, beam: int = 1) -> Tensor:
        return self.describe_greedily(latents).codes if beam == 1 else self._search(latents, beam)

    def describe_greedily(self, latents: Tensor) -> ProgressiveDescription:
        """Choose the nearest entry at every position."""
        return self._describe(
            latents, lambda codebook, index, _, left: codebook.nearest(index, left)
        )

    def describe_by(self, latents: Tensor, codes: Codes) -> ProgressiveDescription:
        chosen = as_codes(codes, latents.device)
        return self._describe(latents, lambda _book, _index, position, _left: chosen[:, position])

    @torch.no_grad()
    def _describe(
        self, latents: Tensor, choose: Callable[[Codebook, int, int, Tensor], Tensor]
    ) -> ProgressiveDescription:
        codes = torch.empty(self.num_codes, len(latents), dtype=torch.int64, device=latents.device)
        parts, residual, position = [], latents, 0
        # Autocast would search in bfloat16, which cannot tell near entries apart.
        with torch.autocast(latents.device.type, enabled=False):
            for codebook in self.codebooks:
                if parts:
                    residual = parts[-1][-1]
                residual = codebook.enter(residual)
                left = residual.new_empty(len(codebook.sizes) + 1, *residual.shape)
                left[0] = residual
                for index in range(len(codebook.sizes)):
                    codes[position] = choose(codebook, index, position, left[index])
                    left[index + 1] = left[index]
                    codebook.add(index, codes[position], left[index + 1], alpha=-1)
                    position += 1
                parts.append(left)
        return ProgressiveDescription(latents, codes.T, parts, self.codebooks)

    def _search(self, latents: Tensor, beam: int) -> Tensor:
        """Choose codes by beam search: the best ``beam`` beginnings stay at every position.

        A code that is not the nearest may leave a residual that later codes describe better. The
        cost grows with ``beam``; prefixes of one or two codes pay with some quality. All N codes
        together leave no more of a latent than greedy ones do.
        """
        B = len(latents)
        paths = torch.empty(B, 1, 0, dtype=torch.int64, device=latents.device)
        residuals = latents.unsqueeze(1)  # (B, W, d): of each of the W beginnings
        outside = latents.new_zeros(B, 1)  # half the energy that later codes cannot describe
        with torch.autocast(latents.device.type, enabled=False):
            for codebook in self.codebooks:
                inside = codebook.enter(residuals)
                outside = outside + (residuals.square().sum(2) - inside.square().sum(2)) / 2
                residuals = inside
                for index, size in enumerate(codebook.sizes):
                    scores = codebook.scores(index, residuals.flatten(0, 1)).view(B, -1, size)
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
                    codebook.add(index, codes, residuals, alpha=-1)
                    outside = outside.expand(B, left.shape[1] // size).gather(1, parents)
                    paths = paths.gather(1, kept.expand(-1, -1, paths.shape[2]))
                    paths = torch.cat([paths, codes.unsqueeze(2)], dim=2)
        nearest = (outside + residuals.square().sum(2) / 2).argmin(1)
        return paths[torch.arange(B, device=paths.device), nearest]

    def _decode(self, codes: Tensor) -> Tensor:
        total, position = None, 0
        for codebook in self.codebooks:
            stretch = codes[:, position : position + len(codebook.sizes)]
            if stretch.shape[1] == 0:
                break
            sums = self.scale.new_zeros(len(codes), codebook.dim)
            for index in range(stretch.shape[1]):  # in order: equal prefixes, equal sums to the bit
                codebook.add(index, stretch[:, index], sums)
            total = codebook.expand(sums) if total is None else total + codebook.expand(sums)
            position += stretch.shape[1]
        assert total is not None  # k is at least 1
        return total
