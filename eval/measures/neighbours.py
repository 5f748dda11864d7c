"""The one search for nearest neighbours: exact, in bounded memory, ties decided by the order.

A distance is a whole number for each query and each row of the database, block by block. So equal
distances are equal however a matrix product rounds, and of equally near rows the first comes first.
"""

from typing import Protocol

import torch
from torch import Tensor

from pqvae.console import Progress

QUERIES, ROWS = 1024, 4096  # sides of a block: a few 32 MB tables are in memory at once
# Squared Euclidean distances are told apart down to this share of a mean squared norm.
RESOLUTION = {torch.float32: 1e-5, torch.float64: 1e-11}
LARGEST = 2**62


class Distances(Protocol):
    """How far Q queries are from the n rows of a database."""

    @property
    def shape(self) -> tuple[int, int]: ...  # Q, n

    def __call__(self, queries: slice, rows: slice, /) -> Tensor: ...  # int64 (q, r), 0 or above


class Euclidean:
    """Squared Euclidean distances, in units of ``step``."""

    def __init__(
        self,
        queries: Tensor,
        database: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """Compare vectors.

        Args:
            queries: float32 or uint8 (Q, D).
            database: The same of (n, D).
            dtype: Of the products: float32, or float64 where the nearest of near ones counts.
            device: Where they are computed; by default where the vectors are.
        """
        if device is not None and device.type == "mps" and dtype == torch.float64:
            device = torch.device("cpu")  # mps has no float64
        self.queries, self.database = queries, database
        self.dtype, self.device = dtype, device or queries.device
        self.shape = len(queries), len(database)
        self.squares = self._squares(database)
        # Where all vectors are zero, all distances are, in any unit.
        self.step = RESOLUTION[dtype] * self.squares.mean().item() or 1.0

    def __call__(self, queries: slice, rows: slice) -> Tensor:
        block, others = self._load(self.queries[queries]), self._load(self.database[rows])
        # |a - b|^2 = |b|^2 - 2ab + |a|^2, in place: a block is the largest thing here
        distances = torch.addmm(self.squares[rows].to(self.device), block, others.T, alpha=-2)
        distances += block.square().sum(1, keepdim=True)
        return distances.div_(self.step).round_().clamp_min_(0).long()

    def farthest(self) -> int:
        """A number above all distances: of norms, the largest two, opposite to each other."""
        norms = self._squares(self.queries).amax().sqrt() + self.squares.amax().sqrt()
        return int(norms.square().item() / self.step) + 2

    def _load(self, vectors: Tensor) -> Tensor:
        return vectors.to(self.device, self.dtype)

    def _squares(self, vectors: Tensor) -> Tensor:
        parts = [self._load(part).square().sum(1).cpu() for part in vectors.split(ROWS)]
        return torch.cat(parts)


class Hamming:
    """How many codes differ: queries int64 (Q, k), database int64 (n, k)."""

    def __init__(self, queries: Tensor, database: Tensor) -> None:
        self.queries, self.columns = queries.int(), database.T.int().contiguous()
        self.shape = len(queries), len(database)

    def __call__(self, queries: slice, rows: slice) -> Tensor:
        codes, columns = self.queries[queries], self.columns[:, rows]
        distances = torch.zeros(len(codes), columns.shape[1], dtype=torch.int16)
        for position, column in enumerate(columns):
            distances += codes[:, position, None] != column
        return distances.long()


class Tree:
    """Places in the tree of codes: the longest common prefix first, then the nearest latent."""

    def __init__(self, queries: Tensor, database: Tensor, latents: Euclidean) -> None:
        """Compare codes int64 (Q, N) with codes (n, N), and the latents of both."""
        self.queries, self.columns, self.latents = queries, database.T.contiguous(), latents
        self.shape, self.unit = latents.shape, latents.farthest()

    def __call__(self, queries: slice, rows: slice) -> Tensor:
        columns = self.columns[:, rows]
        apart = len(columns) - common_prefix(self.queries[queries], columns)
        return apart * self.unit + self.latents(queries, rows)


def common_prefix(queries: Tensor, columns: Tensor) -> Tensor:
    """Length of the common prefix of codes (B, N) and each column of (N, n): int64 (B, n)."""
    alike = torch.ones(len(queries), columns.shape[1], dtype=torch.bool)
    shared = torch.zeros(alike.shape, dtype=torch.int64)
    for position, column in enumerate(columns):
        alike &= queries[:, position, None] == column
        if not alike.any():
            break
        shared += alike
    return shared


def nearest(
    distances: Distances, count: int, itself: Tensor | None = None, label: str | None = None
) -> Tensor:
    """The nearest rows of each query.

    Args:
        distances: Of Q queries from n rows.
        count: How many rows; fewer than n where queries are rows themselves.
        itself: Which row each query is, int64 (Q,): that one does not count.
        label: What the progress is called; None shows none.

    Returns:
        Rows of the database, nearest first, int64 (Q, count); equally near ones in their order.
    """
    Q, n = distances.shape
    progress = None if label is None else Progress(label, Q)
    found = []
    for start in range(0, Q, QUERIES):
        queries = slice(start, min(start + QUERIES, Q))
        best = torch.empty(queries.stop - start, 0, dtype=torch.int64)
        for first in range(0, n, ROWS):
            rows = torch.arange(first, min(first + ROWS, n))
            table = distances(queries, slice(first, first + len(rows)))
            # A number that is smaller for a nearer row, and of equally near ones for the first.
            keys = table.clamp_max_(LARGEST // n - 1).mul_(n).add_(rows.to(table.device))
            if itself is not None:
                own = itself[queries].unsqueeze(1) == rows
                keys.masked_fill_(own.to(keys.device), LARGEST)
            near = keys.topk(min(count, len(rows)), largest=False).values.cpu()
            best = torch.cat([best, near], dim=1)
            best = best.topk(min(count, best.shape[1]), largest=False).values
        found.append(best % n)
        if progress:
            progress.advance(len(best))
    if progress:
        progress.close()
    return torch.cat(found)
