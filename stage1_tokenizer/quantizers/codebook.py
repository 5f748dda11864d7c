"""What a codebook is to the loop over positions: where its entries lie, and how they learn."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TINY = 1e-30  # no smaller divisors; far above float32's limit
# Of the gain of a position at the start, times the norm of a latent of unit variance: where nothing
# is left to describe, above what rounding makes of it.
LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class Seen:
    """What a codebook of n positions saw of a batch of B latents."""

    codes: Tensor  # int64 (B, n)
    entered: Tensor  # float32 (B, D): the residual before its first position
    left: Tensor  # float32 (n + 1, B, d): the residuals from there on, in its coordinates
    falls: Tensor  # float32 (n,): by how much each position lowers the mean squared residual


class Codebook(nn.Module, ABC):
    """The entries of one or more consecutive positions; it owns their learning, too.

    A codebook works in coordinates of its own: ``enter`` takes a residual into them and ``expand``
    takes a difference back.

    Attributes:
        sizes: K_i of each of its positions.
        books: Which of its books each of them reads, from 0.
        dim: d, of its coordinates.
    """

    sizes: tuple[int, ...]
    books: tuple[int, ...]
    dim: int

    @abstractmethod
    def enter(self, residual: Tensor) -> Tensor:
        """A residual (..., D) in this codebook's coordinates: (..., d)."""

    @abstractmethod
    def expand(self, difference: Tensor) -> Tensor:
        """A difference (..., d) of what ``enter`` gives, in the latent's: (..., D)."""

    @abstractmethod
    def chosen(self, index: int, codes: Tensor) -> Tensor:
        """Entries of its position ``index`` by their codes (...): float32 (..., any)."""

    @abstractmethod
    def add(self, index: int, codes: Tensor, sums: Tensor, alpha: float = 1) -> None:
        """Add entries by their codes (...) to sums (..., d), in place."""

    @abstractmethod
    def scores(self, index: int, residual: Tensor) -> Tensor:
        """How near the entries are to residuals (B, d): r.e - |e|^2 / 2, float32 (B, K_i).

        Up to what all entries of the position share: |r - e|^2 = |r|^2 - 2 (r.e - |e|^2 / 2), so
        the nearest entry has the highest score.
        """

    def nearest(self, index: int, residual: Tensor) -> Tensor:
        """The entry nearest to each residual (B, d): int64 (B,)."""
        return self.scores(index, residual).argmax(dim=1)

    @abstractmethod
    def meaning(self, book: int) -> Tensor:
        """As ``Quantizer.meaning``, by the book's number here."""

    @abstractmethod
    def placement(self, index: int) -> Tensor | None:
        """As ``Quantizer.placement``, by the position's number here."""

    @abstractmethod
    def start(self, residual: Tensor, generator: torch.Generator) -> Tensor:
        """Fit to residuals (B, D), one position after the other; what they leave, (B, d)."""

    @abstractmethod
    def learn(self, seen: Seen, decay: float, finite: Tensor | None) -> None:
        """Let the entries follow one batch by moving averages.

        Args:
            seen: The batch; all of it zero where it is not finite.
            decay: Of the averages, in (0, 1).
            finite: bool (), false where the batch is to change nothing; None means true.
        """

    def revive(self, seen: Seen, uses: Tensor, below: float, generator: torch.Generator) -> None:
        """Replace entries that are hardly used; by default none.

        Args:
            seen: A batch.
            uses: Of each entry in the last steps, float32 (n, K).
            below: A smaller share of a position's mean is hardly.
            generator: Draws what takes their place.
        """

    def training_state(self) -> dict[str, Tensor]:
        """All that ``learn`` carries from step to step, besides the state dict; {} before it."""
        return {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Take over what ``training_state`` gave."""
